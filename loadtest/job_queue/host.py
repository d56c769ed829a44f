"""Is this host idle? What others use of its CPUs, from /proc/stat.

Owns the reading and the sum. A benchmark beside other work measures that work, too (InferBench,
section 4.2.1: a job is dispatched to an idle server only).
"""

from collections.abc import Callable
from pathlib import Path

STAT = Path("/proc/stat")
# One core of sixteen, or a sixth of one of two: interrupts and a shell stay below it.
MAX_BUSY = 0.08


def read_stat() -> str:
    return STAT.read_text()


class HostUse:
    """The share of all CPUs that were used since it was asked last."""

    def __init__(self, read: Callable[[], str] = read_stat) -> None:
        self._read = read
        self._last = _ticks(read())

    def busy(self) -> float:
        """0 to 1; 0 if no time has passed."""
        now = _ticks(self._read())
        used, total = now[0] - self._last[0], now[1] - self._last[1]
        self._last = now
        return max(0.0, used / total) if total > 0 else 0.0


def _ticks(text: str) -> tuple[int, int]:
    """Used and all ticks of all CPUs. Waiting for disks is idle; a neighbour's time is used."""
    fields = [int(word) for word in text.splitlines()[0].split()[1:9]]
    total = sum(fields)
    idle = fields[3] + fields[4]
    return total - idle, total
