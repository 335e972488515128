"""All non-public parts of Ray Serve that are used here; needs the extra ``serve``."""

from ray.serve._private import replica as replica_module

__all__ = ["replica_module"]
