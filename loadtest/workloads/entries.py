"""Workload entries: what a scenario file or a benchmark says about one stream of requests.

Owns the words, the defaults and the checks of each kind of workload. It draws nothing and reads no
trace. Every error names the entry, the field and the value.
"""

import math
from typing import NoReturn, TypeAlias

import msgspec

from scheduler.priority import PRIORITIES, PriorityName


class SloShare(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One SLO of a mix, and the share of requests that has it (weights need not add up to 1)."""

    slo_ms: float
    weight: float


class Entry(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"
):
    """What all kinds have. `models` is a name or a glob over names, as in "resnet*".

    Requests come in [start_s, stop_s) of the run, and a stream's own time counts from start_s.
    Chance depends on the run's seed and on `name` alone (the entry's index where there is none).
    """

    models: str
    slo_ms: float | tuple[SloShare, ...]
    start_s: float = 0.0
    stop_s: float | None = None
    tenant: str = ""
    priority: PriorityName = "normal"
    name: str = ""

    def __post_init__(self) -> None:
        if not self.models:
            self.refuse("models", "names nothing")
        if isinstance(self.slo_ms, float | int):
            self.need_positive(slo_ms=self.slo_ms)
        else:
            if not self.slo_ms:
                self.refuse("slo_ms", "is an empty mix")
            for share in self.slo_ms:
                self.need_positive(slo_ms=share.slo_ms, weight=share.weight)
        self.need_not_negative(start_s=self.start_s)
        if self.stop_s is not None and not self.stop_s > self.start_s:
            self.refuse("stop_s", f"{self.stop_s} is not after start_s {self.start_s}")
        self.check()

    @property
    def priority_class(self) -> int:
        """As the scheduler has it."""
        return PRIORITIES[self.priority]

    def check(self) -> None:
        """The checks of the kind's own fields. Raises ValueError."""

    def refuse(self, field: str, why: str) -> NoReturn:
        """Raises ValueError, naming the entry and the field."""
        kind = self.__struct_config__.tag
        label = f"{kind} {self.name!r}" if self.name else f"{kind} of {self.models!r}"
        raise ValueError(f"workload entry {label}: {field} {why}")

    def need_positive(self, **fields: float) -> None:
        for field, value in fields.items():
            self.need_finite(field, value)
            if value <= 0:
                self.refuse(field, f"{value} is not positive")

    def need_not_negative(self, **fields: float) -> None:
        for field, value in fields.items():
            self.need_finite(field, value)
            if value < 0:
                self.refuse(field, f"{value} is negative")

    def need_finite(self, field: str, value: float) -> None:
        if not math.isfinite(value):
            self.refuse(field, f"{value} is no finite number")


