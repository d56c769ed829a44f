"""Figures of merit of one run, from its tables: for the run, each stream, each model, each tenant.

Owns what each figure means. A request counts by the instant of its arrival: the window is
[begin, end), and what arrived in it counts whenever it was answered.
"""

from collections.abc import Iterator

import msgspec
import numpy as np
import numpy.typing as npt

from loadtest.results.tables import (
    CANCELLED,
    EXPIRED,
    FAILED,
    INFER,
    LOAD,
    OPEN,
    OUTCOMES,
    REJECTED,
    SERVED,
    Array,
    Mask,
    Numbers,
    Table,
    Tables,
)
from scheduler.actions import Code
from scheduler.spec import MILLISECOND_NS, SECOND_NS

MICROSECOND_NS = 1_000
# What is read here; a million requests are copied once per grouping.
_REQUEST_COLUMNS = (
    "stream", "model", "tenant", "arrival_ns", "answered_ns", "outcome", "reason", "is_good",
    "batch_rows", "is_cold",
)  # fmt: skip
_ACTION_COLUMNS = (
    "model", "kind", "code", "rows", "sent_ns", "planned_start_ns", "expected_ns", "begin_ns",
    "end_ns",
)  # fmt: skip


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of some requests. None where nothing was there to measure.

    good: served within the SLO at the client. late: served, and not good. Latencies are those of
    good requests, refusals those of rejected ones, from arrival to the answer at the client.
    Percentiles are observed values (the smallest with at least that share at or below it).
    `exec_ms_per_good` is what the exec lanes did for one good request, late and lost work
    included; it, LOADs and prediction errors are known of the run and of a model only.
    Prediction error: measured minus expected duration of an execution; completion error: its end
    minus the end that was planned when it was sent (as Clockwork, OSDI'20, section 6.5).
    """

    name: str
    requests: int
    good: int
    late: int
    rejected: int
    expired: int
    failed: int
    cancelled: int
    open: int
    goodput_per_s: float
    attainment: float | None
    latency_p50_ms: float | None
    latency_p99_ms: float | None
    latency_p999_ms: float | None
    refusal_p50_ms: float | None
    refusal_p99_ms: float | None
    mean_batch: float | None
    cold: int
    reasons: dict[str, int]
    loads_per_s: float | None = None
    exec_ms_per_good: float | None = None
    prediction_error_p1_us: float | None = None
    prediction_error_p50_us: float | None = None
    prediction_error_p99_us: float | None = None
    completion_error_p1_us: float | None = None
    completion_error_p50_us: float | None = None
    completion_error_p99_us: float | None = None


class OfBound(msgspec.Struct, frozen=True, kw_only=True):
    """How a run stands beside what no scheduler can pass (loadtest/bound), from_s to until_s.

    `share` is of the requests that could have been good at the most, None if that is none. With
    closed loops it is of `goodput_per_s`, a ceiling for the long run: a short window may pass it by
    what arrives in it and is served after. `is_whole`: the bound is of the whole measured window.
    """

    share: float | None
    goodput_per_s: float
    from_s: float
    until_s: float
    is_whole: bool


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """`run` over everything; the rest by the stream's number, the model's or the tenant's name.

    `handle_us` is wall time in `Scheduler.handle` per request, where it was measured; `of_bound` is
    there where the bound was asked for. `outliers` are durations of the whole run that were clipped
    in the scheduler's estimates, None where nobody counted.
    """

    window_begin_ns: int
    window_end_ns: int
    run: Group
    streams: dict[int, Group]
    models: dict[str, Group]
    tenants: dict[str, Group]
    handle_us: float | None = None
    of_bound: OfBound | None = None
    outliers: int | None = None


def summarise(
    tables: Tables,
    window: tuple[int, int],
    *,
    handle_wall_ns: int | None = None,
    outliers: int | None = None,
) -> Summary:
    """Figures of what arrived (for actions: was sent) in [window[0], window[1]).

    `handle_wall_ns` is the wall time spent in `Scheduler.handle` in the whole run; `outliers` is
    passed on.
    """
    begin_ns, end_ns = window
    if end_ns <= begin_ns:
        raise ValueError(f"the measured window [{begin_ns} ns, {end_ns} ns) is empty")
    seconds = (end_ns - begin_ns) / SECOND_NS
    requests = _between(tables.requests.only(*_REQUEST_COLUMNS), "arrival_ns", begin_ns, end_ns)
    actions = _between(tables.actions.only(*_ACTION_COLUMNS), "sent_ns", begin_ns, end_ns)
    by_model = dict(_parts(actions, "model"))
    nothing = actions.rows(np.zeros(len(actions), dtype=bool))
    num_all = len(tables.requests)
    return Summary(
        window_begin_ns=begin_ns,
        window_end_ns=end_ns,
        run=_group("run", requests, seconds, actions),
        streams={
            stream: _group(str(stream), part, seconds)
            for stream, part in _parts(requests, "stream")
        },
        models={
            requests.names["model"][code]: _group(
                requests.names["model"][code], part, seconds, by_model.get(code, nothing)
            )
            for code, part in _parts(requests, "model")
        },
        tenants={
            requests.names["tenant"][code]: _group(requests.names["tenant"][code], part, seconds)
            for code, part in _parts(requests, "tenant")
        },
        handle_us=(
            None
            if handle_wall_ns is None or not num_all
            else handle_wall_ns / num_all / MICROSECOND_NS
        ),
        outliers=outliers,
    )


def prediction_errors_ns(actions: Table, kind: str = INFER) -> Numbers:
    """Measured minus expected duration of every action of this kind that ran."""
    ran = _ran(actions, kind)
    return actions["end_ns"][ran] - actions["begin_ns"][ran] - actions["expected_ns"][ran]


def completion_errors_ns(actions: Table, kind: str = INFER) -> Numbers:
    """End minus planned end of every action of this kind that ran."""
    ran = _ran(actions, kind)
    planned_ns: Numbers = actions["planned_start_ns"][ran] + actions["expected_ns"][ran]
    errors: Numbers = actions["end_ns"][ran] - planned_ns
    return errors


def latencies_ns(requests: Table) -> Numbers:
    """Of good requests, from arrival to the answer at the client."""
    return _waited_ns(requests, requests["is_good"])


def percentile(values: Numbers, share: float) -> int | None:
    """The smallest observed value with at least `share` of all at or below it; None of none."""
    if not len(values):
        return None
    return int(np.quantile(values, share, method="inverted_cdf"))


def _waited_ns(requests: Table, mask: Array) -> Numbers:
    """From arrival to the answer at the client."""
    waited_ns: Numbers = requests["answered_ns"][mask] - requests["arrival_ns"][mask]
    return waited_ns


def _group(name: str, requests: Table, seconds: float, actions: Table | None = None) -> Group:
    of = {text: int(np.count_nonzero(requests.has("outcome", text))) for text in OUTCOMES}
    good = int(np.count_nonzero(requests["is_good"]))
    served = requests.has("outcome", SERVED)
    latency_ns = latencies_ns(requests)
    refusal_ns = _waited_ns(requests, requests.has("outcome", REJECTED))
    group = Group(
        name=name,
        requests=len(requests),
        good=good,
        late=of[SERVED] - good,
        rejected=of[REJECTED],
        expired=of[EXPIRED],
        failed=of[FAILED],
        cancelled=of[CANCELLED],
        open=of[OPEN],
        goodput_per_s=good / seconds,
        attainment=good / len(requests) if len(requests) else None,
        latency_p50_ms=_scaled(percentile(latency_ns, 0.5), MILLISECOND_NS),
        latency_p99_ms=_scaled(percentile(latency_ns, 0.99), MILLISECOND_NS),
        latency_p999_ms=_scaled(percentile(latency_ns, 0.999), MILLISECOND_NS),
        refusal_p50_ms=_scaled(percentile(refusal_ns, 0.5), MILLISECOND_NS),
        refusal_p99_ms=_scaled(percentile(refusal_ns, 0.99), MILLISECOND_NS),
        mean_batch=_mean_batch(requests, actions, served),
        cold=int(np.count_nonzero(requests["is_cold"])),
        reasons=_reasons(requests),
    )
    return group if actions is None else _with_actions(group, actions, seconds)


def _with_actions(group: Group, actions: Table, seconds: float) -> Group:
    infers = _ran(actions, INFER)
    exec_ns = int(np.sum(actions["end_ns"][infers] - actions["begin_ns"][infers]))
    predicted, completed = prediction_errors_ns(actions), completion_errors_ns(actions)

    def micros(values: Numbers, share: float) -> float | None:
        return _scaled(percentile(values, share), MICROSECOND_NS)

    return msgspec.structs.replace(
        group,
        loads_per_s=int(np.count_nonzero(_ran(actions, LOAD))) / seconds,
        exec_ms_per_good=exec_ns / group.good / MILLISECOND_NS if group.good else None,
        prediction_error_p1_us=micros(predicted, 0.01),
        prediction_error_p50_us=micros(predicted, 0.5),
        prediction_error_p99_us=micros(predicted, 0.99),
        completion_error_p1_us=micros(completed, 0.01),
        completion_error_p50_us=micros(completed, 0.5),
        completion_error_p99_us=micros(completed, 0.99),
    )


def _mean_batch(requests: Table, actions: Table | None, served: Mask) -> float | None:
    """Rows per execution: of those that ran, or, without actions, as its requests saw it."""
    if actions is not None:
        ran = _ran(actions, INFER)
        return float(np.mean(actions["rows"][ran])) if ran.any() else None
    if not served.any():
        return None
    # a batch of n is seen by n requests: the harmonic mean counts it once
    return float(np.count_nonzero(served) / np.sum(1.0 / requests["batch_rows"][served]))


def _reasons(requests: Table) -> dict[str, int]:
    """Why requests were not served: reason → count, most frequent first."""
    names = requests.names["reason"]
    counts = np.bincount(requests["reason"], minlength=len(names))
    found = {name: int(count) for name, count in zip(names, counts, strict=True) if name and count}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _ran(actions: Table, kind: str) -> Mask:
    """Where an action of this kind ran to its end."""
    return actions.has("kind", kind) & actions.has("code", Code.OK.name)


def _between(table: Table, column: str, begin_ns: int, end_ns: int) -> Table:
    values = table[column]
    return table.rows((values >= begin_ns) & (values < end_ns))


def _parts(table: Table, column: str) -> Iterator[tuple[int, Table]]:
    """(code or number, its rows), ascending; one copy at a time."""
    codes = table[column]
    order: Array = np.argsort(codes, kind="stable")
    values, starts = np.unique(codes[order], return_index=True)
    groups: list[npt.NDArray[np.intp]] = np.split(order, starts[1:]) if len(codes) else []
    for value, group in zip(values, groups, strict=True):
        yield int(value), table.rows(group)


def _scaled(value: int | None, unit: int) -> float | None:
    return None if value is None else value / unit
