"""A gateway and three workers on four hosts, over a bad network: `make e2e-net`.

The hosts are network namespaces; 10 ms each way, 1 % of packets lost, CURVE on. Under a steady load
one host is cut off for five seconds, one worker is killed and started again, and the gateway is
killed and started again. Printed is what share of the requests of each stretch was answered within
its SLO, who was not answered at all, and, by the gateway's log, how fast workers were back. The
exit code is 1 where a bar is missed. Needs root, iproute2 and /dev/net/tun, two minutes, and no
network of this machine's; devices are emulated. Says so, and ends with 0, where it may not.
"""

import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.e2e.net_hosts import Hosts, check, hosts
from tests.e2e.tools import LeftOut
from tests.gateway.running import ROOT, environment

ADDRESSES = {"gw": "10.77.0.1", "w1": "10.77.0.2", "w2": "10.77.0.3", "w3": "10.77.0.4"}
WORKERS = ("w1", "w2", "w3")
PORT, DOOR = 8000, f"tcp://{ADDRESSES['gw']}:7000"
DELAY_MS, LOSS = 10.0, 0.01
EMULATION, MODELS = "clockwork-v100", "resnet50_v2,googlenet,densenet121"
# Ten round trips of the network, and four executions; a packet that is lost costs TCP two or three.
SLO_MS, RATE = 250, 60.0
START_S = 90.0  # of a gateway or worker on a busy machine; a guard against hanging
PARTITION_S = 5.0
# All workers, after their gateway knows its models again; and one, after the network is back, where
# TCP has more to find out.
BACK_WITHIN_S, HEALED_WITHIN_S = 1.0, 2.0

JOINED = re.compile(r"worker (\S+) joined: ")
LOST = re.compile(r"worker (\S+) lost: ")


class Stretch(NamedTuple):
    """From `begin_s` to `end_s` of the load; `bar` is the least share in time."""

    name: str
    begin_s: float
    end_s: float
    bar: float


# A worker that is cut off is lost after one second, with a third of the requests of that second
# and of those that had been sent to it; one that is killed is missed at once. One that starts takes
# a core for seconds, of the two that all of this may have.
CUT_S, KILL_S, AGAIN_S, LOAD_S = 12.0, 28.0, 33.0, 48.0
STRETCHES = (
    Stretch("before", 2.0, CUT_S, 0.97),
    Stretch("one host cut off for 5 s", CUT_S, CUT_S + PARTITION_S, 0.90),
    Stretch("after, while it comes back", CUT_S + PARTITION_S, KILL_S, 0.97),
    Stretch("a worker killed, for 5 s", KILL_S, AGAIN_S, 0.90),
    Stretch("after, while it starts again", AGAIN_S, LOAD_S, 0.95),
)


class Missed(Exception):
    """A bar, or an answer."""


def main() -> int:
    try:
        check()
        with (
            tempfile.TemporaryDirectory(prefix="remontoir-net-") as scratch,
            hosts(ADDRESSES, delay_ms=DELAY_MS, loss=LOSS) as stage,
        ):
            play(stage, Path(scratch))
    except LeftOut as why:
        print(f"e2e-net: left out: {why}")
    except Missed as what:
        print(f"e2e-net: missed: {what}", file=sys.stderr)
        return 1
    return 0


def play(stage: Hosts, home: Path) -> None:
    make_keys = [sys.executable, "-m", "gateway", "keys", "curve", "--into", str(home / "keys")]
    subprocess.run(make_keys, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, env=environment())
    with contextlib.ExitStack() as life:
        log = GatewayLog(home / "gateway.log")
        gateway = life.enter_context(process(gateway_command(stage, home), log.file))
        workers = {
            name: life.enter_context(process(worker_command(stage, home, name), home / name))
            for name in WORKERS
        }
        log.wait_for_workers()
        say(f"three workers joined over {DELAY_MS:g} ms each way, {LOSS:.0%} loss, CURVE")
        shots, healed_s = under_load(stage, home, log, workers, life)
        report(shots, healed_s)
        log.wait_for_workers()
        rejoin(stage, home, gateway, life)


