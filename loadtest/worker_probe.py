"""A gateway of strings: orders one real worker about, action by action, and reads its results.

Owns the worker's process and the socket. What a LOAD takes shows here to the nanosecond, where a
gateway's metrics have buckets. The wire is the product's own (scheduler.wire).
"""

import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import zmq

from loadtest.machine import on_cpus
from loadtest.messages import Floats
from loadtest.servers import START_TIMEOUT_S, ServerError
from scheduler import wire
from scheduler.actions import (
    Action,
    Code,
    EvictResult,
    EvictWeights,
    Infer,
    InferResult,
    LoadResult,
    LoadWeights,
    Result,
)
from scheduler.spec import SECOND_NS

_R = TypeVar("_R", LoadResult, EvictResult)

REPLY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
PING_INTERVAL_S = 0.5


class WorkerProbe:
    """One worker that has joined. Clocks agree: it runs on this machine."""

    def __init__(
        self, command: str, socket: "zmq.Socket[bytes]", identity: bytes, hello: wire.Hello
    ):
        self.command = command
        self.hello = hello
        self.models = {model.name: model for model in hello.models}
        self._socket = socket
        self._identity = identity
        self._num_actions = 0
        self._results: dict[int, Result] = {}
        self._pinged_s = 0.0
        self.sent_ns = 0  # of the last action
        # Called with the id of each Infer that is answered, wherever the probe is waiting.
        self.on_inferred: Callable[[InferResult], None] = lambda _: None

    def load(self, model: str) -> LoadResult:
        spec = self.models[model]
        num_pages = spec.num_pages(self.hello.device.page_bytes)
        result = self._wait(
            self._send(lambda i, a, z: LoadWeights(i, model, num_pages, a, z, spec.profile.load_ns))
        )
        assert isinstance(result, LoadResult)
        return _checked(result)

    def evict(self, model: str) -> EvictResult:
        result = self._wait(self._send(lambda i, a, z: EvictWeights(i, model, a, z)))
        assert isinstance(result, EvictResult)
        return _checked(result)

    def start_infer(self, model: str, batch: Floats) -> int:
        """Sends and does not wait; the action's id. `on_inferred` hears of the result."""
        data = batch.astype("<f4").tobytes()
        rows = batch.shape[0]
        meta = wire.TensorMeta(batch.shape, len(data))
        return self._send(
            lambda i, a, z: Infer(i, model, rows, (i,), (rows,), a, z, SECOND_NS), (meta,), data
        )

    def wait_for(self, action_id: int) -> Result:
        return self._wait(action_id)

    def pump_until_readable(self, fd: int) -> None:
        """Serve the worker until the file descriptor has something to read."""
        self._pump(lambda ready: fd in ready, fd)

    def _send(
        self,
        build: Callable[[int, int, int], Action],
        tensors: wire.RequestTensors = (),
        data: bytes = b"",
    ) -> int:
        self._num_actions += 1
        now = time.monotonic_ns()
        action = build(self._num_actions, now, now + 60 * SECOND_NS)
        self.sent_ns = now
        order = wire.Order(action, (tensors,) if tensors else ())
        frames = wire.pack_tensors([data]) if tensors else []
        self._socket.send_multipart([self._identity, wire.encode(order), *frames])
        return self._num_actions

    def _wait(self, action_id: int) -> Result:
        self._pump(lambda _: action_id in self._results, None)
        return self._results.pop(action_id)

    def _pump(self, is_done: Callable[[set[int]], bool], fd: int | None) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        if fd is not None:
            poller.register(fd, zmq.POLLIN)
        give_up_s = time.monotonic() + REPLY_TIMEOUT_S
        ready: set[int] = set()
        while not is_done(ready):
            now_s = time.monotonic()
            if now_s > give_up_s:
                raise ServerError(f"the worker was silent for {REPLY_TIMEOUT_S:.0f} s")
            if now_s - self._pinged_s > PING_INTERVAL_S:
                ping = wire.Ping(time.monotonic_ns())
                self._socket.send_multipart([self._identity, wire.encode(ping)])
                self._pinged_s = now_s
            polled = poller.poll(100)
            ready = {which for which, _ in polled if isinstance(which, int)}
            if any(which is self._socket for which, _ in polled):
                self._receive()

    def _receive(self) -> None:
        _, header, *_ = self._socket.recv_multipart()
        message = wire.decode_to_gateway(header)
        if isinstance(message, wire.Report):
            if isinstance(message.result, InferResult):
                self.on_inferred(message.result)
            self._results[message.result.action_id] = message.result
        elif isinstance(message, wire.Unreadable | wire.Goodbye | wire.Hello):
            raise ServerError(f"the worker said {message}")


@contextlib.contextmanager
def worker(
    models: Path, *, cache_dir: Path, cache_mb: int, cpus: str, log_dir: Path
) -> Iterator[WorkerProbe]:
    """Starts a worker on the given cores; it has joined, with nothing resident."""
    log_dir.mkdir(parents=True, exist_ok=True)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with (
        tempfile.TemporaryDirectory(prefix="loadtest-") as directory,
        contextlib.closing(context.socket(zmq.ROUTER)) as socket,
        (log_dir / "worker.log").open("wb") as log,
    ):
        socket.linger = 0
        address = f"ipc://{directory}/workers"
        socket.bind(address)
        command = [sys.executable, "-m", "gpuworker", "run", "--connect", address]
        command += ["--models", str(models), "--cache-dir", str(cache_dir), "--name", "probe"]
        command += ["--cache-mb", str(cache_mb)]
        pinned = on_cpus(cpus, command)
        root = Path(__file__).parent.parent
        process = subprocess.Popen(
            pinned, cwd=root, env=os.environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            identity, hello = _welcome(socket, process)
            yield WorkerProbe(shlex.join(pinned), socket, identity, hello)
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    context.term()


def _welcome(
    socket: "zmq.Socket[bytes]", process: "subprocess.Popen[bytes]"
) -> tuple[bytes, wire.Hello]:
    give_up_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < give_up_s:
        if process.poll() is not None:
            raise ServerError(f"the worker ended with {process.returncode} before it joined")
        if not socket.poll(100):
            continue
        identity, header = socket.recv_multipart()[:2]
        message = wire.decode_to_gateway(header)
        if isinstance(message, wire.Hello):
            socket.send_multipart([identity, wire.encode(wire.Welcome("probe#1", {}))])
            return identity, message
    raise ServerError(f"the worker did not join in {START_TIMEOUT_S:.0f} s")


def _checked(result: _R) -> _R:
    if result.code is not Code.OK:
        raise ServerError(f"the worker answered {result.code.name}: {result.message}")
    return result
