"""What a run would do, how long it would take, and what it would need."""

from esm2_features._costs.dry_run import dry_run
from esm2_features._costs.estimate import estimate

__all__ = ["dry_run", "estimate"]
