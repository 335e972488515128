"""All non-public parts of Ray that are used here; check each new version against this list."""

from ray._common.utils import get_default_ray_temp_dir
from ray._private import ray_constants
from ray._private import utils as ray_utils
from ray._private import worker as worker_module
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray._private.node import Node
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray._private.services import (  # type: ignore[attr-defined]
    canonicalize_bootstrap_address_or_die,
    psutil,
)
from ray._private.state import state
from ray._raylet import (  # type: ignore[attr-defined]
    GCS_AUTOSCALER_STATE_NAMESPACE,
    GCS_AUTOSCALER_V2_ENABLED_KEY,
    GcsClient,
)
from ray.experimental.internal_kv import (
    _internal_kv_del,
    _internal_kv_get,
    _internal_kv_put,
)
from ray.tune.execution.class_cache import DEFAULT_ENV_VARS as TUNE_ENV_VARS
from ray.tune.tune import air_usage  # type: ignore[attr-defined]

__all__ = [
    "DEBUG_AUTOSCALING_STATUS",
    "GCS_AUTOSCALER_STATE_NAMESPACE",
    "GCS_AUTOSCALER_V2_ENABLED_KEY",
    "RAY_JOB_CONFIG_JSON_ENV_VAR",
    "TUNE_ENV_VARS",
    "GcsClient",
    "Node",
    "_internal_kv_del",
    "_internal_kv_get",
    "_internal_kv_put",
    "air_usage",
    "canonicalize_bootstrap_address_or_die",
    "get_default_ray_temp_dir",
    "maybe_enable_token_auth_if_token_available",
    "psutil",
    "ray_constants",
    "ray_utils",
    "state",
    "worker_module",
]
