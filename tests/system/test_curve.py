"""Gateway and workers as processes, over TCP with CURVE: a known key, an unknown one, none."""

import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.gateway.running import ROOT, environment, running_gateway
from tests.system.clients import is_ready, metric
from tests.system.stages import until

COMMAND = (sys.executable, "-m", "gateway")


class Joining:
    """`remontoir worker`, and what it says."""

    def __init__(self, address: str, log: Path, name: str, *more: str) -> None:
        self.log = log
        command = [*COMMAND, "worker", "--connect", address, "--emulate", "clockwork-v100"]
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                [*command, "--name", name, *more],
                cwd=ROOT,
                env=environment(),
                stdout=stream,
                stderr=stream,
            )

    def has_said(self, text: str) -> bool:
        return text in self.log.read_text()

    def says(self, text: str) -> None:
        """Waits for it."""
        try:
            until(lambda: self.has_said(text), f"{text!r}")
        except AssertionError as error:
            raise AssertionError(f"{error}, but: {self.log.read_text() or 'nothing'}") from None


@contextmanager
def ended(*workers: Joining) -> Iterator[None]:
    try:
        yield
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.wait()


def remontoir(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True
    )


def test_only_a_known_key_comes_in_and_goes_when_it_is_taken_away(tmp_path: Path) -> None:
    keys, others = tmp_path / "keys", tmp_path / "others"
    for directory in (keys, others):
        made = remontoir("keys", "curve", "--into", str(directory), "--worker", "rack-1")
        assert f"--curve-keys {directory}/rack-1" in made.stdout, made.stderr
    shutil.copy(keys / "rack-1" / "gateway.key", others / "rack-1")  # public: it knows the gateway
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    flags = ("--emulate", "clockwork-v100", "--workers", "0", "--worker-bind", address)
    flags += ("--curve-keys", str(keys / "gateway"), "--drain-s", "0")
    with running_gateway(*flags, scratch=tmp_path / "gateway") as gateway:
        keyless = Joining(address, tmp_path / "keyless.log", "keyless")
        unknown = Joining(
            address, tmp_path / "unknown.log", "unknown", "--curve-keys", str(others / "rack-1")
        )
        with ended(keyless, unknown):
            keyless.says(
                "it wants CURVE keys"
            )  # whether it reads so, or guesses at a broken handshake
            unknown.says("does not know this worker's public key")
            assert not is_ready(gateway.url)
            known = Joining(
                address, tmp_path / "known.log", "known", "--curve-keys", str(keys / "rack-1")
            )
            with ended(known):
                until(lambda: is_ready(gateway.url), "the known worker joins")
                assert keyless.process.poll() is unknown.process.poll() is None  # they try on
                refused = "worker_connections_refused_total"
                assert metric(gateway.url, refused, reason="unknown_key") >= 1
                (keys / "gateway" / "workers" / "rack-1.key").unlink()
                gateway.process.send_signal(signal.SIGHUP)
                assert known.process.wait(timeout=30) == 3
                assert known.has_said("any more")
                until(lambda: not is_ready(gateway.url), "the gateway has no worker")


def test_an_open_door_to_other_machines_has_to_be_asked_for(tmp_path: Path) -> None:
    flags = ("serve", "--port", "0", "--emulate", "clockwork-v100")
    flags += ("--worker-bind", "tcp://0.0.0.0:0")
    refused = remontoir(*flags)
    assert refused.returncode == 2
    assert "whoever reaches it could join as a worker" in refused.stderr
    assert "`remontoir keys curve --into keys`" in refused.stderr
    missing = remontoir(*flags, "--curve-keys", str(tmp_path))
    assert missing.returncode == 2
    assert "gateway.key_secret: no such file" in missing.stderr
