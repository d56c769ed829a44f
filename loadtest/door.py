"""What metrics, keys, quotas, stories and traces cost a request, in µs of the gateway's core.

Owns the experiment and its bar. The gateway's half, which times itself without sockets, is
`python -m gateway.costs.door_cost`, started as a process.
"""

import subprocess
import sys

import msgspec

from loadtest.bench import Bench
from loadtest.machine import SERVER_CPU, on_cpus
from loadtest.servers import ServerError

BAR_US = 15.0
ROUNDS, QUICK_ROUNDS = 100, 10
TIMEOUT_S = 300


class Step(msgspec.Struct, kw_only=True):
    """As the gateway prints it: microseconds of a whole request, and what this step adds."""

    name: str
    quartile_us: float
    median_us: float
    added_us: float | None = None


class Result(msgspec.Struct, kw_only=True):
    steps: list[Step]


def run(bench: Bench) -> Result:
    """Raises ServerError where the gateway's half fails."""
    report = bench.report
    report.start("The door: what metrics, stories, keys, quotas and traces add to a request")
    rounds = QUICK_ROUNDS if bench.is_quick else ROUNDS
    command = [sys.executable, "-m", "gateway.costs.door_cost", "--rounds", str(rounds)]
    command = on_cpus(str(SERVER_CPU), command)
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        raise ServerError(f"gateway.costs.door_cost: {error.stderr.decode()[-500:]}") from error
    except subprocess.TimeoutExpired as error:
        raise ServerError(f"gateway.costs.door_cost was not done after {TIMEOUT_S} s") from error
    result = Result(steps=msgspec.json.decode(done.stdout, type=list[Step]))
    report.table(
        "CPU time of one request with JSON of 64 numbers, µs",
        ("with", "lower quartile", "median", "added"),
        [(step.name, step.quartile_us, step.median_us, step.added_us) for step in result.steps],
        note="Each step has what the one above it has. Endpoint, dispatcher and scheduler (pure "
        "Python unless compiled) in one process, without sockets and worker, one request at a "
        "time; 100 tenants; quotas are all of them, a least SLO, globs of models. Added: by the "
        "lower quartiles.",
    )
    for step in result.steps:
        if step.added_us is not None:
            text = f"{step.name}: {step.added_us:.1f} µs a request (bar: {BAR_US:.0f})"
            report.verdict(text, is_met=step.added_us < BAR_US)
    report.save("door", result)
    return result
