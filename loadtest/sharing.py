"""What a hit and a miss of the prediction cache cost a request, in µs of the gateway's core.

Owns the experiment. The gateway's half, which times itself without sockets, is
`python -m gateway.costs.sharing_cost`, started as a process.
"""

import subprocess
import sys

import msgspec

from loadtest.bench import Bench
from loadtest.machine import SERVER_CPU, on_cpus
from loadtest.servers import ServerError

ROUNDS, QUICK_ROUNDS = 100, 10
TIMEOUT_S = 300


class Case(msgspec.Struct, kw_only=True):
    """As the gateway prints it: a whole request, whose inputs have so many bytes."""

    input_bytes: int
    plain_us: float
    hit_us: float
    miss_us: float


class Result(msgspec.Struct, kw_only=True):
    cases: list[Case]


def run(bench: Bench) -> Result:
    """Raises ServerError where the gateway's half fails."""
    report = bench.report
    report.start("The cache: what a hit and a miss cost a request")
    rounds = QUICK_ROUNDS if bench.is_quick else ROUNDS
    command = [sys.executable, "-m", "gateway.costs.sharing_cost", "--rounds", str(rounds)]
    command = on_cpus(str(SERVER_CPU), command)
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        raise ServerError(f"gateway.costs.sharing_cost: {error.stderr.decode()[-500:]}") from error
    except subprocess.TimeoutExpired as error:
        raise ServerError(f"gateway.costs.sharing_cost was not done after {TIMEOUT_S} s") from error
    result = Result(cases=msgspec.json.decode(done.stdout, type=list[Case]))
    report.table(
        "One request with binary inputs, µs",
        ("bytes of input", "not shared", "hit", "miss", "a hit adds", "a miss adds"),
        [
            (
                f"{case.input_bytes:,}",
                case.plain_us,
                case.hit_us,
                case.miss_us,
                case.hit_us - case.plain_us,
                case.miss_us - case.plain_us,
            )
            for case in result.cases
        ],
        note="Lower quartiles. The endpoint alone: scheduler, wire and worker, which a hit spares, "
        "take no time here. What is added is mostly the hash of the inputs.",
    )
    report.save("cache", result)
    return result
