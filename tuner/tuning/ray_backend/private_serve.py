"""All of Ray Serve that is used here and is not public; it is there with the extra ``serve``."""

from ray.serve._private import replica as replica_module

__all__ = ["replica_module"]