def under_load(
    stage: Hosts,
    home: Path,
    log: "GatewayLog",
    workers: dict[str, "subprocess.Popen[bytes]"],
    life: contextlib.ExitStack,
) -> tuple[list[tuple[float, float, int]], float]:
    """(scheduled at, answered at, status) of each request, in seconds of the load; and how long
    after the network was back the worker was that had been cut off.
    """
    out = home / "shots.json"
    load = [*stage.exec_in("gw"), sys.executable, str(ROOT / "tests/e2e/net_load.py")]
    load += [str(PORT), str(RATE), str(LOAD_S), MODELS, str(SLO_MS), str(out)]
    with process(load, home / "load.log") as driver:
        begin_s = time.monotonic()
        wait_until(begin_s + CUT_S)
        stage.cut("w2")
        say("w2 is cut off")
        wait_until(begin_s + CUT_S + PARTITION_S)
        stage.heal("w2")
        at_s = time.time()
        healed_s = log.wait_for_workers()["w2"] - at_s
        say(f"w2 is connected, and had joined again {healed_s:.2f} s later")
        wait_until(begin_s + KILL_S)
        workers["w3"].kill()
        say("w3 is killed")
        wait_until(begin_s + AGAIN_S)
        life.enter_context(process(worker_command(stage, home, "w3"), home / "w3-again"))
        code = driver.wait(LOAD_S + START_S)
    if code:
        raise Missed(f"the load ended with {code}: {(home / 'load.log').read_text()[-500:]}")
    told = json.loads(out.read_text())
    for at, _, status, trouble in told:
        if not status:
            say(f"no answer to a request of {at / 1e9 - begin_s:.2f} s: {trouble}")
    shots = [(at / 1e9 - begin_s, done / 1e9 - begin_s, status) for at, done, status, _ in told]
    return shots, healed_s


def report(shots: list[tuple[float, float, int]], healed_s: float) -> None:
    """Prints the table. Raises Missed."""
    missed = []
    print(f"\n{'':32}{'sent':>6}{'in time':>9}{'bar':>7}{'refused':>9}{'late':>6}{'silent':>8}")
    for stretch in STRETCHES:
        of = [shot for shot in shots if stretch.begin_s <= shot[0] < stretch.end_s]
        in_time = sum(s == 200 and done - at <= SLO_MS / 1000 for at, done, s in of)
        silent = sum(status == 0 for _, _, status in of)
        refused = sum(status in (429, 503) for _, _, status in of)
        late = len(of) - in_time - silent - refused
        share = in_time / max(1, len(of))
        print(
            f"{stretch.name:32}{len(of):6}{share:9.1%}{stretch.bar:7.0%}"
            f"{refused:9}{late:6}{silent:8}"
        )
        if share < stretch.bar:
            missed.append(f"{stretch.name}: {share:.1%} in time, the bar is {stretch.bar:.0%}")
    silent = sum(status == 0 for _, _, status in shots)
    slowest_s = max(done - at for at, done, status in shots if status)
    print(f"{len(shots)} sent, {silent} without an answer, the slowest after {slowest_s:.2f} s\n")
    if silent:
        missed.append(f"{silent} requests were not answered")
    if healed_s > HEALED_WITHIN_S:
        missed.append(f"w2 was back after {healed_s:.2f} s, the bar is {HEALED_WITHIN_S:g} s")
    if missed:
        raise Missed("; ".join(missed))


