"""wrk, a closed-loop client in C: how many requests a second at so many connections.

Owns the calling of it and the reading of what it prints. Its Lua script sends one fixed request and
prints figures as JSON.
"""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import msgspec

from loadtest.machine import CLIENT_CPU, on_cpus

_SCRIPT = """\
wrk.method = "POST"
local file = assert(io.open("{body_path}", "rb"))
wrk.body = file:read("*a")
file:close()
{headers}
function done(summary, latency, requests)
  io.write(string.format(
    '\\n{{"requests": %d, "duration_us": %d, "p50_us": %d, "p99_us": %d, "not_2xx": %d, ' ..
    '"broken": %d}}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    summary.errors.status,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout))
end
"""


class WrkError(Exception):
    """wrk is missing, or did not do what it was asked to."""


class Figures(msgspec.Struct, frozen=True):
    """Of one run. `not_2xx` and `broken` must be zero for the rest to mean anything."""

    requests: int
    duration_us: int
    p50_us: int
    p99_us: int
    not_2xx: int
    broken: int

    @property
    def requests_per_s(self) -> float:
        return self.requests * 1e6 / self.duration_us


def require() -> None:
    """Raises WrkError, saying what to install."""
    if shutil.which("wrk") is None:
        raise WrkError(
            "wrk is missing; on Debian it is in the package of that name: apt install wrk"
        )


def version() -> str:
    done = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).splitlines()[0].partition("Copyright")[0].strip()


def write_script(path: Path, *, body: bytes, headers: Mapping[str, str]) -> Path:
    """The Lua script for one fixed POST; its body is put beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body_path = path.with_suffix(".body").resolve()
    body_path.write_bytes(body)
    lines = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items())
    path.write_text(_SCRIPT.format(body_path=body_path, headers=lines))
    return path


def run(url: str, script: Path, *, connections: int, seconds: float) -> Figures:
    """One thread on the client's core. Raises WrkError."""
    whole_s = max(1, round(seconds))
    command = ["wrk", "-t1", f"-c{connections}", f"-d{whole_s}s", "--latency", "-s", str(script)]
    done = subprocess.run(
        on_cpus(str(CLIENT_CPU), [*command, url]), capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not lines:
        raise WrkError(f"wrk ended with {done.returncode}: {done.stderr or done.stdout}")
    return msgspec.json.decode(lines[-1], type=Figures)
