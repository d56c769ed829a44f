"""What a run's shots amount to: goodput, share on time, latencies, refusals, wrong outputs.

Owns the definitions. On time: a correct 200 whose last byte came within the SLO of its *scheduled*
send. Late: a 200 after that. A refusal: an honest no (refusals.py); a miss the server admits to:
504.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from loadtest.http1 import Shot
from loadtest.messages import Answer, Floats, ReadAnswer, reason_of
from loadtest.refusals import is_refusal
from scheduler.spec import MILLISECOND_NS, SECOND_NS

# Batches and paged weights sum in another order than the reference did; README's own tolerance.
RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = 1e-4, 1e-5


class Score(msgspec.Struct, kw_only=True):
    """Of one stream, or of several together. Times in milliseconds, by the client's clock.

    `span_s` is how long the run took: to its planned end, or to the last answer on time.

    `server_late` counts 200s that came after the SLO by the server's own account.
    """

    sent: int
    span_s: float
    on_time: int
    late: int
    refused: int
    expired: int
    no_answer: int
    other: int
    wrong: int
    server_late: int
    p50_ms: float | None
    p99_ms: float | None
    refusal_p50_ms: float | None
    refusal_p99_ms: float | None
    send_lag_p99_ms: float
    send_lag_max_ms: float
    reasons: dict[str, int]

    @property
    def answered(self) -> int:
        """200s, right or wrong, on time or late."""
        return self.sent - self.refused - self.expired - self.no_answer - self.other

    @property
    def goodput_per_s(self) -> float:
        return self.on_time / self.span_s

    @property
    def on_time_share(self) -> float:
        return self.on_time / self.sent if self.sent else 0.0

    @property
    def late_share(self) -> float:
        """Late 200s among all 200s."""
        return self.late / self.answered if self.answered else 0.0


def score(
    shots: Sequence[Shot],
    *,
    slo_ms: Sequence[float],
    expected: Sequence[Sequence[Floats]],
    read: ReadAnswer,
    duration_s: float,
    start_ns: int,
    is_right: Callable[[Floats, Floats], bool] | None = None,
) -> Score:
    """`slo_ms[stream]`; `expected[stream][variant]` is the right output, `is_right` says how near
    an output must be to it (`is_close`).

    `shots` may be those of some streams only; `duration_s` is the planned length of the run.
    """
    is_right = is_right or is_close
    latencies: list[float] = []
    refusals: list[float] = []
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    last_ns = 0
    for shot in shots:
        latency_ms = (shot.done_ns - shot.at_ns) / MILLISECOND_NS
        if shot.status == 200:
            answer = read_or_none(shot, read)
            variants = expected[shot.stream]
            right = variants[shot.variant]
            is_good = answer is not None and is_right(answer.output, right)
            counts["wrong"] += not is_good
            counts["on_time"] += is_good and latency_ms <= slo_ms[shot.stream]
            if latency_ms <= slo_ms[shot.stream]:
                last_ns = max(last_ns, shot.done_ns)
            counts["late"] += latency_ms > slo_ms[shot.stream]
            if answer is not None and answer.account is not None:
                counts["server_late"] += answer.account.slo.latency_ms > slo_ms[shot.stream]
            latencies.append(latency_ms)
            continue
        reasons[_what_happened(shot)] += 1
        if is_refusal(shot.status, reason_of(shot)):
            counts["refused"] += 1
            refusals.append(latency_ms)
        elif shot.status == 504:
            counts["expired"] += 1
        else:
            counts["no_answer" if shot.status == 0 else "other"] += 1
    lags = [max(0, shot.sent_ns - shot.at_ns) / MILLISECOND_NS for shot in shots if shot.sent_ns]
    return Score(
        sent=len(shots),
        span_s=max(duration_s, (last_ns - start_ns) / SECOND_NS),
        on_time=counts["on_time"],
        late=counts["late"],
        refused=counts["refused"],
        expired=counts["expired"],
        no_answer=counts["no_answer"],
        other=counts["other"],
        wrong=counts["wrong"],
        server_late=counts["server_late"],
        p50_ms=percentile(latencies, 50),
        p99_ms=percentile(latencies, 99),
        refusal_p50_ms=percentile(refusals, 50),
        refusal_p99_ms=percentile(refusals, 99),
        send_lag_p99_ms=percentile(lags, 99) or 0.0,
        send_lag_max_ms=max(lags, default=0.0),
        reasons=dict(reasons),
    )


def percentile(values: Sequence[float], rank: float) -> float | None:
    return float(np.percentile(values, rank)) if values else None


def is_close(output: Floats, expected: Floats) -> bool:
    return output.size == expected.size and bool(
        np.allclose(output, expected.ravel(), rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE)
    )


def read_or_none(shot: Shot, read: ReadAnswer) -> Answer | None:
    """An unreadable 200 is a wrong one."""
    try:
        return read(shot)
    except (msgspec.MsgspecError, ValueError):
        return None


def _what_happened(shot: Shot) -> str:
    if shot.status == 0:
        return shot.trouble or "no answer"
    return f"{shot.status} {reason_of(shot)}".rstrip()