class RatedEntry(Entry, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Kinds with a mean rate: `rate_per_s` is the total over the models.

    `skew` is the exponent of Zipf's law over them: the i-th gets a share like i ** -skew.
    """

    rate_per_s: float
    skew: float = 0.0

    def __post_init__(self) -> None:
        self.need_positive(rate_per_s=self.rate_per_s)
        self.need_not_negative(skew=self.skew)
        super().__post_init__()


class Poisson(RatedEntry, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="poisson"):
    """Independent requests at a constant mean rate."""


class Gamma(RatedEntry, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="gamma"):
    """Gamma-distributed gaps, each model for itself; `cv` above 1 is bursty, below 1 is regular."""

    cv: float

    def check(self) -> None:
        self.need_positive(cv=self.cv)


class OnOff(RatedEntry, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="on-off"):
    """Poisson bursts with silence between them, each model for itself.

    Bursts and silences last `on_s` and `off_s` in the mean, exponentially distributed. `rate_per_s`
    is the mean over both, so inside a burst it is (on_s + off_s) / on_s times that.
    """

    on_s: float
    off_s: float

    def check(self) -> None:
        self.need_positive(on_s=self.on_s, off_s=self.off_s)


class Closed(Entry, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="closed-loop"):
    """`clients` per model, each with one request open, asking again `think_ms` after any answer.

    A client stops after `requests`, where that is given. 0.3 ms is a client's own way from an
    answer to the next request; without any, a refused client would ask for ever in one instant.
    """

    clients: int = 1
    think_ms: float = 0.3
    requests: int | None = None

    def check(self) -> None:
        self.need_positive(clients=self.clients, think_ms=self.think_ms)
        if self.requests is not None:
            self.need_positive(requests=self.requests)


class Diurnal(RatedEntry, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="diurnal"):
    """Poisson with a sinusoidal rate: rate_per_s * (1 + amplitude * sin(2 pi t / period_s))."""

    amplitude: float
    period_s: float

    def check(self) -> None:
        if not 0 <= self.amplitude <= 1:
            self.refuse("amplitude", f"{self.amplitude} is not in 0 ... 1")
        self.need_positive(period_s=self.period_s)


class Spread(Entry, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="spread"):
    """Poisson at a total `rate_per_s`, evenly over the first k models, k + 1 every `step_s`.

    Clockwork (OSDI 2020), section 6.2. k begins at 1 and ends at all models.
    """

    rate_per_s: float
    step_s: float = 1.0

    def check(self) -> None:
        self.need_positive(rate_per_s=self.rate_per_s, step_s=self.step_s)


class ReplayEntry(Entry, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Kinds that replay a trace: `file` is a name in loadtest/data, or a path if it has a slash.

    The rate of the trace is multiplied by `scale`, or by whatever makes the replayed part's mean
    `scale_to_rate_per_s`; not by both.
    """

    file: str
    scale: float | None = None
    scale_to_rate_per_s: float | None = None

    def __post_init__(self) -> None:
        if self.scale is not None:
            self.need_positive(scale=self.scale)
        if self.scale_to_rate_per_s is not None:
            self.need_positive(scale_to_rate_per_s=self.scale_to_rate_per_s)
            if self.scale is not None:
                self.refuse("scale", f"{self.scale} stands beside scale_to_rate_per_s")
        super().__post_init__()


class AzureFunctions(
    ReplayEntry, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="azure-functions"
):
    """Minute counts per function as non-homogeneous Poisson processes; the trace wraps round.

    `split` 0 maps function i of F, by descending load, to model floor(i * M / F) of the shuffled M
    models, as Clockwork did; `split` n gives each function n to n + 1 models, evenly. The replay
    begins at the column after `first_minute` others. A minute of the trace lasts `minute_s` of the
    run, at the same rate, so that a short run sees more of it.
    """

    split: int = 0
    first_minute: int = 0
    minute_s: float = 60.0

    def check(self) -> None:
        self.need_not_negative(split=self.split, first_minute=self.first_minute)
        self.need_positive(minute_s=self.minute_s)


class AzureLlm(ReplayEntry, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="azure-llm"):
    """The gaps between the rows of a trace, scaled in time; each request draws its model.

    The mean rate that `scale_to_rate_per_s` speaks of is that of the whole file. It wraps round.
    """

    skew: float = 0.0

    def check(self) -> None:
        self.need_not_negative(skew=self.skew)


class ServeGen(ReplayEntry, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="servegen"):
    """Clients' windows of rate and gap distribution, sampled; each client asks one model.

    The clients, by descending load, take turns on the shuffled models. A window lasts `window_s`
    of the run (600 s in the trace) at the same rate, and the trace wraps round.
    """

    window_s: float = 600.0

    def check(self) -> None:
        self.need_positive(window_s=self.window_s)


class Requests(Entry, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="requests"):
    """Requests one by one, as they were: a CSV, or what `remontoir serve --record` wrote.

    The CSV has a column `at_s` (seconds, in order) and may have `model` and `slo_ms`. Rows of other
    models than `models` are left out; without the column each request draws one evenly. `slo_ms` is
    for rows that have none, or for all if `keeps_slos` is off. With `speed` 2 they come twice as
    fast.
    """

    file: str
    speed: float = 1.0
    keeps_slos: bool = True

    def check(self) -> None:
        self.need_positive(speed=self.speed)


OpenEntry: TypeAlias = (
    Poisson | Gamma | OnOff | Diurnal | Spread | AzureFunctions | AzureLlm | ServeGen | Requests
)
WorkloadEntry: TypeAlias = OpenEntry | Closed
