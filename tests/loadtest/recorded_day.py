"""A simulated day with every kind of event, recorded as a gateway records."""

from collections.abc import Iterable
from pathlib import Path

from scheduler.event_log import (
    Ended,
    Entry,
    Foreseen,
    Handled,
    Header,
    LogEncoder,
    Named,
    encode_header,
    packed,
)
from scheduler.events import (
    Command,
    Event,
    ModelAdded,
    ModelForgotten,
    ModelOffered,
    ModelPinned,
    ModelRemoved,
    ModelStaged,
    ModelUnloaded,
    RequestArrived,
    RequestCancelled,
    StagingEnded,
    WorkerLost,
)
from scheduler.scheduler import Scheduler
from scheduler.simulation import SimulatedWorker, Simulation
from scheduler.spec import SchedulerConfig
from tests.scheduler.story import device_spec, model_spec, ms

HEADER = Header(
    product_version="1.2.3",
    policy="remontoir",
    started_at="2026-11-23T12:00:00+01:00",
    config=SchedulerConfig(),
)
ORIGIN_MS = 500.0  # the gateway's clock did not start with it


def instant(at_ms: float) -> int:
    return ms(ORIGIN_MS + at_ms)


def request(
    request_id: int, model: str, at_ms: float, slo_ms: float, *, do_not_queue: bool = False
) -> RequestArrived:
    return RequestArrived(
        request_id, model, instant(at_ms), instant(at_ms + slo_ms), 1, "", "", 4, do_not_queue
    )


def day() -> list[Entry]:
    """Two devices with room for one large model each and a small one.

    1-5 are a batch and its queue, 10 is hopeless, 11 tight, 12 leaves, 13 would queue; 20-23 come
    at once; 39 and 40 are on a worker that is lost, and 39 has no time to find out; 60 waits for a
    model that is removed, before which one has come and gone. The early looks are at an upload that
    is refused, and at one that is not.
    """
    specs = [model_spec("a"), model_spec("b"), model_spec("s", exec_ms={1: 2, 4: 3}, pages=1)]
    entries: list[Entry] = []
    scheduler = Scheduler(HEADER.config)

    def observe(now: int, event: Event, commands: list[Command]) -> None:
        entries.append(Handled(now, event, commands))

    simulation = Simulation(scheduler, (), observer=observe, gathers_arrivals=True)

    def join(name: str, seed: int, *, resident: Iterable[str] = ()) -> None:
        device = device_spec(pages=5)
        worker = SimulatedWorker(name, device, specs, seed=seed, noise=0.05, resident=resident)
        simulation.join(worker)

    def foresee(arrived: RequestArrived) -> None:
        entries.append(
            Foreseen(simulation.now, arrived, scheduler.foresee(arrived, simulation.now))
        )
        entries.append(Named(0, "an upload"))

    for spec in specs:
        simulation.at(instant(0), ModelAdded(spec))
    simulation.call_at(instant(1), lambda: join("w1#one-1", 1, resident=["a", "s"]))
    simulation.call_at(instant(2), lambda: join("w2#two-2", 2, resident=["b"]))
    simulation.at(instant(30), RequestCancelled(12))
    simulation.call_at(instant(41), lambda: foresee(request(0, "a", 41, 4)))
    simulation.call_at(instant(42), lambda: foresee(request(0, "a", 42, 90)))
    simulation.at(instant(150), ModelPinned("b", True))
    simulation.crash("w2#two-2", at_ns=instant(302), detect_ns=ms(8), reason="silent")
    simulation.call_at(instant(400), lambda: join("w2#three-3", 3))
    simulation.at(instant(520), ModelRemoved("a", "its directory is gone"))
    simulation.at(instant(521), ModelUnloaded("s"))
    late = model_spec("late")
    for event in (
        *(ModelAdded(late), ModelStaged("late", ""), StagingEnded("late")),
        *(ModelOffered("w2#three-3", late), ModelUnloaded("late"), ModelForgotten("late")),
    ):
        simulation.at(instant(518), event)
    arrivals = [
        *(request(i, "a", 10 + 0.1 * i, 200) for i in range(1, 6)),
        request(10, "a", 11, 5),
        request(11, "a", 12, 45),
        request(12, "a", 13, 300),
        request(13, "a", 14, 300, do_not_queue=True),
        *(request(20 + i, "s", 100, 50) for i in range(4)),
        request(30, "a", 180, 400),
        request(39, "b", 299, 10.9),
        request(40, "b", 300, 60),
        request(50, "s", 420, 100),
        request(60, "a", 519, 100),
        *(request(70 + i, "a", 519.5, 100) for i in range(9)),
    ]
    for arrived in arrivals:
        entries_at = arrived.arrival_ns
        simulation.call_at(
            entries_at, lambda i=arrived.request_id: entries.append(Named(i, f"name-{i}"))
        )
    simulation.run([(arrived.arrival_ns, arrived) for arrived in arrivals])
    simulation.step(WorkerLost("w1#one-1", "the gateway stops"), simulation.now + 1)
    return [*entries, Ended("the gateway stops")]


def written(path: Path, entries: Iterable[Entry], header: Header = HEADER) -> Path:
    """The entries as a recording of two blocks."""
    listed = list(entries)
    half = len(listed) // 2
    with path.open("wb") as file:
        file.write(encode_header(header))
        for part in (listed[:half], listed[half:]):
            file.write(_block(part))
    return path


def cut(recording: Path, path: Path) -> Path:
    """The same file without its last bytes: only its first block is whole."""
    path.write_bytes(recording.read_bytes()[:-10])
    return path


def damaged(recording: Path, path: Path) -> Path:
    """The same file with a bit flipped right behind its header: no block can be read."""
    content = bytearray(recording.read_bytes())
    content[len(encode_header(HEADER)) + 20] ^= 1
    path.write_bytes(content)
    return path


def _block(entries: Iterable[Entry]) -> bytes:
    encoder = LogEncoder()
    for entry in entries:
        match entry:
            case Handled():
                encoder.handled(entry.event, entry.now, entry.commands)
            case Foreseen():
                encoder.foreseen(entry.event, entry.now, entry.refusal)
            case Named():
                encoder.named(entry.request_id, entry.name)
            case Ended():
                encoder.ended(entry.why)
    return packed(encoder.take())
