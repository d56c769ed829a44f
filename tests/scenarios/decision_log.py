"""Golden decision logs: two short days, every event and every decision, one line each.

A change of policy shows as a change of these files, to be read and approved like code:
`python -m tests.scenarios.decision_log` writes them anew.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from scheduler.actions import EvictWeights, Infer, LoadWeights
from scheduler.events import (
    ActionFinished,
    Command,
    Event,
    Expired,
    Failed,
    ModelPinned,
    Rejected,
    Reply,
    RequestArrived,
    RequestCancelled,
    WorkerJoined,
    WorkerLost,
)
from scheduler.simulation import SimulatedWorker
from tests.scenarios.world import World
from tests.scheduler.story import device_spec, model_spec, ms

GOLDEN = Path(__file__).parent / "golden"


def request(request_id: int, model: str, at_ms: float, slo_ms: float) -> RequestArrived:
    return RequestArrived(request_id, model, ms(at_ms), ms(at_ms + slo_ms), elements=4)


def batching_day() -> World:
    """One device, weights resident: batches, a tight request between lax ones, an overload."""
    specs = [model_spec("m"), model_spec("small", exec_ms={1: 2, 4: 3}, pages=1)]
    worker = SimulatedWorker("w", device_spec(), specs, resident=["m", "small"])
    world = World(specs, [worker])
    requests = [request(i, "m", 1 + 0.5 * i, 150) for i in range(1, 7)]
    requests += [request(10, "small", 5, 20), request(11, "m", 6, 45)]
    requests += [request(20 + i, "m", 100, 60) for i in range(7)]
    world.simulation.at(ms(102), RequestCancelled(22))
    world.run(requests)
    return world


def paging_day() -> World:
    """Two devices with room for one model each: cold starts, an eviction, a pin, a lost worker."""
    specs = [model_spec("a"), model_spec("b"), model_spec("c")]
    workers = [SimulatedWorker(name, device_spec(pages=4), specs) for name in ("w1", "w2")]
    world = World(specs, workers)
    world.simulation.at(ms(70), ModelPinned("c", True))
    world.simulation.at(ms(130), WorkerLost("w2", "its connection is gone"))
    world.run(
        [
            request(1, "a", 1, 100),
            request(2, "b", 2, 100),
            request(3, "a", 3, 100),
            request(4, "c", 50, 25),
            request(5, "c", 51, 100),
            request(6, "b", 120, 200),
            request(7, "c", 121, 200),
            request(8, "b", 140, 30),
        ]
    )
    return world


DAYS: Mapping[str, Callable[[], World]] = {"batching": batching_day, "paging": paging_day}


def written(world: World) -> str:
    """The log as text: instants in ms, an event, and its commands below it."""
    lines = []
    for now, event, commands in world.log:
        lines.append(f"{now / 1e6:9.3f}  {_event(event)}")
        lines += [f"           -> {_command(command)}" for command in commands]
    return "\n".join(lines) + "\n"


def _event(event: Event) -> str:
    name = type(event).__name__
    match event:
        case RequestArrived():
            slo_ms = (event.deadline_ns - event.arrival_ns) / 1e6
            return f"{name} {event.request_id}: {event.model}, {slo_ms:g} ms"
        case RequestCancelled():
            return f"{name} {event.request_id}"
        case ActionFinished(worker_id, result):
            return f"{name} {result.action_id} on {worker_id}: {result.code.name}"
        case WorkerJoined() | WorkerLost():
            return f"{name} {event.worker_id}"
        case ModelPinned():
            return f"{name} {event.model}"
        case _:
            return name


def _command(command: Command) -> str:
    if isinstance(command, Reply):
        outcome = command.outcome
        reason = ""
        if isinstance(outcome, Rejected | Expired | Failed):
            reason = f" {outcome.reason.value}"
        return f"Reply {command.request_id}: {type(outcome).__name__}{reason}"
    action = command.action
    told = f"{type(action).__name__} {action.action_id} to {command.worker_id}: {action.model}"
    match action:
        case Infer():
            told += f" {list(action.request_ids)}"
        case LoadWeights():
            told += f" {action.num_pages} pages"
        case EvictWeights():
            pass
    return f"{told}, from {action.earliest_ns / 1e6:.3f}"


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for name, day in DAYS.items():
        (GOLDEN / f"{name}.log").write_text(written(day()), "utf-8")


if __name__ == "__main__":
    main()
