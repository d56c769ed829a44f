"""The true optimum of small instances, to check bounds against.

Owns one integer programme, solved by HiGHS. Unlike the bound it knows nothing of classes or
consecutive requests: any requests of a model may share a batch. Its size grows with requests x
starts x batch sizes, so that a hundred requests are about what it can do in seconds.
"""

from collections import defaultdict

import numpy as np
from scipy.optimize import (  # type: ignore[import-untyped]
    Bounds,
    LinearConstraint,
    milp,
)
from scipy.sparse import coo_array  # type: ignore[import-untyped]

from loadtest.bound.instance import Instance


class NotSolved(Exception):
    """HiGHS gave up: too large, or out of time."""


def most_served(instance: Instance, *, grid_ns: int, limit_s: float = 60.0) -> int:
    """The most requests that can be served in time, exactly.

    All times must be multiples of `grid_ns`, else ValueError: then some optimal schedule starts
    batches at such instants only, as moving every start as early as it will go ends at releases
    and ends of others. On identical devices "no more than G at once" is all there is to say, since
    batches in time can be dealt out to G devices whenever no instant has more. Outages are not
    supported. Raises NotSolved.

    Variables: for each model, size n and start s, how many such batches run (an integer), and which
    requests are in them (at most n each; a request counts at most once). With the integers given
    the rest is a transport problem, so that it needs no integrality of its own.
    """
    if instance.outages:
        raise ValueError("the exact solution knows no outages")
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
    batches = [key for key, numbers in fits.items() if len(numbers) >= key[1]]
    if not batches:
        return 0
    # Lines of the programme: an entry is (line, variable, factor).
    entries: list[tuple[int, int, float]] = []
    upper: list[float] = []
    variables = len(batches)
    for batch, key in enumerate(batches):
        entries.append((len(upper), batch, -float(key[1])))  # members <= rows x batches
        for _ in fits[key]:
            entries.append((len(upper), variables, 1.0))
            variables += 1
        upper.append(0.0)
    member = len(batches)
    for key in batches:
        for number in fits[key]:
            entries.append((len(upper) + number, member, 1.0))  # once each
            member += 1
    upper += [1.0] * len(requests)
    running: defaultdict[int, list[int]] = defaultdict(list)
    for batch, (model, rows, start_ns) in enumerate(batches):
        for at_ns in range(start_ns, start_ns + instance.tables[model][rows], grid_ns):
            running[at_ns].append(batch)
    for together in running.values():
        entries += [(len(upper), batch, 1.0) for batch in together]
        upper.append(float(instance.num_devices))
    lines, columns, factors = zip(*entries, strict=True)
    is_member = np.arange(variables) >= len(batches)
    solved = milp(
        -is_member.astype(float),
        constraints=LinearConstraint(
            coo_array((factors, (lines, columns)), shape=(len(upper), variables)).tocsr(),
            ub=np.array(upper),
        ),
        integrality=(~is_member).astype(int),
        bounds=Bounds(0.0, np.where(is_member, 1.0, float(instance.num_devices))),
        options={"time_limit": limit_s, "mip_rel_gap": 0.0},
    )
    if solved.status != 0:
        raise NotSolved(f"{len(requests)} requests, {variables} variables: {solved.message}")
    return round(-float(solved.fun))


def _check_grid(instance: Instance, grid_ns: int) -> None:
    for one in instance.classes:
        for at_ns in (*one.release_ns, *one.deadline_ns, *instance.tables[one.model]):
            if at_ns % grid_ns:
                raise ValueError(f"{at_ns} ns of {one.model} is no multiple of {grid_ns} ns")
