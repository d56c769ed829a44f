"""A gateway and three workers on four hosts, over a bad network: `make e2e-net`.

The hosts are network namespaces; 10 ms each way, 1 % of packets lost, CURVE on. Under a steady load
one host is cut off for five seconds, one worker is killed and started again, and the gateway is
killed and started again. Printed is what share of the requests of each stretch was answered within
its SLO, who was not answered at all, and how fast workers were back. The exit code is 1 where a bar
is missed. Needs root, iproute2 and /dev/net/tun, two minutes, and no network of this machine's;
devices are emulated. Says so, and ends with 0, where it may not.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
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
# After their gateway knows its models again: half of the workers, and all. A TCP handshake whose
# first packet is lost is tried anew after a second.
BACK_WITHIN_S, ALL_BACK_WITHIN_S = 1.0, 3.0


class Stretch(NamedTuple):
    """From `begin_s` to `end_s` of the load; `bar` is the least share in time."""

    name: str
    begin_s: float
    end_s: float
    bar: float


# A worker that is cut off is lost after one second, with a third of the requests of that second
# and of those that had been sent to it; one that is killed is missed at once.
CUT_S, KILL_S, AGAIN_S, LOAD_S = 12.0, 28.0, 33.0, 48.0
STRETCHES = (
    Stretch("before", 2.0, CUT_S, 0.95),
    Stretch("one host cut off for 5 s", CUT_S, CUT_S + PARTITION_S, 0.85),
    Stretch("after, while it comes back", CUT_S + PARTITION_S, KILL_S, 0.95),
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
        gateway = life.enter_context(process(gateway_command(stage, home), home / "gateway.log"))
        workers = {
            name: life.enter_context(process(worker_command(stage, home, name), home / name))
            for name in WORKERS
        }
        wait_for_workers(stage, WORKERS)
        say(f"three workers joined over {DELAY_MS:g} ms each way, {LOSS:.0%} loss, CURVE")
        shots = under_load(stage, home, workers, life)
        report(shots)
        rejoin(stage, home, gateway, life)


def under_load(
    stage: Hosts,
    home: Path,
    workers: dict[str, "subprocess.Popen[bytes]"],
    life: contextlib.ExitStack,
) -> list[tuple[float, float, int]]:
    """(scheduled at, answered at, status) of each request, in seconds of the load."""
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
        healed_s = time.monotonic()
        wait_for_workers(stage, WORKERS)
        say(f"w2 is connected, and had joined again {time.monotonic() - healed_s:.1f} s later")
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
    return [(at / 1e9 - begin_s, done / 1e9 - begin_s, status) for at, done, status, _ in told]


def report(shots: list[tuple[float, float, int]]) -> None:
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
    if missed:
        raise Missed("; ".join(missed))


def rejoin(
    stage: Hosts, home: Path, gateway: "subprocess.Popen[bytes]", life: contextlib.ExitStack
) -> None:
    """The gateway crashes and is started again. Raises Missed."""
    wait_for_workers(stage, WORKERS)
    loaded = metric(stage, "loads_total")
    gateway.kill()
    gateway.wait()
    life.enter_context(process(gateway_command(stage, home), home / "gateway-again.log"))
    guard_s = time.monotonic() + START_S
    while "no_worker" not in (page := ask(stage, "/readyz")) and '"ready":true' not in page:
        if time.monotonic() > guard_s:
            raise Missed(f"the gateway does not start again, see {home}")
        time.sleep(0.01)
    knows_s = time.monotonic()
    took_s = [at_s - knows_s for at_s in wait_for_workers(stage, WORKERS)]
    told = ", ".join(f"{seconds:.2f}" for seconds in took_s)
    say(
        f"the gateway was killed and started again: {told} s after it knew its models its workers "
        f"had joined, with {metric(stage, 'loads_total'):.0f} LOADs ({loaded:.0f} before)"
    )
    if took_s[len(took_s) // 2] > BACK_WITHIN_S or took_s[-1] > ALL_BACK_WITHIN_S:
        bars = f"{BACK_WITHIN_S:g} s for half of them, {ALL_BACK_WITHIN_S:g} s for all"
        raise Missed(f"workers were back after {told} s, the bars are {bars}")


def gateway_command(stage: Hosts, home: Path) -> list[str]:
    command = [*stage.exec_in("gw"), sys.executable, "-m", "gateway", "serve"]
    command += ["--emulate", EMULATION, "--workers", "0", "--worker-bind", DOOR]
    command += ["--curve-keys", str(home / "keys" / "gateway"), "--port", str(PORT)]
    return [*command, "--drain-s", "0", "--log-level", "info"]


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


def wait_for_workers(stage: Hosts, names: tuple[str, ...]) -> list[float]:
    """When each was first seen to have joined, in that order."""
    guard_s = time.monotonic() + START_S
    seen: dict[str, float] = {}
    while True:
        page = ask(stage, "/metrics")
        for name in names:
            if f'remontoir_worker_up{{worker="{name}"}} 1' in page:
                seen.setdefault(name, time.monotonic())
        if len(seen) == len(names):
            return sorted(seen.values())
        if time.monotonic() > guard_s:
            raise Missed(f"not all of {', '.join(names)} have joined within {START_S:g} s")
        time.sleep(0.02)


def wait_until(at_s: float) -> None:
    time.sleep(max(0.0, at_s - time.monotonic()))


def say(text: str) -> None:
    print(f"e2e-net: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
