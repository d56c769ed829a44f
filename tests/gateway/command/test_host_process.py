"""What `serve` asks of the machine, where the command line's tests do not reach."""

import errno
import resource
import socket
import tempfile
from pathlib import Path

import pytest

from gateway.command import host_process
from gateway.command.host_process import Emulation, ServeError
from gateway.config import GatewayConfig
from gateway.variants.groups_file import parse_groups


def test_an_emulation_has_a_name_and_a_number_of_devices() -> None:
    assert host_process.emulation_of(GatewayConfig()) is None
    four = GatewayConfig(emulate="clockwork-v100:4")
    assert host_process.emulation_of(four) == Emulation("clockwork-v100", 4)
    as_workers = GatewayConfig(emulate="clockwork-v100", workers=0)
    assert host_process.emulation_of(as_workers) == Emulation("clockwork-v100", 0)


@pytest.mark.parametrize("text", [":4", "x:", "x:0", "x:-1", "x:1025", "x:four", ""])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ServeError, match="expected NAME:N"):
        host_process.emulation_of(GatewayConfig(emulate=text))


def test_a_port_is_taken_from_the_moment_we_listen() -> None:
    with host_process.listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ServeError, match=f"port {port} of 127.0.0.1 is in use"):
            host_process.listen("127.0.0.1", port)
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass


def test_a_host_that_is_not_ours_is_named() -> None:
    with pytest.raises(ServeError, match=r"^cannot listen on 192\.0\.2\.1 port 0: ") as caught:
        host_process.listen("192.0.2.1", 0, for_anybody=True)  # an address of documentation only
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EADDRNOTAVAIL


def test_the_private_directory_is_ours_alone_and_goes() -> None:
    with host_process.private_directory() as directory:
        assert directory.stat().st_mode & 0o777 == 0o700
        (directory / "workers").touch()
    assert not directory.exists()


def test_the_private_directory_is_short_enough_for_a_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with (
        host_process.private_directory() as directory,
        socket.socket(socket.AF_UNIX) as unix_socket,
    ):
        unix_socket.bind(str(directory / "workers"))


def test_compiled_models_are_kept_in_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert host_process.cache_dir(GatewayConfig()) == Path("/x/remontoir")
    assert host_process.cache_dir(GatewayConfig(cache_dir="/y")) == Path("/y")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert host_process.cache_dir(GatewayConfig()) == Path.home() / ".cache" / "remontoir"


def test_as_many_files_may_be_open_as_the_system_allows() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, before[1]), before[1]))
        host_process.raise_open_files_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_policy_is_checked_before_anything_starts() -> None:
    config = GatewayConfig(policy="fifo:max_batch=4", schedule_ahead_ms=5)
    assert host_process.policy_of(config).name == "fifo"
    with pytest.raises(ServeError, match="no policy is called 'lifo'; there are remontoir, ") as no:
        host_process.policy_of(GatewayConfig(policy="lifo"))
    assert no.value.exit_code == 2


@pytest.mark.parametrize(
    ("endpoint", "is_ours"),
    [
        ("ipc:///run/workers", True),
        ("tcp://127.0.0.1:7000", True),
        ("tcp://127.8.8.8:7000", True),
        ("tcp://[::1]:7000", True),
        ("tcp://localhost:7000", True),
        ("tcp://0.0.0.0:7000", False),
        ("tcp://*:7000", False),
        ("tcp://[::]:7000", False),
        ("tcp://eth0:7000", False),
        ("tcp://10.0.0.1:7000", False),
        ("tcp://localhost.example:7000", False),
        ("vmci://*:7000", False),
    ],
)
def test_a_door_to_other_machines_needs_keys(endpoint: str, is_ours: bool) -> None:
    assert host_process.is_of_this_machine(endpoint) is is_ours
    config = GatewayConfig(worker_bind=endpoint)
    if is_ours:
        assert host_process.worker_keys_of(config) is None
    else:
        with pytest.raises(ServeError, match="or say --insecure"):
            host_process.worker_keys_of(config)
        insecure = GatewayConfig(worker_bind=endpoint, insecure=True)
        assert host_process.worker_keys_of(insecure) is None


TWO = "g0=http://10.0.0.1:8000,g1=http://10.0.0.2:8000"


def test_a_gateway_is_the_only_one_until_it_is_told_of_others() -> None:
    assert host_process.shards_of(GatewayConfig(), {}) is None
    groups = parse_groups("groups: {task: {members: [m1, m2]}}", source="here")
    shards = host_process.shards_of(GatewayConfig(replica="g1", replicas=TWO), groups)
    assert shards is not None
    assert shards.holders("m1") == shards.holders("m2") == shards.holders("task")
    assert (shards.own_name, shards.copies, list(shards.replicas)) == ("g1", 2, ["g0", "g1"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GatewayConfig(replica="g0"), "--replica g0: of which --replicas?"),
        (GatewayConfig(replicas=TWO), "which is this --replica?"),
        (GatewayConfig(replica="g2", replicas=TWO), "replica 'g2' is not among the replicas: g0, "),
        (GatewayConfig(replica="g0", replicas="g0=10.0.0.1"), "is not NAME=http://HOST:PORT"),
    ],
)
def test_replicas_that_cannot_be_used_are_refused_at_the_start(
    config: GatewayConfig, message: str
) -> None:
    with pytest.raises(ServeError) as caught:
        host_process.shards_of(config, {})
    assert message in str(caught.value)
    assert caught.value.exit_code == 2
