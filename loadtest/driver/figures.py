"""What the shots of one group amount to: counts, histograms, stages.

Owns the definitions. Good: a right 200 whose last byte, and the client's own work after it, came
within the SLO of the *scheduled* arrival. Late: a 200 after that. Refused: an honest no
(refusals.py). Failed: the rest, wrong outputs among them. Histograms are HDR histograms (Tene) of
microseconds to three digits, which add up exactly over processes.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from loadtest.driver.inputs import Arrays
from loadtest.driver.protocols import Read, Reply, is_right
from loadtest.http1 import Shot
from loadtest.messages import reason_of
from loadtest.refusals import is_refusal
from scheduler.spec import MILLISECOND_NS

MOST_US, DIGITS = 3_600_000_000, 3  # an hour
MICROSECOND_NS = 1_000
# Points of a distribution that is drawn: ten in each halving of what is left above.
STEPS_PER_HALVING = 10


class MissingHdr(Exception):
    """Histograms need a library that is not installed. The message says how to get it."""


class Part(msgspec.Struct, kw_only=True):
    """One group's figures in one process. Histograms are encoded; `stage_ms` are sums."""

    sent: int = 0
    good: int = 0
    late: int = 0
    refused: int = 0
    failed: int = 0
    cold: int = 0
    errors: dict[str, int] = {}
    stage_ms: dict[str, float] = {}
    num_staged: int = 0
    latency: str = ""
    lateness: str = ""
    refusal: str = ""
    driver_error: str = ""
    prediction_error: str = ""


HISTOGRAMS = ("latency", "lateness", "refusal", "driver_error", "prediction_error")
COUNTS = ("sent", "good", "late", "refused", "failed", "cold", "num_staged")


def part_of(
    shots: Sequence[Shot],
    *,
    slo_ns: int,
    read: Read,
    expected: Sequence[Arrays],
    before_ns: Callable[[Shot], Mapping[str, int]],
    after_ns: Callable[[Shot], Mapping[str, int]],
) -> Part:
    """Shots of one group. `before_ns` and `after_ns` say how long their client's stages took."""
    made = {name: new_histogram() for name in HISTOGRAMS}
    part = Part(sent=len(shots))
    errors: Counter[str] = Counter()
    stages: dict[str, float] = defaultdict(float)
    for shot in shots:
        before = before_ns(shot)
        if shot.sent_ns:
            planned_ns = shot.at_ns + sum(before.values())
            _record(made["driver_error"], max(0, shot.sent_ns - planned_ns))
        if shot.status == 200:
            reply = read_or_none(shot, read)
            right = expected[shot.variant] if expected else None
            if reply is None or not is_right(reply.outputs, right):
                part.failed += 1
                errors["unreadable answer" if reply is None else "wrong output"] += 1
                continue
            after = after_ns(shot)
            latency_ns = shot.done_ns + sum(after.values()) - shot.at_ns
            _record(made["latency"], latency_ns)
            if latency_ns <= slo_ns:
                part.good += 1
            else:
                part.late += 1
                _record(made["lateness"], latency_ns - slo_ns)
            part.num_staged += 1
            _add_stages(stages, shot, reply, before, after)
            slo = reply.account.slo
            if slo is not None:
                part.cold += slo.cold_start
                _record(
                    made["prediction_error"],
                    round(abs(slo.predicted_ms - slo.latency_ms) * MILLISECOND_NS),
                )
        elif is_refusal(shot.status, reason_of(shot)):
            part.refused += 1
            errors[what_happened(shot)] += 1
            _record(made["refusal"], shot.done_ns - shot.at_ns - sum(before.values()))
        else:
            part.failed += 1
            errors[what_happened(shot)] += 1
    part.errors = dict(errors)
    part.stage_ms = dict(stages)
    for name, histogram in made.items():
        setattr(part, name, _encoded(histogram))
    return part


def added(parts: Sequence[Part]) -> Part:
    """One group's figures over all processes."""
    total = Part()
    errors: Counter[str] = Counter()
    stages: dict[str, float] = defaultdict(float)
    for name in COUNTS:
        setattr(total, name, sum(getattr(part, name) for part in parts))
    for name in HISTOGRAMS:
        histogram = new_histogram()
        for part in parts:
            if encoded := getattr(part, name):
                histogram.add(decoded(encoded))
        setattr(total, name, _encoded(histogram))
    for part in parts:
        errors.update(part.errors)
        for name, duration_ms in part.stage_ms.items():
            stages[name] += duration_ms
    total.errors, total.stage_ms = dict(errors), dict(stages)
    return total


def quantile_ms(encoded: str, rank: float) -> float | None:
    """`rank` 0 to 100; None of nothing."""
    if not encoded:
        return None
    value: float = decoded(encoded).get_value_at_percentile(rank)
    return value / 1000


def max_ms(encoded: str) -> float | None:
    return decoded(encoded).get_max_value() / 1000 if encoded else None


def steps_ms(encoded: str) -> tuple[tuple[float, int], ...]:
    """A distribution as (milliseconds, how many took at most so long), dense towards the tail."""
    if not encoded:
        return ()
    steps: dict[int, float] = {}
    for item in decoded(encoded).get_percentile_iterator(STEPS_PER_HALVING):
        steps[item.total_count_to_this_value] = item.value_iterated_to / 1000
    return tuple((value, count) for count, value in sorted(steps.items()))


def new_histogram() -> Any:  # hdrh.histogram.HdrHistogram, a library without types
    """Raises MissingHdr."""
    try:
        from hdrh.histogram import HdrHistogram
    except ImportError as error:
        raise MissingHdr(
            "histograms need the library hdrhistogram: pip install 'remontoir[bench]'"
        ) from error
    return HdrHistogram(1, MOST_US, DIGITS)


def decoded(encoded: str) -> Any:
    """The histogram of an encoded text. Raises MissingHdr."""
    return new_histogram().decode(encoded)


def read_or_none(shot: Shot, read: Read) -> Reply | None:
    """A 200 that cannot be read is a wrong one."""
    try:
        return read(shot)
    except (msgspec.MsgspecError, ValueError, TypeError):
        return None


def what_happened(shot: Shot) -> str:
    """An end other than a 200 in a few words, alike for ends of one kind."""
    if shot.status == 0:
        return (shot.trouble or "no answer")[:120]
    return f"{shot.status} {reason_of(shot)}".rstrip()


def _add_stages(
    stages: dict[str, float],
    shot: Shot,
    reply: Reply,
    before: Mapping[str, int],
    after: Mapping[str, int],
) -> None:
    """In their order: the client's, the server's by its own account, what is left, the client's."""
    for name, duration_ns in before.items():
        stages[name] += duration_ns / MILLISECOND_NS
    at_server_ms = (shot.done_ns - shot.sent_ns) / MILLISECOND_NS
    timing = reply.account.timing_ms
    if timing is None:
        stages["server"] += at_server_ms
    else:
        phases = msgspec.structs.asdict(timing)
        for name, duration_ms in phases.items():
            stages[name] += duration_ms
        stages["http"] += max(0.0, at_server_ms - sum(phases.values()))
    for name, duration_ns in after.items():
        stages[name] += duration_ns / MILLISECOND_NS


def _record(histogram: Any, duration_ns: int) -> None:
    histogram.record_value(min(max(1, round(duration_ns / MICROSECOND_NS)), MOST_US))


def _encoded(histogram: Any) -> str:
    if histogram.get_total_count() == 0:
        return ""
    encoded: bytes = histogram.encode()
    return encoded.decode()
