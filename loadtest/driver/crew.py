"""The driver's processes: started, sent off at one instant, watched, and put together again.

Owns them. Whatever ends one of them ends the run with an error, never with figures of a part.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import NamedTuple

from loadtest.driver.figures import Part, added
from loadtest.driver.shooting import Failed, Outcome, Plan, shoot, start_soon

# Beyond its own bounds a process has this long to read its replies: 100,000 take two seconds.
SLACK_S = 60.0
WATCH_S = 0.25


class DriverError(Exception):
    """The driver could not do its work; the message says why, and about which server."""


class Shift(NamedTuple):
    """Figures of all processes: `parts[i]` of group i."""

    parts: list[Part]
    played_s: float
    stopped: str


def run(
    plan: Plan,
    *,
    on_start: Callable[[], None] = lambda: None,
    watch: Callable[[], None] = lambda: None,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> Shift:
    """Play a plan with as many processes as it says. `on_start` is called once, after the warm-up;
    `watch` now and then while there is load. Raises DriverError.
    """
    crew = _Crew(plan, asked_to_stop)
    try:
        return crew.run(on_start, watch)
    finally:
        crew.end()


class _Crew:
    def __init__(self, plan: Plan, asked_to_stop: Callable[[], bool]) -> None:
        self._plan = plan
        self._asked_to_stop = asked_to_stop
        self._was_told = False
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for part in range(plan.parts):
            ours, theirs = context.Pipe()
            own_cpus = plan.cpus if plan.parts == 1 else (plan.cpus[part % len(plan.cpus)],)
            process = context.Process(
                target=shoot,
                args=(plan._replace(part=part, cpus=own_cpus), theirs),
                daemon=True,
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, on_start: Callable[[], None], watch: Callable[[], None]) -> Shift:
        plan = self._plan
        self._gather(plan.warm_up_s + plan.give_up_s + SLACK_S, lambda: None)
        on_start()
        start_ns = start_soon()
        for pipe in self._pipes:
            pipe.send(start_ns)
        outcomes = self._gather(plan.duration_s + plan.give_up_s + SLACK_S, watch)
        found = [outcome for outcome in outcomes if isinstance(outcome, Outcome)]
        groups = zip(*(outcome.parts for outcome in found), strict=True)
        return Shift(
            [added(parts) for parts in groups],
            max(outcome.played_s for outcome in found),
            next((outcome.stopped for outcome in found if outcome.stopped), ""),
        )

    def end(self) -> None:
        for process, pipe in zip(self._processes, self._pipes, strict=True):
            pipe.close()
            process.join(1.0)
            if process.is_alive():
                process.kill()
                process.join()

    def _gather(self, most_s: float, watch: Callable[[], None]) -> list[object]:
        """One message of each process."""
        heard: dict[int, object] = {}
        turns_left = int(most_s / WATCH_S)
        while len(heard) < len(self._pipes):
            missing = [pipe for i, pipe in enumerate(self._pipes) if i not in heard]
            ready = wait(missing, WATCH_S)
            if not ready:
                turns_left -= 1
                if turns_left <= 0:
                    raise DriverError(f"a process of the driver was not done after {most_s:.0f} s")
            watch()
            if self._asked_to_stop() and not self._was_told:
                self._was_told = True
                for process in self._processes:
                    if process.pid is not None:
                        os.kill(process.pid, signal.SIGTERM)
            for pipe in ready:
                number = self._pipes.index(pipe)  # type: ignore[arg-type]  # they are ours
                try:
                    message = self._pipes[number].recv()
                except EOFError:
                    self._processes[number].join()
                    code = self._processes[number].exitcode
                    raise DriverError(
                        f"process {number + 1} of the driver ended with {code}"
                    ) from None
                if isinstance(message, Failed):
                    raise DriverError(message.message)
                heard[number] = message
        return [heard[number] for number in range(len(self._pipes))]
