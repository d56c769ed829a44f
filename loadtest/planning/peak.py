"""The part of a workload that a plan is made for: all of it, or its busiest stretch.

Owns which requests are played. It reads the workload once or twice, and holds no more of it than
the requests that are played.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from loadtest.planning.question import Question
from loadtest.stage import models_of
from loadtest.workloads import Ask, open_loop
from scheduler.simulated_worker import exec_ns_of
from scheduler.spec import SECOND_NS, ModelSpec

Floats = npt.NDArray[np.float64]
Report = Callable[[float], None]  # hears which share of the workload was looked through

# Load is looked at in bins: shorter than this, chance would choose the peak.
BIN_S = 1.0
REPORT_EVERY = 20_000
# So many requests are looked through at the most: half a minute. The rest is left out, and said.
MAX_LOOKED = 5_000_000
# What is played before the part that counts, so that its beginning meets a fleet at work: the
# memory of the scheduler's rates is a second (scheduler/rate_meter.py).
WARMUP_S = 3.0


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What a workload asks of devices. Instants are seconds of the workload.

    `load` is in devices kept busy at the best batch that the SLO allows; `begin_s` to `end_s` is
    what is played and counted.
    """

    num_requests: int
    span_s: float
    mean_load: float
    peak_load: float  # of one bin
    begin_s: float
    end_s: float
    num_played: int
    played_load: float
    is_looked_through: bool = True  # else `span_s` is only the first part

    @property
    def is_whole(self) -> bool:
        return self.num_played >= self.num_requests


def demand_of(question: Question, *, max_requests: int, report: Report | None = None) -> Demand:
    """With the busiest stretch of no more than so many requests. Raises ValueError for a workload
    without a request.
    """
    counts, loads, seen_s = _bins(question, report)
    num_requests = int(counts.sum())
    if not num_requests:
        raise ValueError(f"{question.source}: no request in its {question.case.duration_s:g} s")
    span_s = seen_s
    first, last = _busiest(counts, loads, max_requests)
    begin_s, end_s = first * BIN_S, min(span_s, last * BIN_S)
    played = int(counts[first:last].sum())
    return Demand(
        num_requests=num_requests,
        span_s=span_s,
        mean_load=float(loads.sum()) / span_s,
        peak_load=float(loads.max()) / BIN_S,
        begin_s=begin_s,
        end_s=end_s,
        num_played=played,
        played_load=float(loads[first:last].sum()) / (end_s - begin_s),
        is_looked_through=seen_s >= question.case.duration_s,
    )


def cut(question: Question, demand: Demand, seed: int) -> Iterator[Ask]:
    """What is played of a seed's requests: the warm-up and the stretch, from instant 0 on."""
    begin_ns = round((demand.begin_s - warmup_s_of(demand)) * SECOND_NS)
    end_ns = round(demand.end_s * SECOND_NS)
    for ask in _asks(question, seed):
        if ask.at_ns >= end_ns:
            return
        if ask.at_ns >= begin_ns:
            yield ask._replace(at_ns=ask.at_ns - begin_ns)


def warmup_s_of(demand: Demand) -> float:
    """How much of what is played does not count."""
    return min(WARMUP_S, demand.begin_s)


def cheapest_ns(spec: ModelSpec, slo_ns: int) -> float:
    """Execution per request in the best batch that an SLO allows; that of one where none does."""
    exec_ns = spec.profile.shapes[0].exec_ns
    sizes: Sequence[int] = (
        range(1, spec.max_batch_rows + 1) if spec.runs_exact_batch else spec.batch_sizes
    )
    costs = [(exec_ns_of(exec_ns, size), size) for size in sizes]
    fitting = [cost / size for cost, size in costs if cost <= slo_ns]
    return min(fitting, default=float(costs[0][0]))


def _bins(question: Question, report: Report | None) -> tuple[Floats, Floats, float]:
    """Requests, and seconds of execution that they need, by second of the workload; and how many
    seconds of it were looked through.
    """
    span_s = question.case.duration_s
    num_bins = max(1, int(np.ceil(span_s / BIN_S)))
    counts, loads = np.zeros(num_bins), np.zeros(num_bins)
    specs: Mapping[str, ModelSpec] = {s.name: s for s in models_of(question.case.setup)}
    known: dict[tuple[str, int], float] = {}
    bin_ns = round(BIN_S * SECOND_NS)
    for number, ask in enumerate(_asks(question, question.case.seed)):
        key = ask.model, ask.slo_ns
        cost_s = known.get(key)
        if cost_s is None:
            cost_s = known[key] = cheapest_ns(specs[ask.model], ask.slo_ns) / SECOND_NS
        index = min(num_bins - 1, ask.at_ns // bin_ns)
        counts[index] += 1
        loads[index] += cost_s
        if number % REPORT_EVERY == 0:
            if number >= MAX_LOOKED and index > 0:
                return counts[:index], loads[:index], index * BIN_S  # without the one begun
            if report is not None:
                report(ask.at_ns / SECOND_NS / span_s)
    return counts, loads, span_s


def _busiest(counts: Floats, loads: Floats, max_requests: int) -> tuple[int, int]:
    """The longest stretch [first, last) whose busiest place has no more requests than that; of
    these places the busiest. One bin at least.
    """
    ends = np.concatenate(([0.0], np.cumsum(loads)))
    numbers = np.concatenate(([0.0], np.cumsum(counts)))

    def busiest_of(width: int) -> int:
        return int(np.argmax(ends[width:] - ends[:-width]))

    low, high = 1, len(counts)
    while low < high:
        middle = (low + high + 1) // 2
        first = busiest_of(middle)
        if numbers[first + middle] - numbers[first] <= max_requests:
            low = middle
        else:
            high = middle - 1
    first = busiest_of(low)
    return first, first + low


def _asks(question: Question, seed: int) -> Iterator[Ask]:
    setup = question.case.setup
    names = [spec.name for spec in models_of(setup)]
    return open_loop(
        setup.workload,
        duration_s=question.case.duration_s,
        seed=seed,
        models=names,
    )
