"""What a server uses: CPU seconds and resident bytes of a process and all that it has started.

Owns the reading of /proc. A process that has ended meanwhile has used what it was seen to use.
"""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Use(NamedTuple):
    cpu_s: float
    rss_bytes: int
    pids: tuple[int, ...] = ()


class _Process(NamedTuple):
    parent: int
    group: int
    cpu_s: float
    rss_bytes: int


def rss_bytes_of(pids: Iterable[int], proc: Path = PROC) -> int:
    """Of these processes alone: cheap enough to be asked during a run."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            total += int((proc / str(pid) / "statm").read_text().split()[1]) * _PAGE_BYTES
    return total


def cpu_s_of(pid: int, proc: Path = PROC) -> float:
    """Of this process alone. Raises OSError where it is gone."""
    return _read((proc / str(pid) / "stat").read_text()).cpu_s


def use_of(*pids: int, proc: Path = PROC) -> Use:
    """Of the processes, their descendants and process groups; ended and awaited children count for
    their parents, as the kernel has it. Zero of those that are gone.
    """
    processes: dict[int, _Process] = {}
    for stat in proc.glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # one that has just ended
            processes[int(stat.parent.name)] = _read(stat.read_text())
    own = {*pids, *(other for other, process in processes.items() if process.group in pids)}
    grown = True
    while grown:
        more = {other for other, process in processes.items() if process.parent in own} - own
        own |= more
        grown = bool(more)
    found = [processes[each] for each in own if each in processes]
    return Use(
        sum(each.cpu_s for each in found),
        sum(each.rss_bytes for each in found),
        tuple(sorted(own & processes.keys())),
    )


def _read(text: str) -> _Process:
    # the name is in brackets and may have any character in it
    fields = text.rpartition(")")[2].split()
    ticks = sum(int(fields[index]) for index in (11, 12, 13, 14))
    return _Process(
        int(fields[1]), int(fields[2]), ticks / _TICKS_PER_S, int(fields[21]) * _PAGE_BYTES
    )
