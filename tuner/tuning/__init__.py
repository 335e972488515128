"""The only code that knows Ray and Optuna: ``session.search`` and ``refit.refit`` are its doors."""

import os

# Read when Ray is imported: no output, tables or usage reports of the engine's own.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# What Ray will do from its next major version on; without it, it warns of that at each start.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
