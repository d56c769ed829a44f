"""A plan: the question, the part of the workload that was played, the sizes found, and what no
simulation can say of them.

Owns the order of the work and its limits in time. Words and pictures are plan_report.py's.
"""

import math
import time
from collections.abc import Callable, Sequence

import msgspec

from loadtest.planning.evaluate import Asks, evaluator
from loadtest.planning.peak import Demand, cut, demand_of, warmup_s_of
from loadtest.planning.question import Question, pages_of_all, pages_of_largest
from loadtest.planning.size_search import Sizes, SizeSearch
from loadtest.results import versions
from loadtest.stage import check, models_of

# One gateway is one core: above this, `make bench` must say whether it keeps up (README, Measured).
GATEWAY_REQUESTS_PER_S = 8_000


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All of it, as --out writes it. Sizes of caches in `sizes` are pages of `page_mb` MiB."""

    source: str
    policy: str
    target: float
    seeds: tuple[int, ...]
    page_mb: int
    weights_mb: int  # of all models
    num_models: int
    demand: Demand | None  # None for closed loops, which are played as they are
    sizes: Sizes
    remarks: tuple[str, ...]
    cannot_know: tuple[str, ...]
    took_s: float
    versions: dict[str, str]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    max_devices: int = 64
    # Of what is played for one point: seconds of this machine, and a hundredth of attainment is
    # then 500 requests.
    max_requests: int = 50_000
    # No further point is begun after it; what is known by then is told.
    budget_s: float = 600.0
    jobs: int = 1


class Progress:
    """What a plan tells while it is made. This one is silent."""

    def looked(self, share: float) -> None:
        """So much of the workload was looked through."""

    def played(self) -> None:
        """One more run has ended."""


def make_plan(
    question: Question,
    *,
    target: float,
    seeds: Sequence[int] = (1,),
    limits: Limits | None = None,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Plan:
    """Raises ValueError for a question that cannot be played."""
    limits = limits or Limits()
    progress = progress or Progress()
    begin_s = clock()
    check(question.sized(devices=1, pages=question.devices.pages, seed=seeds[0]).setup)
    least, all_pages = pages_of_largest(question), pages_of_all(question)
    if least > question.devices.pages:
        raise ValueError(
            f"the largest model needs {least * question.devices.page_mb} MiB of weights, a device "
            f"holds {question.devices.pages * question.devices.page_mb} MiB"
        )
    demand: Demand | None = None
    asks: Asks = dict.fromkeys(seeds)
    played = question
    first = 1
    if not question.is_closed:
        demand = demand_of(question, max_requests=limits.max_requests, report=progress.looked)
        asks = {seed: list(cut(question, demand, seed)) for seed in seeds}
        played = shortened(question, demand)
        first = math.ceil(demand.played_load)
    with evaluator(played, asks, jobs=limits.jobs, on_done=progress.played) as evaluate:
        sizes = SizeSearch(
            evaluate,
            target=target,
            first=first,
            max_devices=limits.max_devices,
            full_pages=min(question.devices.pages, all_pages),
            least_pages=least,
            width=max(1, limits.jobs // len(seeds)),
            is_over=lambda: clock() - begin_s > limits.budget_s,
        ).run()
    return Plan(
        source=question.source,
        policy=question.case.policy,
        target=target,
        seeds=tuple(seeds),
        page_mb=question.devices.page_mb,
        weights_mb=all_pages * question.devices.page_mb,
        num_models=len(models_of(question.case.setup)),
        demand=demand,
        sizes=sizes,
        remarks=question.remarks,
        cannot_know=tuple(_cannot_know(question, demand, all_pages)),
        took_s=clock() - begin_s,
        versions=versions(),
    )


def shortened(question: Question, demand: Demand) -> Question:
    """A case as long as what is played; its warm-up before the part that counts."""
    warmup_s = warmup_s_of(demand)
    own_s = question.case.setup.warmup_s
    if demand.is_whole:
        warmup_s = max(warmup_s, own_s)
    duration_s = warmup_s_of(demand) + demand.end_s - demand.begin_s
    setup = msgspec.structs.replace(
        question.case.setup, warmup_s=warmup_s, duration_s=duration_s, full_duration_s=None
    )
    case = msgspec.structs.replace(question.case, setup=setup, duration_s=duration_s)
    return msgspec.structs.replace(question, case=case)


def _cannot_know(question: Question, demand: Demand | None, all_pages: int) -> list[str]:
    """Only what bears on this plan."""
    devices = question.devices
    said = []
    if demand is None:
        said.append(
            "Clients in closed loops ask again when they are answered, so a larger fleet is asked "
            "more: the whole scenario is played, however long."
        )
    if demand is not None and not demand.is_whole:
        said.append(
            f"Played is the busiest {demand.end_s - demand.begin_s:,.0f} s of "
            f"{demand.span_s:,.0f} s ({demand.num_played:,} of {demand.num_requests:,} requests, "
            f"from second {demand.begin_s:,.0f} on): the rest asks for less. "
            "--max-requests plays more."
        )
    if demand is not None and not demand.is_looked_through:
        said.append(
            f"After {demand.num_requests:,} requests, {demand.span_s:,.0f} s of "
            f"{question.case.duration_s:,.0f} s, the workload was looked through no further: what "
            "comes later is not in it. --duration-s or a smaller --scale helps."
        )
    if demand is not None:
        rate = demand.num_played / (demand.end_s - demand.begin_s)
        if rate > GATEWAY_REQUESTS_PER_S:
            said.append(
                f"{rate:,.0f} requests/s are more than one gateway's core is known to do "
                f"({GATEWAY_REQUESTS_PER_S:,}): here it takes no time. Measure it: make bench."
            )
        misses = 1 / max(1, demand.num_played)
        said.append(
            f"One request is {misses:.3%} of what was played: a target of more nines than that "
            "allows needs more requests."
        )
    if not devices.exec_noise and devices.spikes is None:
        said.append(
            "Executions take exactly what the profile says: say --exec-noise 0.05 for devices "
            "that heat, throttle or share their machine."
        )
    if not devices.shares_exec_core:
        said.append(
            "LOADs run beside executions, as on a GPU: a worker on a CPU does one after the other."
        )
    if devices.pages < all_pages:
        said.append(
            "LOADs take what the profile says, whoever else uses the bus; the host is taken to "
            "keep a copy of all weights."
        )
    said.append(
        "Tomorrow's requests may be others than the trace's, and clients that are refused may ask "
        "again: neither is in it."
    )
    said.append(
        "No device fails, restarts or is updated: for that, one more than is said "
        f"(devices hold {devices.pages * devices.page_mb:,} MiB)."
    )
    return said
