"""What goes to the live page: a snapshot of everything, then frames of what changed since.

It owns the form of both, which openapi.yaml describes. Every figure is absolute, never a
difference, so that a reader may lose frames and go on with a snapshot. Models and devices are named
by their places in the lists of the snapshot with the same `epoch`. Instants are µs since the
gateway was made.
"""

import msgspec


class LiveModel(msgspec.Struct, frozen=True, kw_only=True):
    """What does not change about a model while it is served. `exec_ms` is of its first shape class,
    by rows of the batch.
    """

    name: str
    version: str
    pages: int
    weights_bytes: int
    default_slo_ms: float
    batch_sizes: tuple[int, ...]
    load_ms: float
    exec_ms: dict[str, float]
    shapes: int
    pinned: bool
    unavailable_reason: str | None


class LiveDevice(msgspec.Struct, frozen=True, kw_only=True):
    """`holds` has three numbers for each model with pages here: its index, the state of its
    weights (0 absent, 1 loading, 2 resident, 3 evicting), its pages.
    """

    worker: str
    kind: str
    page_bytes: int
    total_pages: int
    shares_exec_core: bool
    holds: list[int]


class LiveCounts(msgspec.Struct, frozen=True, array_like=True):
    """Of one model since the gateway started. `missed` counts requests by "outcome:reason", with
    the outcomes rejected, expired and failed.
    """

    model: int
    served: int
    cancelled: int
    invalid: int
    queued: int
    latency_ms: int  # of all served, in sum
    cold_starts: int
    loads: int
    evictions: int
    missed: dict[str, int]


class LiveFigures(msgspec.Struct, frozen=True, array_like=True):
    """Of one device now. None for what its worker does not tell."""

    device: int
    pages_free: int
    outstanding: int
    schedule_ahead_us: int
    gap_rate: float
    rtt_us: int | None = None
    utilisation_percent: int | None = None
    power_mw: int | None = None
    temperature_c: int | None = None


class LiveBar(msgspec.Struct, frozen=True, array_like=True):
    """What a lane (0 exec, 1 load) did. `model` is -1 where it stands for several."""

    device: int
    lane: int
    model: int
    begin_us: int
    end_us: int
    busy_us: int
    rows: int
    actions: int
    ok: bool


class LiveRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One of the requests with the least slack: a line of `GET /requests`, and how it was executed.
    `slack_ms` is None where a refusal names no prediction.
    """

    request_id: str
    model: str
    tenant: str | None
    outcome: str
    reason: str | None
    detail: str | None
    worker: str | None
    batch_rows: int | None
    cold_start: bool
    slo_ms: float
    latency_ms: float
    slack_ms: float | None
    at_us: int


class LiveScaling(msgspec.Struct, frozen=True, kw_only=True):
    """Advice on how many devices there should be (docs/metrics.md, Autoscaling). `load`, `forecast`
    and `error` are in devices kept busy: now, foreseen, and what forecasts were wrong by lately.
    """

    devices: int  # here, and serving
    recommended: int
    load: float
    forecast: float
    error: float | None  # None before the first forecast was due


class LiveFrame(msgspec.Struct, frozen=True, kw_only=True):
    """What changed since the frame before. `epoch` is that of the snapshot whose indexes it uses;
    `holds` has four numbers for each change: device, model, state of the weights, pages.
    """

    epoch: int
    seq: int
    at_us: int
    counts: list[LiveCounts]
    figures: list[LiveFigures]
    bars: list[LiveBar]
    holds: list[int]
    worst: list[LiveRequest]
    scaling: LiveScaling | None  # None before the first window is whole
    unnamed: dict[str, int]  # answers to requests that named no model that is served


class LiveSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything, but for what lanes did. Workers in `lost` were here once and are not now; `worst`
    are of the last minute, as far as requests are kept.
    """

    epoch: int
    seq: int
    at_us: int
    version: str
    interval_ms: float
    phase: str  # of the gateway's life
    clients_own: list[str]  # reasons after which no promise counts as broken
    remedies: dict[str, str]  # by reason: what helps
    models: list[LiveModel]
    devices: list[LiveDevice]
    lost: list[str]
    counts: list[LiveCounts]
    figures: list[LiveFigures]
    worst: list[LiveRequest]
    scaling: LiveScaling | None
    unnamed: dict[str, int]
