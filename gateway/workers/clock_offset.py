"""How far one worker's clock is from the gateway's, and the conversions between the two.

Owns the estimate for one connection: of the pings of the last seconds, the one with the smallest
round trip says most, since the least of it was spent waiting (Clockwork, OSDI'20, keeps the same
minimum). It never reads a clock. Foreign instants stop here: windows are converted on the way out,
spans on the way in, and the scheduler knows one timeline (adr/0006).
"""

from collections import deque
from typing import NamedTuple, assert_never

from scheduler.actions import (
    NO_SPAN,
    Action,
    EvictResult,
    EvictWeights,
    Infer,
    InferResult,
    LoadResult,
    LoadWeights,
    ReleaseModel,
    ReleaseResult,
    Result,
    Span,
)
from scheduler.spec import SECOND_NS

# Two quartz clocks drift apart by up to 50 µs a second: ten seconds cost at most half a
# millisecond, and hold fifty pings, of which one is sure to have met idle threads.
SAMPLE_WINDOW_NS = 10 * SECOND_NS
MAX_INSTANT_NS = 2**63 - 1  # "never" on every timeline; also what fits the wire


class _Sample(NamedTuple):
    at_ns: int
    rtt_ns: int
    offset_ns: int


class ClockOffset:
    """Worker's clock minus gateway's clock, from the ping with the smallest round trip."""

    def __init__(self, window_ns: int = SAMPLE_WINDOW_NS) -> None:
        self._window_ns = window_ns
        # All and only samples that are, or may become, the best of the window: by age, and with
        # round trips that rise towards the newest.
        self._samples: deque[_Sample] = deque()
        self.num_samples = 0
        self.offset_ns = 0
        self.rtt_ns = 0

    def add(self, *, sent_ns: int, received_ns: int, replied_ns: int, now: int) -> bool:
        """Count one pong: sent and back (`now`) on our clock, received and replied on the worker's.

        False, and nothing learnt, where the four instants contradict each other.
        """
        rtt_ns = (now - sent_ns) - (replied_ns - received_ns)
        if rtt_ns < 0 or sent_ns > now or replied_ns < received_ns:
            return False
        offset_ns = ((received_ns - sent_ns) + (replied_ns - now)) // 2
        samples = self._samples
        while samples and samples[-1].rtt_ns >= rtt_ns:
            samples.pop()
        samples.append(_Sample(now, rtt_ns, offset_ns))
        while samples[0].at_ns < now - self._window_ns:
            samples.popleft()
        self.num_samples += 1
        self.rtt_ns, self.offset_ns = samples[0].rtt_ns, samples[0].offset_ns
        return True

    def to_worker_ns(self, gateway_ns: int) -> int:
        """An instant of ours on the worker's clock; saturates at 0 and at "never"."""
        if gateway_ns >= MAX_INSTANT_NS:
            return MAX_INSTANT_NS
        worker_ns = gateway_ns + self.offset_ns
        if worker_ns > MAX_INSTANT_NS:
            return MAX_INSTANT_NS
        return worker_ns if worker_ns > 0 else 0

    def to_gateway_ns(self, worker_ns: int, now: int) -> int:
        """An instant of the worker's on our clock; what it reports cannot be later than now."""
        gateway_ns = worker_ns - self.offset_ns
        if gateway_ns > now:
            return now
        return gateway_ns if gateway_ns > 0 else 0

    def action_for_worker(self, action: Action) -> Action:
        """The action with its window on the worker's clock."""
        earliest_ns = self.to_worker_ns(action.earliest_ns)
        latest_ns = self.to_worker_ns(action.latest_ns)
        match action:
            case Infer():
                return Infer(
                    action.action_id,
                    action.model,
                    action.batch_size,
                    action.request_ids,
                    action.rows,
                    earliest_ns,
                    latest_ns,
                    action.expected_duration_ns,
                )
            case LoadWeights():
                return LoadWeights(
                    action.action_id,
                    action.model,
                    action.num_pages,
                    earliest_ns,
                    latest_ns,
                    action.expected_duration_ns,
                )
            case EvictWeights():
                return EvictWeights(action.action_id, action.model, earliest_ns, latest_ns)
            case ReleaseModel():
                return ReleaseModel(action.action_id, action.model, earliest_ns, latest_ns)
            case _:
                assert_never(action)

    def result_for_gateway(self, result: Result, now: int) -> Result:
        """The result with its instants on the gateway's clock."""
        # 0 stands for an instant that never was, here as in NO_SPAN.
        received_ns = result.received_ns and self.to_gateway_ns(result.received_ns, now)
        match result:
            case InferResult():
                return InferResult(
                    result.action_id,
                    result.code,
                    result.message,
                    received_ns,
                    self._span_for_gateway(result.input, now),
                    self._span_for_gateway(result.exec, now),
                    self._span_for_gateway(result.output, now),
                    result.clock_mhz,
                    result.power_mw,
                )
            case LoadResult():
                return LoadResult(
                    result.action_id,
                    result.code,
                    result.message,
                    received_ns,
                    self._span_for_gateway(result.load, now),
                )
            case EvictResult():
                return EvictResult(result.action_id, result.code, result.message, received_ns)
            case ReleaseResult():
                return ReleaseResult(
                    result.action_id, result.code, result.message, received_ns, result.host_bytes
                )
            case _:
                assert_never(result)

    def _span_for_gateway(self, span: Span, now: int) -> Span:
        if span == NO_SPAN:
            return NO_SPAN
        return Span(
            self.to_gateway_ns(span.begin_ns, now),
            self.to_gateway_ns(span.end_ns, now),
            span.duration_ns,
        )
