"""What leader, followers and the command say to each other, as JSON over HTTP.

Owns the words. Times are seconds since 1970 by the leader's clock; nobody else's is compared.
"""

from typing import Literal

import msgspec

from loadtest.analysis.cell import Cell

State = Literal["waiting", "running", "done", "partial", "failed", "cancelled"]
OPEN_STATES: tuple[State, ...] = ("waiting", "running")
ENDED_STATES: tuple[State, ...] = ("done", "partial", "failed", "cancelled")

MAX_YAML_BYTES = 1 << 20
MAX_NAME_CHARACTERS = 100

Labels = dict[str, str]


class Submission(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job as it is handed in. `on` are labels that a follower must have. `estimated_s` is what
    the spec says; the leader corrects it by what earlier jobs took.
    """

    name: str
    spec: str  # the YAML file
    submitter: str = ""
    on: Labels = {}
    estimated_s: float | None = None

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > MAX_NAME_CHARACTERS:
            raise ValueError(f"a name has 1 to {MAX_NAME_CHARACTERS} characters")
        if not self.spec.strip() or len(self.spec) > MAX_YAML_BYTES:
            raise ValueError(f"a spec has 1 to {MAX_YAML_BYTES:,} characters")
        if self.estimated_s is not None and not 0 < self.estimated_s < 10**7:
            raise ValueError(f"estimated_s is above 0 and below 10^7, not {self.estimated_s:g}")


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job as the leader knows it. `follower` runs it, or will."""

    job_id: str
    number: int
    name: str
    submitter: str
    on: Labels
    state: State
    estimated_s: float
    submitted_s: float
    started_s: float | None = None
    ended_s: float | None = None
    follower: str | None = None
    attempts: int = 0
    message: str = ""
    num_rows: int = 0


class Beat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A follower says that it is there. `instance` tells two of one name apart; `is_idle`: nobody
    else uses the host; `lease` is of the job it runs, if any.
    """

    instance: str
    labels: Labels = {}
    is_idle: bool = True
    busy: float = 0.0  # share of the host's CPUs that others use
    lease: str | None = None


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """What to run. Whoever holds the lease may end the job; a lost follower's is void."""

    job_id: str
    lease: str
    name: str
    spec: str
    estimated_s: float


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a beat: something to run, or to stop what runs (its lease is void)."""

    run: Assignment | None = None
    stop: bool = False
    beat_in_s: float


class Rows(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Results, as a driver has kept them."""

    lease: str
    rows: list[Cell]


class End(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`lost`: it was not run to an end, through no fault of the job; somebody runs it again."""

    lease: str
    state: Literal["done", "partial", "failed", "lost"]
    message: str = ""


class FollowerFacts(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    labels: Labels
    is_idle: bool
    busy: float
    seen_s: float
    is_alive: bool
    backlog_s: float
    runs: str | None  # a job's id


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    now_s: float
    jobs: list[Job]
    followers: list[FollowerFacts]
