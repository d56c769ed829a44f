"""RequestLog: a line of the log for each request at debug, and for some of those that went wrong.

It owns the words of these lines, their figures, and how many of a kind are written: a gateway that
refuses thousands a second must not write thousands of lines. It listens where the ring of recent
requests does; at the default level a request that was served costs a comparison.
"""

import logging

from gateway.observability.answered import Answered
from scheduler.events import Served
from scheduler.spec import MILLISECOND_NS, SECOND_NS
from scheduler.words import ms

logger = logging.getLogger(__name__)

# Lines of one reason in a row, and then a second; below debug.
BURST = 5
INTERVAL_NS = SECOND_NS


class RequestLog:
    """`note` is told every request. A failure of ours is a warning, a refusal an info."""

    def __init__(self, log: logging.Logger = logger) -> None:
        self._log = log
        self._is_debug = log.isEnabledFor(logging.DEBUG)
        # By outcome and reason, of which there are as many as rows in the table of errors.
        self._limits: dict[tuple[str, str | None], _Limit] = {}

    def note(self, answered: Answered) -> None:
        if self._is_debug:
            self._write(logging.DEBUG, answered, 0)
            return
        if type(answered.outcome) is Served:
            return
        kind = answered.kind
        level = logging.WARNING if kind == "failed" else logging.INFO
        if kind == "cancelled" or not self._log.isEnabledFor(level):
            return
        key = (kind, answered.reason)
        limit = self._limits.get(key)
        if limit is None:
            limit = self._limits[key] = _Limit(answered.answered_ns)
        if limit.allows(answered.answered_ns):
            self._write(level, answered, limit.take_suppressed())

    def _write(self, level: int, answered: Answered, num_suppressed: int) -> None:
        told = f"request {answered.request_id}"
        if answered.model:
            told += f" of {answered.model}"
        told += f": {answered.kind} after {ms(answered.latency_ns)}"
        if answered.slo_ns:
            told += f" of {ms(answered.slo_ns)}"
        if answered.reason is not None:
            told += f", {answered.reason}: {answered.detail}"
        if answered.trace is not None:
            told += f" (trace {answered.trace.trace_id})"
        if num_suppressed:
            told += f" ({num_suppressed:,} more like it since the last such line)"
        self._log.log(level, "%s", told, extra=_figures(answered, num_suppressed))


class _Limit:
    """Of lines: BURST at once, then one in each INTERVAL_NS."""

    __slots__ = ("_last_ns", "_left", "_num_suppressed")

    def __init__(self, now: int) -> None:
        self._left = float(BURST)
        self._last_ns = now
        self._num_suppressed = 0

    def allows(self, now: int) -> bool:
        gained = max(0, now - self._last_ns) / INTERVAL_NS
        self._left = min(float(BURST), self._left + gained)
        self._last_ns = max(now, self._last_ns)
        if self._left < 1:
            self._num_suppressed += 1
            return False
        self._left -= 1
        return True

    def take_suppressed(self) -> int:
        number, self._num_suppressed = self._num_suppressed, 0
        return number


def _figures(answered: Answered, num_suppressed: int) -> dict[str, object]:
    """For machines: what they search by, and add up."""
    trace, outcome = answered.trace, answered.outcome
    slack_ns = answered.slack_ns
    told = {
        "request_id": answered.request_id,
        "trace_id": None if trace is None else trace.trace_id,
        "span_id": None if trace is None else trace.span_id,
        "model": answered.model or None,
        "tenant": answered.tenant or None,
        "outcome": answered.kind,
        "reason": answered.reason,
        "worker": (outcome.worker_id or None) if isinstance(outcome, Served) else None,
        "slo_ms": answered.slo_ns / MILLISECOND_NS if answered.slo_ns else None,
        "latency_ms": answered.latency_ns / MILLISECOND_NS,
        "slack_ms": None if slack_ns is None else slack_ns / MILLISECOND_NS,
        "suppressed": num_suppressed or None,
    }
    return {name: value for name, value in told.items() if value is not None}