def rejoin(
    stage: Hosts, home: Path, gateway: "subprocess.Popen[bytes]", life: contextlib.ExitStack
) -> None:
    """The gateway crashes and is started again. Raises Missed."""
    loaded = metric(stage, "loads_total")
    gateway.kill()
    gateway.wait()
    killed_s = time.time()
    log = GatewayLog(home / "gateway-again.log")
    life.enter_context(process(gateway_command(stage, home), log.file))
    joined_s = log.wait_for_workers()
    knows_s = log.instant_of("models are known")
    took_s = sorted(at_s - knows_s for at_s in joined_s.values())
    told = ", ".join(f"{seconds:.2f}" for seconds in took_s)
    say(
        f"the gateway was killed and started again, and knew its models {knows_s - killed_s:.1f} s "
        f"later: {told} s after that its workers had joined, with "
        f"{metric(stage, 'loads_total'):.0f} LOADs ({loaded:.0f} before)"
    )
    if took_s[-1] > BACK_WITHIN_S:
        raise Missed(f"workers were back after {told} s, the bar is {BACK_WITHIN_S:g} s")
    if metric(stage, "loads_total"):
        raise Missed("weights were loaded again, and had been there")


class GatewayLog:
    """What the gateway says, and when, on the clock of `time.time`. It costs the machine nothing to
    look there, while requests are timed.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def wait_for_workers(self) -> dict[str, float]:
        """When each had joined that has not been lost since. Raises Missed."""
        guard_s = time.monotonic() + START_S
        while not (joined_s := self._members()).keys() >= set(WORKERS):
            if time.monotonic() > guard_s:
                told = ", ".join(joined_s) or "none"
                raise Missed(f"within {START_S:g} s, of {', '.join(WORKERS)} there is {told}")
            time.sleep(0.05)
        return joined_s

    def instant_of(self, text: str) -> float:
        return next(at_s for at_s, said in self._lines() if text in said)

    def _members(self) -> dict[str, float]:
        members: dict[str, float] = {}  # by worker id, which is never used again
        for at_s, said in self._lines():
            if found := JOINED.match(said):
                members[found[1]] = at_s
            elif found := LOST.match(said):
                members.pop(found[1], None)
        return {worker_id.partition("#")[0]: at_s for worker_id, at_s in members.items()}

    def _lines(self) -> list[tuple[float, str]]:
        lines = self.file.read_text().splitlines(keepends=True) if self.file.exists() else []
        entries = [json.loads(line) for line in lines if line[0] == "{" and line[-1] == "\n"]
        return [
            (datetime.fromisoformat(entry["timestamp"]).timestamp(), entry["message"])
            for entry in entries
        ]


def gateway_command(stage: Hosts, home: Path) -> list[str]:
    command = [*stage.exec_in("gw"), sys.executable, "-m", "gateway", "serve"]
    command += ["--emulate", EMULATION, "--workers", "0", "--worker-bind", DOOR]
    command += ["--curve-keys", str(home / "keys" / "gateway"), "--port", str(PORT)]
    return [*command, "--drain-s", "0", "--log-level", "info", "--log-format", "json"]


def worker_command(stage: Hosts, home: Path, name: str) -> list[str]:
    command = [*stage.exec_in(name), sys.executable, "-m", "gateway", "worker"]
    command += ["--connect", DOOR, "--emulate", EMULATION, "--name", name]
    return [*command, "--curve-keys", str(home / "keys" / "worker")]


@contextlib.contextmanager
def process(command: list[str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as output:
        started = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=output, stderr=output
        )
        try:
            yield started
        finally:
            started.kill()
            started.wait()


def ask(stage: Hosts, path: str) -> str:
    """The body, "" where nobody answers: sockets of a namespace are its processes'."""
    script = (
        "import sys, urllib.error, urllib.request\n"
        "try: print(urllib.request.urlopen(sys.argv[1], timeout=2).read().decode())\n"
        "except urllib.error.HTTPError as error: print(error.read().decode())\n"
        "except OSError: pass"
    )
    url = f"http://127.0.0.1:{PORT}{path}"
    command = [*stage.exec_in("gw"), sys.executable, "-S", "-c", script, url]
    return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout


def metric(stage: Hosts, name: str, labels: str = "") -> float:
    lines = ask(stage, "/metrics").splitlines()
    begin = f"remontoir_{name}{labels}"
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(begin))


def wait_until(at_s: float) -> None:
    time.sleep(max(0.0, at_s - time.monotonic()))


def say(text: str) -> None:
    print(f"e2e-net: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
