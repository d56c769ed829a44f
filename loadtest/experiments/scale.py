"""6.6: how many emulated GPUs one core of controller keeps busy; is an event's cost flat?"""

import msgspec

from loadtest.experiments.jobs import Experiment, Job, Length, cases, runs
from loadtest.experiments.page import Section
from loadtest.experiments.records import Key, Records, spread
from loadtest.experiments.tables import code
from loadtest.plots import goodput as draw
from loadtest.scenario import Case

NUMBER = "6.6"
SCENARIO = "66-scale"
NUM_DEVICES = (10, 30, 50, 100, 150)
PER_DEVICE, RATE_PER_DEVICE = 60, 1000
# Models grow at one number of devices and one rate.
MODELS_AT, NUM_MODELS = 50, (500, 3000, 9000)
# Pages of a model, and a device's beyond those of its own models; or a full device, on which
# the models that are asked for most have a copy, as on every other.
MODEL_PAGES, SPARE_PAGES, FULL_PAGES = 6, 12, 1376
REQUESTS = 20_000  # measured of each run
FLAT = 1.5
# Clockwork's controller: as published, and in a re-run on 30 cores
# (SZU-AdvTech-2023, no. 296).
PUBLISHED_PER_S, RERUN_PER_S = 103_000, 68_171


def jobs(length: Length) -> list[Job]:
    chosen = NUM_DEVICES[:2] + NUM_DEVICES[-1:] if length is Length.QUICK else NUM_DEVICES
    settings = [(n, n * PER_DEVICE, False) for n in chosen]
    settings += [(MODELS_AT, models, False) for models in NUM_MODELS]
    settings += [(n, n * PER_DEVICE, True) for n in NUM_DEVICES[:3]]
    found = []
    for num_devices, num_models, is_full in settings:
        own_pages = MODEL_PAGES * num_models // num_devices + SPARE_PAGES
        values = {
            "num_devices": [num_devices],
            "num_models": [num_models],
            "pages": [FULL_PAGES if is_full else own_pages],
            "rate_per_s": [num_devices * RATE_PER_DEVICE],
        }
        played = cases(SCENARIO, length, variables=values)
        if length is Length.DEFAULT:
            played = [_of_requests(case, num_devices * RATE_PER_DEVICE) for case in played]
        found += runs(NUMBER, played, kind="cost")
    return list({job.stem: job for job in found}.values())


def _of_requests(case: Case, rate_per_s: float) -> Case:
    """As many requests at every size, so that none takes minutes and none is over at once."""
    duration_s = case.setup.warmup_s + REQUESTS / rate_per_s
    setup = msgspec.structs.replace(case.setup, duration_s=duration_s, full_duration_s=None)
    return msgspec.structs.replace(case, setup=setup, duration_s=duration_s)


