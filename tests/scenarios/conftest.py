"""The scheduler's fixtures, for stories that are told by hand."""

from tests.scheduler.conftest import make_scheduler, scheduler

__all__ = ["make_scheduler", "scheduler"]
