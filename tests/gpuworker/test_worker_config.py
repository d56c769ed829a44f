"""Settings and the command line: what is refused, with which words and exit code."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from gpuworker.__main__ import main
from gpuworker.backend_choice import backend_of
from gpuworker.config import MEBIBYTE, ConfigError, WorkerConfig, default_cache_dir, shards_of
from scheduler import wire
from scheduler.spec import ModelSpec

PATIENCE_S = 60  # only ever waited for in full by a test that fails


def config(**changes: object) -> WorkerConfig:
    sound = WorkerConfig(
        connect="ipc:///somewhere",
        name="w",
        models_dir=Path("models"),
        cache_dir=Path("cache"),
        cache_bytes=64 * MEBIBYTE,
        page_bytes=16 * MEBIBYTE,
    )
    return msgspec.structs.replace(sound, **changes)


@pytest.mark.parametrize("cache_bytes", [63 * MEBIBYTE, None])
def test_a_sound_config(cache_bytes: int | None) -> None:
    config(cache_bytes=cache_bytes).validate()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"connect": "localhost:9000"}, "--connect localhost:9000"),
        ({"name": ""}, "--name must not be empty"),
        ({"models_dir": None}, "--models is needed"),
        ({"page_bytes": 1000}, "a page of 1000 bytes is not a whole number of MiB"),
        ({"cache_bytes": 8 * MEBIBYTE}, "--cache-mb 8 holds no page of --page-mb 16"),
        ({"cpu": 4096}, "--cpu 4096 is not among the usable CPUs"),
        ({"intra_op_threads": 4096}, "--intra-op-threads 4096: this process may use [0-9]+ CPUs"),
        ({"intra_op_threads": 2, "device": "cuda:0"}, "--intra-op-threads 2: cuda:0 has none"),
        ({"intra_op_threads": 2, "emulate": "clockwork-v100"}, "clockwork-v100 has none"),
        ({"intra_op_threads": 2, "cpu": min(os.sched_getaffinity(0))}, "with --cpu [0-9]+ they"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes).validate()


def test_an_emulated_device_needs_no_models() -> None:
    config(models_dir=None, emulate="clockwork-v100").validate()


def test_the_cache_directory_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMONTOIR_CACHE_DIR", "/first")
    monkeypatch.setenv("XDG_CACHE_HOME", "/second")
    assert default_cache_dir() == Path("/first")
    monkeypatch.delenv("REMONTOIR_CACHE_DIR")
    assert default_cache_dir() == Path("/second/remontoir")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert default_cache_dir() == Path("/home/somebody/.cache/remontoir")


def test_the_catalogue_of_an_emulation_is_written_whole(tmp_path: Path) -> None:
    file = tmp_path / "new" / "catalogue.json"
    assert main(["compile", "--emulate", "clockwork-v100", "--catalog-out", str(file)]) == 0
    assert len(msgspec.json.decode(file.read_bytes(), type=list[ModelSpec])) == 64
    assert [path.name for path in file.parent.iterdir()] == ["catalogue.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compile", "--emulate", "h100", "--catalog-out", "x"], "no emulation 'h100'"),
        (["compile", "--catalog-out", "x"], "--models is needed"),
        (
            [
                *("compile", "--emulate", "clockwork-v100", "--catalog-out", "x"),
                *("--intra-op-threads", "2"),
            ],
            "--intra-op-threads 2: clockwork-v100 has none",
        ),
        (
            ["compile", "--emulate", "clockwork-v100", "--catalog-out", "/dev/null/x.json"],
            "--catalog-out /dev/null/x.json: /dev/null is no directory",
        ),
        (
            ["compile", "--emulate", "clockwork-v100", "--catalog-out", "/dev"],
            "--catalog-out /dev: Is a directory",
        ),
    ],
)
def test_unusable_arguments_end_with_one_line_and_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("gpuworker: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["run"], ["compile", "--page-mb", "0"]])
def test_arguments_that_make_no_sense_end_with_the_usage_and_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: python -m gpuworker" in capsys.readouterr().err


def test_a_repository_that_is_not_there_ends_with_one_line_and_code_2(tmp_path: Path) -> None:
    flags = ["--connect", "ipc:///nowhere", "--models", str(tmp_path / "none")]
    ended = subprocess.run(
        [sys.executable, "-m", "gpuworker", "run", *flags],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr == f"gpuworker: --models {tmp_path}/none: no such directory\n"


class Gateway:
    """As much of a gateway as a worker process needs to join."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.linger = 0
        self._router.bind(address)
        self._identity = b""

    def hear(self) -> wire.ToGateway:
        assert self._router.poll(PATIENCE_S * 1000), "the worker says nothing"
        self._identity, header, *_ = self._router.recv_multipart()
        return wire.decode_to_gateway(header)

    def say(self, message: wire.ToWorker) -> None:
        self._router.send_multipart([self._identity, wire.encode(message)])

    def close(self) -> None:
        self._router.close()
        self._context.term()


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    gateway = Gateway(f"ipc://{tmp_path}/workers")
    yield gateway
    gateway.close()


