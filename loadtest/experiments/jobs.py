"""What is to be done, and what comes of it: jobs and records, and how jobs are made of scenarios.

A job is one run, one bound or one measurement of cost; it is done in a process of its own. A record
is what the report is written from, and is kept as a file, so that a page can be written again
without playing anything.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from importlib import resources
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from loadtest.bound.of_case import MAX_REQUESTS
from loadtest.results import Group
from loadtest.scenario import Case, Value, load
from loadtest.scenario_setup import Setup

if TYPE_CHECKING:
    from loadtest.experiments.page import Section
    from loadtest.experiments.records import Records
    from loadtest.simulate import Run

# What is left of the measured part of a run with --quick, and the least of it.
QUICK_SHARE = 0.15
QUICK_LEAST_S = 1.0

Kind = Literal["run", "bound", "cost"]


class Length(Enum):
    """How long the runs are: just to see that all works, as the scenarios say, as the papers."""

    QUICK = "quick"
    DEFAULT = "default"
    FULL = "full"


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to be done. `is_bounded`: a run that is compared with the bound of its case."""

    experiment: str
    case: Case
    kind: Kind = "run"
    is_bounded: bool = False
    # of a bound: where its window begins (None: at the end of the warm-up), and the most it holds
    from_s: float | None = None
    max_requests: int = MAX_REQUESTS

    @property
    def name(self) -> str:
        where = "" if self.from_s is None else f" from {self.from_s:g} s"
        return f"{self.kind} {self.case.scenario} {self.case.name}{where}"

    @property
    def stem(self) -> str:
        """Of its record's file; another case, length or kind is another file."""
        content = msgspec.json.encode(self, order="sorted")
        return f"{self.kind}-{self.case.scenario}-{hashlib.sha256(content).hexdigest()[:16]}"


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What an experiment takes of a run beside its summary. Pictures are PNG files by name."""

    figures: dict[str, float] = {}
    series: dict[str, list[float]] = {}
    words: dict[str, int] = {}
    pictures: dict[str, bytes] = {}


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a job. Without `group` where nothing was collected."""

    experiment: str
    kind: Kind
    scenario: str
    policy: str
    seed: int
    values: dict[str, Value]
    warmup_s: float
    duration_s: float
    core: str
    wall_s: float
    cpu_s: float
    num_requests: int = 0
    num_events: int = 0
    handle_ns: int = 0
    group: Group | None = None
    streams: dict[int, Group] = {}
    anomalies: dict[str, int] = {}
    figures: dict[str, float] = {}
    series: dict[str, list[float]] = {}
    words: dict[str, int] = {}
    pictures: tuple[str, ...] = ()


class Experiment(NamedTuple):
    """One section of the report.

    `jobs` says what is played, `more_jobs` what the first records ask for (a sweep's best point);
    `measure` looks at a run's tables where its summary is not enough.
    """

    number: str
    title: str
    jobs: Callable[[Length], list[Job]]
    write: Callable[["Records", "Section"], None]
    more_jobs: Callable[["Records", Length], list[Job]] | None = None
    measure: Callable[["Run"], Measured] | None = None


def scenario_path(name: str) -> str:
    return str(resources.files("loadtest").joinpath("scenarios", f"{name}.yaml"))


def cases(
    name: str,
    length: Length,
    *,
    policies: Sequence[str] = (),
    seeds: Sequence[int] = (),
    variables: Mapping[str, Sequence[Value]] | None = None,
) -> list[Case]:
    """The runs of a scenario at this length; a quick one has one seed and little time."""
    scenario = load(scenario_path(name))
    chosen_seeds = tuple(seeds) or scenario.seeds
    if length is Length.QUICK:
        chosen_seeds = chosen_seeds[:1]
    found = scenario.expand(
        policies=policies,
        seeds=chosen_seeds,
        variables=variables,
        is_full=length is Length.FULL,
    )
    return [shortened(case) for case in found] if length is Length.QUICK else found


def shortened(case: Case) -> Case:
    """The same run with a fraction of its measured time, and no longer a warm-up than that.

    One with faults stays as it is: they happen at instants of their own.
    """
    if case.setup.faults:
        return case
    measured_s = case.duration_s - case.setup.warmup_s
    measured_s = max(QUICK_SHARE * measured_s, min(QUICK_LEAST_S, measured_s))
    warmup_s = min(case.setup.warmup_s, measured_s)
    setup: Setup = msgspec.structs.replace(
        case.setup, warmup_s=warmup_s, duration_s=warmup_s + measured_s, full_duration_s=None
    )
    return msgspec.structs.replace(case, setup=setup, duration_s=warmup_s + measured_s)


def runs(
    experiment: str, played: Iterable[Case], *, is_bounded: bool = False, kind: Kind = "run"
) -> list[Job]:
    return [
        Job(experiment=experiment, case=case, kind=kind, is_bounded=is_bounded) for case in played
    ]


def bounds(
    experiment: str,
    played: Iterable[Case],
    *,
    without: Sequence[str] = (),
    from_s: Sequence[float | None] = (None,),
    max_requests: int = MAX_REQUESTS,
) -> list[Job]:
    """A bound for each setting of these runs and each window, of the first seed that each has.

    Policies do not matter to a bound, nor do the variables in `without`.
    """
    found: dict[tuple[object, ...], Job] = {}
    for case in played:
        values = {name: value for name, value in case.values.items() if name not in without}
        bare = msgspec.structs.replace(case, policy="", values=values)
        for at_s in from_s:
            job = Job(
                experiment=experiment,
                case=bare,
                kind="bound",
                from_s=at_s,
                max_requests=max_requests,
            )
            found.setdefault((case.scenario, *values.items(), at_s), job)
    return list(found.values())
