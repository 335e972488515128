"""The only code that uses Ray and Optuna; enter it via ``session.search`` or ``refit.refit``."""

import os

# Ray reads these when it is imported: they turn off its own output, tables and usage reports.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray's behaviour from its next major version on; without it, Ray warns about that at each start.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