def run_command(gateway: Gateway, *more: str) -> list[str]:
    flags = ["--connect", gateway.address, "--emulate", "clockwork-v100", "--name", "e1", *more]
    return [sys.executable, "-m", "gpuworker", "run", *flags]


def test_an_emulated_worker_joins_and_stops_on_sigterm_without_any_engine(
    gateway: Gateway,
) -> None:
    cpu = min(os.sched_getaffinity(0))
    command = run_command(gateway, "--cache-mb", "160", "--cpu", str(cpu))
    process = subprocess.Popen(command)
    try:
        hello = gateway.hear()
        assert isinstance(hello, wire.Hello)
        assert (hello.name, hello.device.total_pages, len(hello.models)) == ("e1", 10, 64)
        gateway.say(wire.Welcome("e1#1", {}))
        gateway.say(wire.Ping(1))
        assert isinstance(gateway.hear(), wire.Pong)
        assert os.sched_getaffinity(process.pid) == {cpu}
        assert "onnx" not in Path(f"/proc/{process.pid}/maps").read_text()
        process.send_signal(signal.SIGTERM)
        assert isinstance(gateway.hear(), wire.Goodbye)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()


def test_a_worker_whose_parent_died_before_it_could_look_ends_at_once(gateway: Gateway) -> None:
    """Its parent is somebody else by then, as it is here from the start."""
    somebody_else = str(os.getppid())
    command = run_command(gateway, "--die-with-parent", somebody_else)
    assert subprocess.run(command, timeout=PATIENCE_S, check=False).returncode == 0


def test_a_worker_bound_to_its_parent_ignores_ctrl_c_and_follows_the_parents_death(
    gateway: Gateway,
) -> None:
    """A shell starts the worker, tells its pid, and dies when its input ends."""
    script = '"$@" --die-with-parent $$ & echo $!; read line; exit 0'
    command = ["sh", "-c", script, "sh", *run_command(gateway)]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    worker_pid = int(parent.stdout.readline())
    try:
        assert isinstance(gateway.hear(), wire.Hello)
        os.kill(worker_pid, signal.SIGINT)
        gateway.say(wire.Welcome("e1#1", {}))
        gateway.say(wire.Ping(1))
        assert isinstance(gateway.hear(), wire.Pong)
        parent.communicate(timeout=PATIENCE_S)  # ends its input
        assert isinstance(gateway.hear(), wire.Goodbye)
    finally:
        parent.kill()
        parent.wait()
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker_pid, signal.SIGKILL)


TWO = "g0=http://10.0.0.1:8000,g1=http://10.0.0.2:8000"


def compiled_for(replica: str, tmp_path: Path, *flags: str) -> set[str]:
    file = tmp_path / f"{replica}.json"
    command = ["compile", "--emulate", "clockwork-v100", "--catalog-out", str(file)]
    command += ["--replica", replica, "--replicas", TWO, *flags]
    assert main(command) == 0
    return {spec.name for spec in msgspec.json.decode(file.read_bytes(), type=list[ModelSpec])}


def test_of_several_gateways_each_has_models_of_its_own(tmp_path: Path) -> None:
    first = compiled_for("g0", tmp_path, "--replica-copies", "1")
    second = compiled_for("g1", tmp_path, "--replica-copies", "1")
    assert first.isdisjoint(second)
    assert 0.3 < len(first) / len(first | second) < 0.7
    assert compiled_for("g0", tmp_path) == first | second  # of two, each stands in for the other


def test_models_of_a_group_are_with_one_gateway(tmp_path: Path) -> None:
    alone = compiled_for("g0", tmp_path, "--replica-copies", "1")
    apart = [min(alone), min(compiled_for("g0", tmp_path) - alone)]
    told = ("--replica-copies", "1", "--together", "/".join(("task", *apart)))
    for replica in ("g0", "g1"):
        assert len(compiled_for(replica, tmp_path, *told) & set(apart)) in (0, 2)
    with pytest.raises(ConfigError, match="--together: 'task' is not GROUP/MODEL/MODEL"):
        shards_of("g0", TWO, 2, ["task"])


def test_a_worker_of_one_of_several_gateways_makes_its_models_ready(tmp_path: Path) -> None:
    shards = shards_of("g0", TWO, copies=1)
    backend = backend_of(config(models_dir=None, emulate="clockwork-v100", shards=shards))
    assert set(backend.models) == compiled_for("g0", tmp_path, "--replica-copies", "1")


@pytest.mark.parametrize(
    ("replica", "replicas", "message"),
    [
        ("g0", None, "--replica without --replicas"),
        (None, TWO, "--replicas without --replica"),
        ("g2", TWO, "--replicas: replica 'g2' is not among the replicas"),
        ("g0", "g0", "--replicas: 'g0' is not NAME=http://HOST:PORT"),
    ],
)
def test_replicas_that_cannot_be_used_are_named(
    replica: str | None, replicas: str | None, message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        shards_of(replica, replicas, copies=2)
    assert message in str(raised.value)
