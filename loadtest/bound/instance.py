"""What a bound is computed for: requests with their windows, batch times, devices.

Owns `Instance`, the problem freed of everything that only makes serving harder: in it a request may
start once it is released, must have ended by its deadline, and a batch of n rows of a model takes a
device exactly `tables[model][n]`. Nothing is sent anywhere, and weights are always on every device,
unless their loading is asked to count. Must never know prices, or how a scheduler decides.

Durations are those of the profile. Where a scenario adds noise the bound is therefore one for
devices that always take the expected time: a run with lucky noise could pass it by as much as its
devices were faster than the profile, which over some thousand batches is far less than a percent.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import msgspec

from scheduler.spec import ModelSpec


class Asked(NamedTuple):
    """One request as far as a bound needs it; loadtest.workloads.Ask has the same first fields."""

    at_ns: int
    model: str
    slo_ns: int


class Outage(NamedTuple):
    """One device is away in [from_ns, until_ns)."""

    from_ns: int
    until_ns: int


class Weights(NamedTuple):
    """What keeping a model costs a device: pages from the start of a LOAD on, and the LOAD."""

    pages: int
    load_ns: int


class RequestClass(msgspec.Struct, frozen=True):
    """Requests of one model and one SLO in order of arrival: their windows move forward together.

    `release_ns[i]` is the earliest start of request i on a device, `deadline_ns[i]` the latest end.
    """

    model: str
    slo_ns: int
    release_ns: tuple[int, ...]
    deadline_ns: tuple[int, ...]


class Instance(msgspec.Struct, frozen=True):
    """Requests by class (those of one model side by side), batch times by model, and devices.

    `tables[model][n]` is the least time for n rows, index 0 unused, never falling. With `weights`
    (then of every model) a batch's model must be on the device, which has `pages_per_device`.
    """

    classes: tuple[RequestClass, ...]
    tables: Mapping[str, tuple[int, ...]]
    num_devices: int
    outages: tuple[Outage, ...] = ()
    weights: Mapping[str, Weights] | None = None
    pages_per_device: int = 0

    @property
    def num_requests(self) -> int:
        return sum(len(one.release_ns) for one in self.classes)


def instance_of(
    asked: Iterable[Asked],
    tables: Mapping[str, Sequence[int]],
    *,
    num_devices: int,
    before_ns: int = 0,
    after_ns: int = 0,
    outages: Iterable[Outage] = (),
    weights: Mapping[str, Weights] | None = None,
    pages_per_device: int = 0,
) -> Instance:
    """The instance of these requests.

    `before_ns` is the least time from a request's arrival to its start on a device, `after_ns` the
    least from the end there to the answer at the client: both shorten every window. Raises
    ValueError for a model without a table and for tables or counts that make no sense.
    """
    if num_devices < 1:
        raise ValueError(f"a bound needs at least one device, not {num_devices}")
    for model, table in tables.items():
        if weights is not None and (model not in weights or min(weights[model]) < 1):
            raise ValueError(f"{model} needs pages and a time to load, to count its weights")
        if len(table) < 2 or min(table[1:]) < 1 or any(a > b for a, b in pairwise(table[1:])):
            raise ValueError(f"batch times of {model} must be positive and never fall: {table}")
    windows: dict[tuple[str, int], list[int]] = {}
    for one in asked:
        if one.model not in tables:
            raise ValueError(f"a request for {one.model}, of which no batch times are known")
        windows.setdefault((one.model, one.slo_ns), []).append(one.at_ns)
    classes = []
    for (model, slo_ns), arrivals in sorted(windows.items()):
        arrivals.sort()
        classes.append(
            RequestClass(
                model,
                slo_ns,
                tuple(at_ns + before_ns for at_ns in arrivals),
                tuple(at_ns + slo_ns - after_ns for at_ns in arrivals),
            )
        )
    return Instance(
        tuple(classes),
        {model: tuple(table) for model, table in tables.items()},
        num_devices,
        tuple(outages),
        weights,
        pages_per_device,
    )


def batch_times(spec: ModelSpec) -> tuple[int, ...]:
    """Least nanoseconds for 1 … max rows (index 0 unused), by the profile's first shape class.

    As workers do it: n rows run at a compiled size that holds them (any size where the engine runs
    exact batches), and a size between measured ones takes what the line that joins them says. A
    larger size is taken where the profile says it is faster, so that the times never fall.
    """
    known = sorted(spec.profile.shapes[0].exec_ns.items())
    sizes = range(1, spec.max_batch_rows + 1) if spec.runs_exact_batch else spec.batch_sizes
    times = [0] * (spec.max_batch_rows + 1)
    least_ns: int | None = None
    for rows in range(spec.max_batch_rows, 0, -1):
        if rows in sizes:
            own_ns = _on_the_line(known, rows)
            least_ns = own_ns if least_ns is None else min(least_ns, own_ns)
        assert least_ns is not None  # the largest size is compiled
        times[rows] = least_ns
    return tuple(times)


def _on_the_line(known: list[tuple[int, int]], rows: int) -> int:
    index = bisect_left(known, (rows, 0))
    if index == len(known):
        return max(1, known[-1][1] * rows // known[-1][0])
    size, duration_ns = known[index]
    if size == rows or index == 0:
        return max(1, duration_ns)
    size_before, before_ns = known[index - 1]
    return max(
        1, before_ns + (duration_ns - before_ns) * (rows - size_before) // (size - size_before)
    )
