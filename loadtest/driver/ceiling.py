"""How fast this driver can send here: the rate up to which it keeps its schedule.

Owns the search, against a server that does nothing (sink.py), and where its answer is kept. Beyond
the ceiling a figure would be about the driver; such rates are refused.
"""

import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from loadtest import servers
from loadtest.driver import crew
from loadtest.driver.client_stages import Stages
from loadtest.driver.figures import quantile_ms
from loadtest.driver.job_target import Url
from loadtest.driver.shooting import Group, Plan
from loadtest.machine import describe
from loadtest.workloads import Poisson
from scheduler.spec import MILLISECOND_NS

# A schedule is kept if 99 of 100 sends are within this. Timers alone miss by 0.05 to 0.2 ms.
MOST_ERROR_MS = 1.0
FIRST_RATE, MOST_RATE = 500.0, 200_000.0
STEP_S, NUM_BISECTIONS = 1.0, 3
SLO_MS = 1000.0


class Ceiling(msgspec.Struct, frozen=True, kw_only=True):
    """`rate_per_s` was kept, with this error; `next_rate_per_s` was not."""

    rate_per_s: float
    error_p99_ms: float
    next_rate_per_s: float
    request_bytes: int
    processes: int
    cpus: tuple[int, ...]
    machine: str


Try = Callable[[float], tuple[bool, float]]


def search(
    attempt: Try, on_step: Callable[[str], None] = lambda _: None
) -> tuple[float, float, float]:
    """The highest rate that is kept, its error, and the lowest that was not. `attempt` says of a
    rate whether it was kept, and the error in milliseconds; one that was not is tried once more,
    since others' work comes and goes. 0 if not even the first one was: then it is not the rate.
    """

    def tried(rate_per_s: float) -> tuple[bool, float]:
        first = attempt(rate_per_s)
        return first if first[0] else attempt(rate_per_s)

    kept, kept_error, missed = 0.0, 0.0, 0.0
    rate = FIRST_RATE
    while rate <= MOST_RATE:
        on_step(f"{rate:,.0f}/s")
        is_kept, error_ms = tried(rate)
        if not is_kept:
            missed = rate
            break
        kept, kept_error = rate, error_ms
        rate *= 2
    for _ in range(NUM_BISECTIONS if missed and kept else 0):
        middle = (kept + missed) / 2
        on_step(f"{middle:,.0f}/s")
        is_kept, error_ms = tried(middle)
        if is_kept:
            kept, kept_error = middle, error_ms
        else:
            missed = middle
    return kept, kept_error, missed


def measure(
    *,
    request_bytes: int,
    processes: int,
    server_cpus: str,
    client_cpus: Sequence[int],
    log_dir: Path,
    on_step: Callable[[str], None] = lambda _: None,
) -> Ceiling:
    """About twelve seconds. Raises ServerError, DriverError, TooBusy."""
    port = servers.free_port()
    command = [sys.executable, "-m", "loadtest.driver.sink", str(port)]
    with servers.program(
        "sink", command, port=port, cpus=server_cpus, log_dir=log_dir, ready_path="/"
    ):

        def attempt(rate_per_s: float) -> tuple[bool, float]:
            plan = _plan(port, rate_per_s, request_bytes, processes, client_cpus)
            (part,) = crew.run(plan).parts
            error_ms = quantile_ms(part.driver_error, 99) or 0.0
            return error_ms <= MOST_ERROR_MS and part.good == part.sent, error_ms

        rate_per_s, error_ms, missed = search(attempt, on_step)
    if not rate_per_s:
        raise TooBusy(
            f"not even {FIRST_RATE:,.0f} requests/s were sent within {MOST_ERROR_MS:g} ms of their "
            f"schedule: others are at work on this machine (load average {os.getloadavg()[0]:.1f})"
        )
    return Ceiling(
        rate_per_s=rate_per_s,
        error_p99_ms=error_ms,
        next_rate_per_s=missed,
        request_bytes=request_bytes,
        processes=processes,
        cpus=tuple(client_cpus),
        machine=describe().cpu,
    )


class TooBusy(Exception):
    """Not even the lowest rate was kept: others are at work on these cores."""


class KnownCeilings:
    """Ceilings of this machine, kept in a file; requests of alike sizes share one."""

    def __init__(self, path: Path | None = None) -> None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self._path = path or cache / "remontoir" / "bench-ceilings.json"

    def find(self, request_bytes: int, processes: int, cpus: Sequence[int]) -> Ceiling | None:
        return self._read().get(_key(request_bytes, processes, cpus))

    def keep(self, ceiling: Ceiling) -> None:
        known = self._read()
        known[_key(ceiling.request_bytes, ceiling.processes, ceiling.cpus)] = ceiling
        self._path.parent.mkdir(parents=True, exist_ok=True)
        written = self._path.with_suffix(f".{os.getpid()}.new")
        written.write_bytes(msgspec.json.format(msgspec.json.encode(known)))
        written.replace(self._path)

    def _read(self) -> dict[str, Ceiling]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, Ceiling])
        except (OSError, msgspec.MsgspecError):
            return {}


def rounded_bytes(request_bytes: int) -> int:
    """The next power of four: requests up to it have its ceiling."""
    size = 256
    while size < request_bytes:
        size *= 4
    return size


def _key(request_bytes: int, processes: int, cpus: Sequence[int]) -> str:
    numbers = ",".join(map(str, cpus))
    return f"{platform.node()} {rounded_bytes(request_bytes)} B {processes} on {numbers}"


def _plan(
    port: int, rate_per_s: float, request_bytes: int, processes: int, cpus: Sequence[int]
) -> Plan:
    target = Url(url=f"http://127.0.0.1:{port}", path="/")
    entry = Poisson(models="sink", slo_ms=SLO_MS, rate_per_s=rate_per_s)
    head = f"POST / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {request_bytes}\r\n\r\n"
    request = head.encode() + bytes(request_bytes)
    return Plan(
        host="127.0.0.1",
        port=port,
        is_tls=False,
        target=target,
        entries=(entry,),
        models=("sink",),
        groups=[Group(0, "sink", int(SLO_MS * MILLISECOND_NS), [request], [])],
        stages=Stages(network=None, preprocess=(0,), postprocess=(0,)),
        duration_s=STEP_S,
        warm_up_s=0.2,
        give_up_s=2.0,
        connections=64,
        seed=1,
        cpus=tuple(cpus),
        parts=processes,
    )
