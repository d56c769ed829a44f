"""A worker for each GPU, with a clock and processes that the test moves."""

import signal
from collections.abc import Sequence

from gpuworker.launcher import MAX_FAILED_STARTS, Launcher

FD = 7


class Child:
    def __init__(self, command: Sequence[str]) -> None:
        self.command = command
        self.code: int | None = None
        self.signals: list[int] = []

    def poll(self) -> int | None:
        return self.code

    def send_signal(self, number: int) -> None:
        """As a worker does that has a parent: it leaves Ctrl-C to that."""
        self.signals.append(number)
        if number != signal.SIGINT:
            self.code = 0


class World:
    """`script` is done at each pause, one step of it; when it is over, all are told to stop."""

    def __init__(self, *devices: str) -> None:
        self.now_s = 0.0
        self.children: list[Child] = []
        self.script: list[object] = []
        self.launcher = Launcher(
            {device: [device] for device in devices},
            FD,
            spawn=self._spawn,
            clock=lambda: self.now_s,
            sleep=self._pause,
        )

    def _spawn(self, command: Sequence[str], descriptor: int) -> Child:
        assert descriptor == FD
        self.children.append(Child(command))
        return self.children[-1]

    def _pause(self, _seconds: float) -> None:
        if not self.script:
            self.launcher.stop()
            return
        step = self.script.pop(0)
        assert callable(step)
        step()

    def ends(self, number: int, code: int, *, after_s: float = 1.0) -> None:
        """Script: the child of that number ends."""

        def step() -> None:
            self.now_s += after_s
            self.children[number].code = code

        self.script.append(step)

    def passes(self, seconds: float) -> None:
        def step() -> None:
            self.now_s += seconds

        self.script.append(step)

    def run(self) -> int:
        return self.launcher.run()

    @property
    def started(self) -> list[str]:
        return [child.command[0] for child in self.children]


def test_each_gpu_has_a_worker_and_all_are_told_to_stop() -> None:
    world = World("cuda:0", "cuda:1")
    assert world.run() == 0
    assert world.started == ["cuda:0", "cuda:1"]
    assert [child.signals for child in world.children] == [[signal.SIGTERM]] * 2


def test_one_that_dies_is_started_again_and_the_others_run_on() -> None:
    world = World("cuda:0", "cuda:1")
    world.ends(1, -9)
    world.passes(0.05)
    world.passes(0.06)  # 0.1 s after it died
    assert world.run() == 0
    assert world.started == ["cuda:0", "cuda:1", "cuda:1"]
    assert world.children[0].signals == [signal.SIGTERM]


def test_the_second_crash_in_a_row_waits_longer() -> None:
    world = World("cuda:0")
    world.ends(0, 1)
    world.passes(0.11)
    world.ends(1, 1)
    world.passes(0.15)  # not yet: 0.2 s
    assert world.run() == 0
    assert len(world.children) == 2


def test_one_that_was_refused_stays_away_and_its_code_is_told() -> None:
    world = World("cuda:0", "cuda:1")
    world.ends(1, 3)
    world.passes(100)
    assert world.run() == 3
    assert world.started == ["cuda:0", "cuda:1"]


def test_wrong_settings_are_final_unless_it_has_served_with_them() -> None:
    """A card that is gone makes it end with code 2 as well."""
    world = World("cuda:0", "cuda:1")
    world.ends(0, 2)  # at its start: it stays so
    world.ends(1, 1, after_s=60)
    world.passes(0.11)
    world.ends(2, 2)
    world.passes(10)
    assert world.run() == 2
    assert world.started == ["cuda:0", "cuda:1", "cuda:1", "cuda:1"]


def test_when_all_were_dismissed_it_ends_by_itself() -> None:
    world = World("cuda:0", "cuda:1")
    world.ends(0, 0)
    world.ends(1, 0)
    world.passes(1000)
    assert world.run() == 0
    assert len(world.script) == 1  # it did not wait for that


def test_if_none_ever_starts_it_gives_up() -> None:
    world = World("cuda:0")
    for number in range(MAX_FAILED_STARTS):
        world.ends(number, 1)
        world.passes(10)
    assert world.run() == 1
    assert len(world.children) == MAX_FAILED_STARTS


def test_who_lived_long_may_crash_again() -> None:
    world = World("cuda:0")
    for number in range(2 * MAX_FAILED_STARTS):
        world.ends(number, 1, after_s=60)
        world.passes(0.11)
    assert world.run() == 0
    assert len(world.children) == 2 * MAX_FAILED_STARTS + 1


def test_one_that_waits_to_be_started_again_is_not_when_all_stop() -> None:
    world = World("cuda:0")
    world.ends(0, 1)
    assert world.run() == 0
    assert len(world.children) == 1


def test_a_signal_during_a_start_reaches_the_new_one() -> None:
    world = World("cuda:0")
    spawn = world._spawn

    def interrupted(command: Sequence[str], descriptor: int) -> Child:
        world.launcher.stop()
        return spawn(command, descriptor)

    world.launcher._spawn = interrupted
    assert world.run() == 0
    assert [child.signals[0] for child in world.children] == [signal.SIGTERM]
