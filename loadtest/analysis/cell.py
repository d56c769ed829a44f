"""What analysis knows about one measured cell: one configuration under one workload, once.

It is the row that a driver writes, a database keeps and every page and ranking reads. Durations are
milliseconds as in HTTP, rates are per second.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from statistics import fmean

import msgspec

from loadtest.analysis.prices import Cost, Prices
from loadtest.results.intervals import interval

# Below as many repeats nothing is said about how sure a mean is.
MIN_FOR_INTERVAL = 3

# A database's column has as many; a longer key ends in its hash.
MOST_KEY_CHARACTERS = 700

# The workload, apart from the configuration that was under it.
Setting = tuple[str, float, float, str]


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """`latency` is the distribution of what was served, from the scheduled arrival: milliseconds
    and how many took at most so long, ascending. `stages` are mean milliseconds, in their order.
    `rate_per_s` is what was offered; 0 for a closed loop. What was offered at once, a mix of models
    or of SLOs, are rows of one `point`: server_cpu_s and server_rss_bytes are of all of them.
    `failed` is every other end than an answer or a refusal: errors, answers never got, wrong
    outputs; `errors` says which. `histogram` and `refusal_histogram` are HDR histograms in
    microseconds, as the library hdrhistogram encodes them; the former has late answers, too.
    """

    job: str
    run_id: str
    repeat: int
    seed: int
    started_at: str
    model: str
    config: tuple[tuple[str, str], ...]
    arrivals: str
    rate_per_s: float
    slo_ms: float
    duration_s: float
    sent: int
    good: int
    late: int
    refused: int
    failed: int
    device: str = "cpu"
    devices: int = 1
    batch: int = 1
    latency: tuple[tuple[float, int], ...] = ()
    p50_ms: float | None = None
    p99_ms: float | None = None
    p999_ms: float | None = None
    refusal_p99_ms: float | None = None
    stages: tuple[tuple[str, float], ...] = ()
    cold_start_ms: float | None = None
    server_cpu_s: float | None = None
    server_rss_bytes: int | None = None
    energy_j: float | None = None
    busy: float | None = None
    driver_error_p99_ms: float | None = None
    prediction_error_p99_ms: float | None = None
    partial: str = ""  # why it is not whole, or nothing
    errors: tuple[tuple[str, int], ...] = ()
    model_path: str = ""
    model_hash: str = ""  # SHA-256 of the file
    machine: str = ""
    commit: str = ""
    point: str = ""
    job_hash: str = ""  # SHA-256 of the job's file
    ended_at: str = ""
    warm_up_s: float = 0.0
    slo_sent_ms: float | None = None  # what is left of the SLO for the server
    late_p50_ms: float | None = None  # of late answers, by how much
    refusal_p50_ms: float | None = None
    driver_error_max_ms: float | None = None
    driver_ceiling_per_s: float | None = None
    prediction_error_p50_ms: float | None = None
    histogram: str = ""
    refusal_histogram: str = ""
    environment: dict[str, str] = {}  # CPUs, kernel, versions, load: what a figure depends on

    @property
    def goodput_per_s(self) -> float:
        return self.good / self.duration_s if self.duration_s > 0 else 0.0

    @property
    def attainment(self) -> float:
        """Of everything that was sent, the share that was served in time."""
        return self.good / self.sent if self.sent else 0.0

    @property
    def config_name(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.config)

    @property
    def setting(self) -> Setting:
        return (self.model, self.rate_per_s, self.slo_ms, self.arrivals)

    def used(self) -> float:
        """The mean share of its devices that worked: as measured, else CPU time, else all of it."""
        if self.busy is not None:
            return self.busy
        if self.server_cpu_s is not None and self.device.startswith("cpu") and self.duration_s > 0:
            return min(1.0, self.server_cpu_s / self.duration_s / self.devices)
        return 1.0

    def cost(self, prices: Prices) -> Cost | None:
        return prices.cost(
            self.device,
            devices=self.devices,
            goodput_per_s=self.goodput_per_s,
            busy=self.used(),
            energy_j_per_s=None if self.energy_j is None else self.energy_j / self.duration_s,
        )


def key_of(cell: Cell) -> str:
    """The same for the same cell of the same run, whoever measured it."""
    key = json.dumps(
        [cell.run_id, *cell.setting, cell.config, cell.batch, cell.repeat], separators=(",", ":")
    )
    if len(key) <= MOST_KEY_CHARACTERS:
        return key
    digest = hashlib.sha256(key.encode()).hexdigest()
    return key[: MOST_KEY_CHARACTERS - len(digest)] + digest


def row_of(cell: Cell) -> bytes:
    """A cell as one line of JSON, with its key."""
    return msgspec.json.encode({"key": key_of(cell), **msgspec.to_builtins(cell)})


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """The repeats of one configuration under one workload. Partial ones count only if all are."""

    cells: tuple[Cell, ...]

    @property
    def first(self) -> Cell:
        return self.cells[0]

    @property
    def is_partial(self) -> bool:
        return any(cell.partial for cell in self.cells)

    def mean(self, values: Iterable[float | None]) -> float | None:
        """Of the repeats that know; None if none does."""
        known = [value for value in values if value is not None]
        return fmean(known) if known else None

    @property
    def goodput_per_s(self) -> float:
        return fmean(cell.goodput_per_s for cell in self.cells)

    @property
    def attainment(self) -> float:
        return fmean(cell.attainment for cell in self.cells)

    def half_width(self, values: Sequence[float]) -> float | None:
        """Half of a 95 % interval over the repeats; None for too few."""
        return interval(values).half_width if len(values) >= MIN_FOR_INTERVAL else None


def without_common(
    cells: Sequence[Cell],
) -> tuple[list[Cell], tuple[tuple[str, str], ...]]:
    """Cells whose configurations say only in what they differ, and what all of them share: a name
    of ten words of which nine are always the same tells nobody anything. The machine and the commit
    are words of it, too: what was measured on two machines is no repeat.
    """
    if not cells:
        return [], ()
    configs = [_whole_config(cell) for cell in cells]
    shared = set(configs[0]).intersection(*configs)
    own = [
        msgspec.structs.replace(cell, config=tuple(item for item in config if item not in shared))
        for cell, config in zip(cells, configs, strict=True)
    ]
    return own, tuple(item for item in configs[0] if item in shared)


def _whole_config(cell: Cell) -> tuple[tuple[str, str], ...]:
    facts = (("machine", cell.machine), ("commit", cell.commit))
    return (*cell.config, *((name, value) for name, value in facts if value))


def lines_of(cells: Iterable[Cell]) -> list[Line]:
    """Repeats put together. A repeat that was cut short is left out where there is a whole one."""

    def key(cell: Cell) -> tuple[Setting, tuple[tuple[str, str], ...], int]:
        return cell.setting, cell.config, cell.batch

    lines = []
    for _, group in groupby(sorted(cells, key=key), key):
        repeats = sorted(group, key=lambda cell: (cell.run_id, cell.repeat))
        whole = [cell for cell in repeats if not cell.partial]
        lines.append(Line(cells=tuple(whole or repeats)))
    return lines
