"""How a run stands beside what no scheduler can pass: `remontoir simulate --bound`.

Owns which requests of a run are held against the bound. The bound itself is that of `remontoir
bound`, loadtest/bound/of_case.py.
"""

import numpy as np

from loadtest.bound.of_case import bound_of
from loadtest.results import OfBound
from loadtest.simulate import Run
from scheduler.spec import MILLISECOND_NS, SECOND_NS


def of_bound(run: Run) -> OfBound | None:
    """None where nothing was collected that could be held against it.

    The bound counts an open loop's requests, and those of the same window are counted here. With
    closed loops it is a rate, so that all good requests of the window are held against it.
    """
    if run.tables is None:
        return None
    bound = bound_of(run.case)
    requests = run.tables.requests
    asked_ns = requests["arrival_ns"] - round(run.case.setup.client_delay_ms * MILLISECOND_NS)
    from_ns, until_ns = round(bound.from_s * SECOND_NS), round(bound.until_s * SECOND_NS)
    # A window that is a part ends with its last request, and that one is in it.
    inside = (asked_ns >= from_ns) & (asked_ns <= until_ns)
    good = int(np.count_nonzero(inside & requests["is_good"]))
    most: float = bound.most
    if bound.closed_per_s:
        most = bound.goodput_per_s * (bound.until_s - bound.from_s)
    return OfBound(
        share=good / most if most else None,
        goodput_per_s=bound.goodput_per_s,
        from_s=bound.from_s,
        until_s=bound.until_s,
        is_whole=bound.is_whole,
    )
