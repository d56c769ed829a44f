"""What the GPUs of the workers say of themselves: the last sample of each, and their energy.

It owns figures by the workers' names, which outlive a worker's process as names in metrics do. It
must never believe a counter across two processes: what a card used while no worker of ours had it
is not ours.
"""

from scheduler.wire import DeviceSample

# Workers are named by their operator; more names than this in one life are a mistake.
MAX_NAMES = 1024


class GpuFigures:
    """Of the worker with one name."""

    __slots__ = ("_counter_mj", "energy_mj", "sample")

    def __init__(self) -> None:
        self.sample: DeviceSample | None = None  # None while it is not connected, or says nothing
        self.energy_mj: int | None = None  # used while connected; None where it was never told
        self._counter_mj: int | None = None  # the worker's own count, when it last told it

    def observe(self, sample: DeviceSample | None) -> None:
        self.sample = sample
        counter_mj = None if sample is None else sample.energy_mj
        if counter_mj is None:
            return
        used_mj = 0 if self._counter_mj is None else max(0, counter_mj - self._counter_mj)
        self.energy_mj = (self.energy_mj or 0) + used_mj
        self._counter_mj = counter_mj

    def disconnect(self) -> None:
        """The next worker of this name counts from wherever it likes."""
        self.sample = self._counter_mj = None


class FleetFigures:
    """All and only names under which a GPU has said something, in `by_name`."""

    def __init__(self) -> None:
        self.by_name: dict[str, GpuFigures] = {}

    def observe(self, name: str, sample: DeviceSample | None) -> None:
        figures = self.by_name.get(name)
        if figures is None:
            if sample is None or len(self.by_name) >= MAX_NAMES:
                return
            figures = self.by_name[name] = GpuFigures()
        figures.observe(sample)

    def disconnect(self, name: str) -> None:
        figures = self.by_name.get(name)
        if figures is not None:
            figures.disconnect()
