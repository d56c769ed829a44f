"""The machine a figure was measured on: cores, versions, load; and who runs on which core.

Owns the split of cores: servers on SERVER_CPU, the client (this process) on CLIENT_CPU. A figure
without this beside it is worth nothing.
"""

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

SERVER_CPU = 0
CLIENT_CPU = 1

_PACKAGES = ("onnxruntime", "numpy", "uvicorn", "uvloop", "fastapi", "pyzmq", "msgspec")
# Above this, somebody else is at work on the machine.
QUIET_LOAD = 0.7


class MachineError(Exception):
    """The machine cannot run this benchmark. The message says what it lacks."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    cpu: str
    num_cpus: int
    memory_gib: float
    kernel: str
    python: str
    versions: dict[str, str]
    commit: str

    def line(self) -> str:
        packages = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return (
            f"{self.cpu}, {self.num_cpus} CPUs, {self.memory_gib:.0f} GiB, Linux {self.kernel}, "
            f"Python {self.python}, {packages}, commit {self.commit}"
        )


def describe() -> Machine:
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        cpu=_cpu_name(),
        num_cpus=os.cpu_count() or 0,
        memory_gib=memory_bytes / 2**30,
        kernel=platform.release(),
        python=platform.python_version(),
        versions={name: _version(name) for name in _PACKAGES},
        commit=_commit(),
    )


def load_average() -> float:
    """Of the last minute."""
    return os.getloadavg()[0]


def pin_client() -> None:
    """Raises MachineError where client and server cannot have a core each."""
    usable = os.sched_getaffinity(0)
    if not {SERVER_CPU, CLIENT_CPU} <= usable:
        raise MachineError(
            f"server and client need CPUs {SERVER_CPU} and {CLIENT_CPU} to themselves, "
            f"this process may use {sorted(usable)}"
        )
    if shutil.which("taskset") is None:
        raise MachineError("taskset is missing (Debian: apt install util-linux)")
    os.sched_setaffinity(0, {CLIENT_CPU})


def on_cpus(cpus: str, command: list[str]) -> list[str]:
    """The command as it is run, and printed: `taskset -c 0 ...`."""
    return ["taskset", "-c", cpus, *command]


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _commit() -> str:
    root = Path(__file__).parent.parent
    git = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
