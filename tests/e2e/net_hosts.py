"""Hosts that are network namespaces, and a network between them that delays, loses and parts.

The network is a process of this file: each namespace has a TUN device, whose packets it reads and
hands on to the one they are for. That needs no netem, which many kernels are built without, and
nothing but root, iproute2 and /dev/net/tun. Delay is one way; loss is of packets.

    python tests/e2e/net_hosts.py DELAY_MS LOSS NAME=ADDRESS...

reads `cut NAME` and `heal NAME` from its input.
"""

import contextlib
import ctypes
import fcntl
import heapq
import os
import random
import select
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.e2e.tools import LeftOut

DEVICE = "rmt0"
TUN = Path("/dev/net/tun")
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 1, 0x1000
_CLONE_NEWNET = 0x40000000
_DESTINATION = slice(16, 20)  # of an IPv4 header


class Hosts:
    """`exec_in(name)` is what a command begins with to run there."""

    def __init__(self, prefix: str, network: "subprocess.Popen[str]") -> None:
        self._prefix = prefix
        self._network = network

    def exec_in(self, name: str) -> list[str]:
        return ["ip", "netns", "exec", f"{self._prefix}{name}"]

    def cut(self, name: str) -> None:
        """Nothing gets to the host any more, nor from it."""
        self._tell(f"cut {name}")

    def heal(self, name: str) -> None:
        self._tell(f"heal {name}")

    def _tell(self, line: str) -> None:
        assert self._network.stdin is not None
        self._network.stdin.write(line + "\n")
        self._network.stdin.flush()


def check() -> None:
    """Raises LeftOut where namespaces cannot be made."""
    if os.geteuid() != 0:
        raise LeftOut("network namespaces need root")
    if shutil.which("ip") is None and shutil.which("apt-get"):
        install = ["apt-get", "-qq", "install", "--no-install-recommends", "-y", "iproute2"]
        subprocess.run(install, check=False, timeout=300)
    if shutil.which("ip") is None:
        raise LeftOut("there is no `ip`: install iproute2")
    if not TUN.exists():
        raise LeftOut(f"there is no {TUN}")
    tried = f"rmt-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", tried], capture_output=True, text=True)
    if made.returncode:
        raise LeftOut(f"no network namespaces here: {made.stderr.strip()}")
    subprocess.run(["ip", "netns", "delete", tried], check=True)


@contextlib.contextmanager
def hosts(addresses: Mapping[str, str], *, delay_ms: float, loss: float) -> Iterator[Hosts]:
    """`addresses` are IPv4, in one /24, by name."""
    prefix = f"rmt{os.getpid()}-"
    network: subprocess.Popen[str] | None = None
    try:
        for name in addresses:
            _ip("netns", "add", prefix + name)
        told = [f"{prefix}{name}={address}" for name, address in addresses.items()]
        network = subprocess.Popen(
            [sys.executable, __file__, str(delay_ms), str(loss), *told],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert network.stdout is not None
        if network.stdout.readline().strip() != "up":
            raise LeftOut(f"no TUN devices here: the network ended with {network.wait()}")
        for name, address in addresses.items():
            inside = ("-n", prefix + name)
            _ip(*inside, "address", "add", f"{address}/24", "dev", DEVICE)
            _ip(*inside, "link", "set", DEVICE, "up")
            _ip(*inside, "link", "set", "lo", "up")
        yield Hosts(prefix, network)
    finally:
        if network is not None:
            network.kill()
            network.communicate()
        for name in addresses:
            subprocess.run(["ip", "netns", "delete", prefix + name], capture_output=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


class Network:
    """Packets on their way, in the order in which they arrive."""

    def __init__(self, delay_s: float, loss: float, addresses: Mapping[str, str]) -> None:
        self._delay_s = delay_s
        self._loss = loss
        self._chance = random.Random(1)
        self._names: dict[int, str] = {}
        self._ends: dict[bytes, int] = {}
        for namespace, address in addresses.items():
            end = _tun_in(namespace)
            self._names[end] = namespace.partition("-")[2]
            self._ends[socket.inet_aton(address)] = end
        self._cut: set[str] = set()
        self._underway: list[tuple[float, int, int, bytes]] = []
        self._num_packets = 0

    def run(self) -> None:
        while True:
            self._deliver(time.monotonic())
            due_s = self._underway[0][0] - time.monotonic() if self._underway else 1.0
            ready, _, _ = select.select([sys.stdin, *self._names], [], [], max(0.0, due_s))
            for source in ready:
                if source is sys.stdin:
                    word, _, name = sys.stdin.readline().strip().partition(" ")
                    if not word:
                        return
                    (self._cut.add if word == "cut" else self._cut.discard)(name)
                else:
                    self._take(source)

    def _deliver(self, now_s: float) -> None:
        while self._underway and self._underway[0][0] <= now_s:
            _, _, end, packet = heapq.heappop(self._underway)
            if self._names[end] not in self._cut:
                with contextlib.suppress(OSError):  # its device is down
                    os.write(end, packet)

    def _take(self, source: int) -> None:
        for _ in range(64):
            try:
                packet = os.read(source, 65536)
            except OSError:
                return
            end = self._ends.get(packet[_DESTINATION])
            if end is None or self._names[source] in self._cut:
                continue
            if self._chance.random() < self._loss:
                continue
            self._num_packets += 1
            due_s = time.monotonic() + self._delay_s
            heapq.heappush(self._underway, (due_s, self._num_packets, end, packet))


def _tun_in(namespace: str) -> int:
    """A TUN device in a namespace, which this thread then leaves again."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/self/ns/net") as ours, open(f"/var/run/netns/{namespace}") as theirs:
        if libc.setns(theirs.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {namespace}")
        end = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
        libc.setns(ours.fileno(), _CLONE_NEWNET)
    return end


def main() -> int:
    delay_ms, loss, *told = sys.argv[1:]
    addresses = dict(text.split("=", 1) for text in told)
    network = Network(float(delay_ms) / 1000, float(loss), addresses)
    print("up", flush=True)
    network.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
