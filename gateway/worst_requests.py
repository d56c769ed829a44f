"""WorstRequests: which of the requests answered lately had the least slack.

It owns those of one spell, from one `take` to the next, and which of the open ones it has seen
arrive. It must never keep more than its two limits, however many requests come.
"""

import heapq
from typing import NamedTuple

from scheduler.events import Cancelled, Rejected, Reply, RequestArrived, Served

# Kept of each spell: a screenful.
MAX_WORST = 20
# Requests that arrived and are not answered: the scheduler queues 16,384.
MAX_OPEN = 32_768


class WorstRequest(NamedTuple):
    """`slack_ns` is what was left of the SLO at the answer. It is below 0 where the SLO was missed
    by so much, or would have been by the prediction that a refusal names; 0 where it names none.
    `reason` and `detail` are empty for one that was served.
    """

    slack_ns: int
    request_id: int  # the dispatcher's
    model: str
    outcome: str  # as in metrics
    reason: str
    detail: str
    worker_id: str  # "" where none served it
    batch_rows: int
    is_cold_start: bool
    slo_ns: int
    latency_ns: int
    answered_ns: int


class WorstRequests:
    def __init__(self) -> None:
        # All and only requests whose arrival was seen and whose answer was not.
        self._open: dict[int, RequestArrived] = {}
        # A heap of (-slack, request id, request): the first is the least bad.
        self._kept: list[tuple[int, int, WorstRequest]] = []

    def reset(self) -> None:
        """Forgets everything, also which requests are open."""
        self._open.clear()
        self._kept.clear()

    def take(self) -> list[WorstRequest]:
        """Those since the last call, the least slack first."""
        kept, self._kept = self._kept, []
        return [request for _, _, request in sorted(kept, key=lambda item: (-item[0], item[1]))]

    def on_arrived(self, arrived: RequestArrived) -> None:
        if len(self._open) < MAX_OPEN:
            self._open[arrived.request_id] = arrived

    def on_answered(self, reply: Reply, now: int) -> None:
        arrived = self._open.pop(reply.request_id, None)
        if arrived is None or type(reply.outcome) is Cancelled:
            return
        slack_ns = arrived.deadline_ns - now
        outcome = reply.outcome
        if type(outcome) is Rejected:
            slack_ns = 0
            if outcome.predicted_ns is not None:
                slack_ns = min(0, arrived.deadline_ns - arrived.arrival_ns - outcome.predicted_ns)
        elif type(outcome) is not Served:
            slack_ns = min(0, slack_ns)
        kept = self._kept
        if len(kept) < MAX_WORST:
            heapq.heappush(
                kept, (-slack_ns, reply.request_id, _told(arrived, reply, slack_ns, now))
            )
        elif -slack_ns > kept[0][0]:
            item = (-slack_ns, reply.request_id, _told(arrived, reply, slack_ns, now))
            heapq.heapreplace(kept, item)


def _told(arrived: RequestArrived, reply: Reply, slack_ns: int, now: int) -> WorstRequest:
    outcome = reply.outcome
    assert not isinstance(outcome, Cancelled)
    reason = detail = worker_id = ""
    batch_rows, is_cold_start = 0, False
    if isinstance(outcome, Served):
        worker_id, batch_rows = outcome.worker_id, outcome.batch_rows
        is_cold_start = outcome.is_cold_start
    else:
        reason, detail = outcome.reason.value, outcome.detail
    return WorstRequest(
        slack_ns=slack_ns,
        request_id=arrived.request_id,
        model=arrived.model,
        outcome=type(outcome).__name__.lower(),
        reason=reason,
        detail=detail,
        worker_id=worker_id,
        batch_rows=batch_rows,
        is_cold_start=is_cold_start,
        slo_ns=arrived.deadline_ns - arrived.arrival_ns,
        latency_ns=now - arrived.arrival_ns,
        answered_ns=now,
    )
