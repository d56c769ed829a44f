"""The true optimum of small instances, to check bounds against.

Owns one integer programme, solved by HiGHS. Unlike the bound it knows nothing of classes or
consecutive requests: any requests of a model may share a batch. Its size grows with requests x
starts x batch sizes, so that a hundred requests are about what it can do in seconds.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp  # type: ignore[import-untyped]
from scipy.sparse import coo_array  # type: ignore[import-untyped]

from loadtest.bound.instance import Instance


class NotSolved(Exception):
    """HiGHS gave up: too large, or out of time."""


def most_served(instance: Instance, *, grid_ns: int, limit_s: float = 60.0) -> int:
    """The most requests that can be served in time, exactly.

    All times must be multiples of `grid_ns`, else ValueError: then some optimal schedule starts
    everything at such instants only, as moving every start as early as it will go ends at releases
    and ends of others. On identical devices "no more than G at once" is all there is to say, since
    batches in time can be dealt out to G devices whenever no instant has more; with weights, one
    device only (ValueError). Outages are not supported (ValueError). Raises NotSolved.

    Variables: for each model, size n and start s, how many such batches run (an integer), and which
    requests are in them (at most n each; a request counts at most once). With the integers given
    the rest is a transport problem, so that it needs no integrality of its own.
    """
    if instance.outages:
        raise ValueError("the exact solution knows no outages")
    if instance.weights is not None and instance.num_devices > 1:
        raise ValueError("the exact solution knows weights on one device only")
    _check_grid(instance, grid_ns)
    requests = [
        (one.model, release, deadline)
        for one in instance.classes
        for release, deadline in zip(one.release_ns, one.deadline_ns, strict=True)
    ]
    fits: defaultdict[tuple[str, int, int], list[int]] = defaultdict(list)
    for number, (model, release_ns, deadline_ns) in enumerate(requests):
        table = instance.tables[model]
        for rows in range(1, len(table)):
            for start_ns in range(release_ns, deadline_ns - table[rows] + 1, grid_ns):
                fits[model, rows, start_ns].append(number)
    programme = _Programme()
    memberships: list[list[int]] = [[] for _ in requests]
    running: defaultdict[tuple[str, int], list[int]] = defaultdict(list)  # by model and instant
    for (model, rows, start_ns), numbers in fits.items():
        if len(numbers) < rows:
            continue  # a smaller batch serves them no later
        batches = programme.variable(instance.num_devices, is_integer=True)
        members = [programme.variable(1, gain=1.0) for _ in numbers]
        for number, member in zip(numbers, members, strict=True):
            memberships[number].append(member)
        programme.at_most(0, members, (batches, -float(rows)))
        for at_ns in range(start_ns, start_ns + instance.tables[model][rows], grid_ns):
            running[model, at_ns].append(batches)
    for members in memberships:
        programme.at_most(1, members)
    by_instant: defaultdict[int, list[int]] = defaultdict(list)
    for (_, at_ns), batches_then in running.items():
        by_instant[at_ns] += batches_then
    for batches_then in by_instant.values():
        programme.at_most(instance.num_devices, batches_then)
    if instance.weights is not None and running:
        begin_ns = min(release_ns for _, release_ns, _ in requests)
        _enter_weights(programme, instance, running, begin_ns, grid_ns)
    return programme.best(limit_s)


class _Programme:
    """Variables from zero up, lines "sum at most", and a gain to maximise."""

    def __init__(self) -> None:
        self._upper: list[float] = []
        self._gains: list[float] = []
        self._integers: list[int] = []
        self._entries: list[tuple[int, int, float]] = []  # line, variable, factor
        self._limits: list[float] = []

    def variable(self, upper: float, *, is_integer: bool = False, gain: float = 0.0) -> int:
        self._upper.append(upper)
        self._gains.append(gain)
        self._integers.append(int(is_integer))
        return len(self._upper) - 1

    def at_most(self, limit: float, variables: Iterable[int], *others: tuple[int, float]) -> None:
        """The sum of these, and of others times a factor."""
        line = len(self._limits)
        self._entries += [(line, variable, 1.0) for variable in variables]
        self._entries += [(line, variable, factor) for variable, factor in others]
        self._limits.append(limit)

    def best(self, limit_s: float) -> int:
        if not any(self._gains):
            return 0
        lines, columns, factors = zip(*self._entries, strict=True)
        shape = (len(self._limits), len(self._upper))
        solved = milp(
            -np.array(self._gains),
            constraints=LinearConstraint(
                coo_array((factors, (lines, columns)), shape=shape).tocsr(),
                ub=np.array(self._limits),
            ),
            integrality=np.array(self._integers),
            bounds=Bounds(0.0, np.array(self._upper)),
            options={"time_limit": limit_s, "mip_rel_gap": 0.0},
        )
        if solved.status != 0:
            raise NotSolved(f"{shape[0]} lines, {shape[1]} variables: {solved.message}")
        return round(-float(solved.fun))


def _enter_weights(
    programme: _Programme,
    instance: Instance,
    running: dict[tuple[str, int], list[int]],
    begin_ns: int,
    grid_ns: int,
) -> None:
    """A model runs while it is resident, and is so after a LOAD, or from the beginning; LOADs take
    turns; what is resident or loading has pages.
    """
    assert instance.weights is not None
    instants = range(begin_ns, max(at_ns for _, at_ns in running) + grid_ns, grid_ns)
    copying: defaultdict[int, list[int]] = defaultdict(list)
    paged: defaultdict[int, list[tuple[int, float]]] = defaultdict(list)
    for model in {model for model, _ in running}:
        pages, load_ns = instance.weights[model]
        before: int | None = None
        ready: dict[int, int] = {}  # end of a LOAD → its variable
        for at_ns in instants:
            resident = programme.variable(1, is_integer=True)
            if before is not None:
                loaded = [(ready[at_ns], -1.0)] if at_ns in ready else []
                programme.at_most(0, [resident], (before, -1.0), *loaded)
            before = resident
            load = ready[at_ns + load_ns] = programme.variable(1, is_integer=True)
            for during_ns in range(at_ns, at_ns + load_ns, grid_ns):
                copying[during_ns].append(load)
                paged[during_ns].append((load, float(pages)))
            paged[at_ns].append((resident, float(pages)))
            programme.at_most(0, running.get((model, at_ns), ()), (resident, -1.0))
    for loads in copying.values():
        programme.at_most(1, loads)
    for held in paged.values():
        programme.at_most(instance.pages_per_device, (), *held)


def _check_grid(instance: Instance, grid_ns: int) -> None:
    loads = [] if instance.weights is None else [w.load_ns for w in instance.weights.values()]
    for one in instance.classes:
        times: Sequence[int] = [*one.release_ns, *one.deadline_ns, *instance.tables[one.model]]
        for at_ns in (*times, *loads):
            if at_ns % grid_ns:
                raise ValueError(f"{at_ns} ns of {one.model} is no multiple of {grid_ns} ns")
