"""What became of the promise in a request: met, late, rejected or failed; or there was none.

It owns which answers burn the error budget. What only the client could have done otherwise does
not: malformed requests, an SLO below what the model can ever do, a quota that is used up, "now or
never", hanging up.
"""

from collections.abc import Mapping

from scheduler.events import Reason

RESULTS = ("met", "late", "rejected", "failed")
_BY_OUTCOME = {"served": "met", "expired": "late", "rejected": "rejected", "failed": "failed"}
# All and only reasons of a no that the client could have avoided.
CLIENTS_OWN = frozenset(
    {
        Reason.SLO_INFEASIBLE_EVER.value,
        Reason.WOULD_QUEUE.value,
        Reason.INVALID_INPUT.value,
        "quota_exceeded",
    }
)


def result_of(outcome: str, reason: str) -> str | None:
    """None: no promise was broken, nor kept."""
    return None if reason in CLIENTS_OWN else _BY_OUTCOME.get(outcome)


def results_of(outcomes: Mapping[tuple[str, str], int]) -> dict[str, int]:
    """Counts by result, all of RESULTS in that order, from counts by outcome and reason."""
    counts = dict.fromkeys(RESULTS, 0)
    for (outcome, reason), count in outcomes.items():
        result = result_of(outcome, reason)
        if result is not None:
            counts[result] += count
    return counts