def write(records: Records, section: Section) -> None:
    section.say(
        f"Emulated GPUs, each asked {RATE_PER_DEVICE:,} times a second (a batch of 1 takes 1.2 "
        f"ms, each further row 0.35 ms), {PER_DEVICE} models for each. Measured is the time "
        "inside the scheduler's `handle` on one core: decisions, without network and clients. "
        "A controller that also talks to them does less (docs/measurements has the gateway's "
        "own figures)."
    )
    cores = list(dict.fromkeys(record.core for record in records))
    full = records.at(pages=FULL_PAGES)
    records = Records(r for r in records if r.values.get("pages") != FULL_PAGES)
    grown = Records(r for r in records if r.values.get("num_models") == _devices(r) * PER_DEVICE)
    rows = [_row(core, part) for core, part in _parts(grown, cores)]
    columns = (
        "core", "GPUs", "models", "asked/s", "decided/s of one core", "µs/request", "µs/event",
    )  # fmt: skip
    section.table(columns, rows)
    models = Records(r for r in records if _devices(r) == MODELS_AT)
    section.say(f"More models, {MODELS_AT} GPUs:")
    section.table(columns, [_row(core, part) for core, part in _parts(models, cores)])
    section.say(
        "Above each model's weights are on one device at the start. Here all pages are full, "
        "so that the models that are asked for most have a copy on every device, and each of "
        "their requests has as many devices to choose from:"
    )
    section.table(columns, [_row(core, part) for core, part in _parts(full, cores)])
    series = {
        core: {
            _devices(r): [x for s in part if s.core == core and (x := per_second(s)) is not None]
            for _, part in grown.settings()
            for r in part
        }
        for core in cores
    }
    section.figure(
        "scale",
        draw(series, title="6.6: requests decided per second of one core",
             x_label="emulated GPUs", y_label="requests/s"),
        "Requests decided per second of one core, by emulated GPUs.",
    )  # fmt: skip
    for core in cores:
        _judge(section, core, Records(r for r in grown if r.core == core), "GPUs", _devices)
        _judge(section, core, Records(r for r in models if r.core == core), "models", _models)
    best = max((x for r in records if (x := per_second(r)) is not None), default=None)
    if best is not None:
        section.say(
            f"The best here is {best:,.0f} requests decided per second of one core, "
            f"{best / RERUN_PER_S * 100:.0f} % of the {RERUN_PER_S:,} r/s that a re-run of "
            "Clockwork's C++ controller answered on 30 cores, and "
            f"{best / PUBLISHED_PER_S * 100:.0f} % of the {PUBLISHED_PER_S:,} published. Those "
            "are whole controllers with their network; these are decisions alone, in virtual "
            "time."
        )
    if len(cores) == 1:
        section.say(f"Only one build of the core was importable: {code(cores[0])}.")


def per_second(record: object) -> float | None:
    """Requests decided per second of wall time in `handle`."""
    handle_ns = getattr(record, "handle_ns", 0)
    return getattr(record, "num_requests", 0) / handle_ns * 1e9 if handle_ns else None


def _per_request(record: object) -> float | None:
    found = per_second(record)
    return 1e6 / found if found else None


def _per_event(record: object) -> float | None:
    events = getattr(record, "num_events", 0)
    return getattr(record, "handle_ns", 0) / events / 1000 if events else None


def _judge(section: Section, core: str, part: Records, what: str, size: Key) -> None:
    sizes = sorted({x for r in part if (x := size(r)) is not None})
    if len(sizes) < 2:
        return
    costs = [spread(_per_event(r) for r in part if size(r) == x) for x in sizes]
    first, last = costs[0], costs[-1]
    if first is None or last is None:
        return
    ratio = last.mean / first.mean
    section.verdict(
        f"cost per event is flat in {what} (at most {FLAT:g} times, {core})",
        ratio <= FLAT,
        f"{first.mean:.1f} µs at {sizes[0]:,.0f}, {last.mean:.1f} µs at {sizes[-1]:,.0f}: "
        f"{ratio:.2f} times",
    )


def _parts(records: Records, cores: list[str]) -> list[tuple[str, Records]]:
    found = []
    for core in cores:
        for _, part in Records(r for r in records if r.core == core).settings():
            found.append((core, part))
    return sorted(found, key=lambda one: (one[0], *(_sizes(one[1]))))


def _row(core: str, part: Records) -> tuple[str, ...]:
    num_devices, num_models = _sizes(part)
    rate = num_devices * RATE_PER_DEVICE
    cells = [part.spread(key) for key in (per_second, _per_request, _per_event)]
    texts = ["-" if c is None else c.text(d) for c, d in zip(cells, (0, 1, 1), strict=True)]
    return (core, f"{num_devices:,.0f}", f"{num_models:,.0f}", f"{rate:,.0f}", *texts)


def _sizes(part: Records) -> tuple[float, float]:
    record = next(iter(part))
    return _devices(record), _models(record)


def _devices(record: object) -> float:
    return float(getattr(record, "values", {}).get("num_devices", 0))


def _models(record: object) -> float:
    return float(getattr(record, "values", {}).get("num_models", 0))


EXPERIMENT = Experiment(NUMBER, "How many GPUs can one controller keep busy?", jobs, write)
