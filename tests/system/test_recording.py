"""A gateway that records: what it did runs again to the bit, and every answer can be explained."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from scheduler.event_log import Entry, Handled
from scheduler.recording import Recording
from tests.gateway.running import ROOT, environment, running_gateway
from tests.system.clients import Connection, bytes_body, infer_body, metric, play
from tests.system.puppets import EMULATION
from tests.system.stages import until

MODEL = "cifar_wideresnet16_10"  # 1.3 ms
NEVER_MS = 0.5
FLAGS = ("--emulate", f"{EMULATION}:1", "--drain-s", "0")


def remontoir(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "gateway", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )


def test_what_was_recorded_runs_again_and_can_be_explained(tmp_path: Path) -> None:
    file = tmp_path / "day.rec"
    with running_gateway(*FLAGS, "--record", str(file), scratch=tmp_path) as gateway:
        until(lambda: metric(gateway.url, "worker_up") == 1, "the worker joins")

        async def story() -> None:
            crowd = [await Connection.open(gateway.url) for _ in range(30)]
            for number, connection in enumerate(crowd):
                slo_ms = NEVER_MS if number % 10 == 9 else 5_000
                body = bytes_body(MODEL, slo_ms=slo_ms)
                connection.send(body, headers=f"x-request-id: mine-{number}\r\n")
            verdicts = [(await connection.answer()).verdict for connection in crowd]
            for connection in crowd:
                connection.close()
            assert verdicts.count("200") == 27
            assert verdicts[9] == "422 slo_infeasible_ever"
            await _upload_that_is_refused_early(gateway.url)
            hasty = await Connection.open(gateway.url)
            hasty.send(bytes_body(MODEL), headers="x-request-id: hasty\r\n")
            hasty.close()

        play(story)
        gateway.process.send_signal(signal.SIGTERM)
        exit_code, _ = gateway.wait()
        assert exit_code == 0

    replayed = remontoir("replay", file)
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    assert replayed.stdout.startswith("All equal: ")
    assert "and 1 early look at an upload; " in replayed.stdout
    assert "lost" not in replayed.stdout  # its end is there

    other = remontoir("replay", file, "--policy", "fifo", "--seed", "2")
    assert other.returncode == 0, other.stderr
    assert "Instead: fifo." in other.stdout

    served = remontoir("explain", file, "mine-0").stdout
    assert served.startswith("Request 1 of cifar_wideresnet16_10, 1 row, arrived ")
    assert "It was served " in served
    assert ": good, with " in served
    refused = remontoir("explain", file, "mine-9").stdout
    assert "(slo_infeasible_ever): SLO 0.500 ms, cifar_wideresnet16_10 takes " in refused
    early = remontoir("explain", file, "upload").stdout
    assert "before its body was read (slo_infeasible_ever)" in early
    listed = remontoir("explain", file, "--list", "--refused").stdout
    assert {line.split()[-1] for line in listed.splitlines()[1:]} == {
        "mine-9", "mine-19", "mine-29", "upload",
    }  # fmt: skip


async def _upload_that_is_refused_early(url: str) -> None:
    """The header is there, 100 kB are not."""
    tensor = {
        "name": "x",
        "shape": [1, 100_000],
        "datatype": "UINT8",
        "parameters": {"binary_data_size": 100_000},
    }
    header = infer_body(MODEL, [tensor], slo_ms=NEVER_MS)
    connection = await Connection.open(url)
    connection.send(
        header,
        length=len(header) + 100_000,
        headers=f"x-request-id: upload\r\nInference-Header-Content-Length: {len(header)}\r\n",
    )
    assert (await connection.answer()).verdict == "422 slo_infeasible_ever"
    connection.close()


def test_a_recording_survives_its_gateway(tmp_path: Path) -> None:
    """Killed, the file holds all but the last second, and runs again as far as that."""
    file = tmp_path / "day.rec"
    with running_gateway(*FLAGS, "--record", str(file), scratch=tmp_path) as gateway:
        until(lambda: metric(gateway.url, "worker_up") == 1, "the worker joins")

        async def story() -> None:
            connection = await Connection.open(gateway.url)
            assert (await connection.ask(bytes_body(MODEL, slo_ms=5_000))).verdict == "200"
            connection.close()

        play(story)
        until(lambda: _num_replies(file) == 1, "the answer is in the file")
        gateway.process.kill()
        gateway.wait()
    replayed = remontoir("replay", file)
    assert replayed.returncode == 1, replayed.stdout + replayed.stderr
    assert replayed.stdout.startswith(f"{file}: it does not end in order")
    assert "Equal as far as it goes: " in replayed.stdout
    assert "1 request in " in replayed.stdout


def _num_replies(file: Path) -> int:
    entries: list[Entry] = list(Recording([file.read_bytes()]))
    return sum(
        type(command).__name__ == "Reply"
        for entry in entries
        if isinstance(entry, Handled)
        for command in entry.commands or ()
    )


def test_a_file_that_cannot_be_written_any_more_does_not_stop_the_serving(tmp_path: Path) -> None:
    """A pipe whose reader goes away stands for a disk that fails."""
    file = tmp_path / "day.rec"
    os.mkfifo(file)
    reader = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    with running_gateway(*FLAGS, "--record", str(file), scratch=tmp_path) as gateway:
        os.close(reader)
        until(lambda: metric(gateway.url, "worker_up") == 1, "the worker joins")

        async def story() -> None:
            connection = await Connection.open(gateway.url)
            for _ in range(3):
                assert (await connection.ask(bytes_body(MODEL, slo_ms=5_000))).verdict == "200"
            connection.close()

        play(story)
        gateway.process.send_signal(signal.SIGTERM)
        exit_code, output = gateway.wait()
    assert exit_code == 0
    assert output.count(f"recording {file} stops: [Errno 32] Broken pipe") == 1


def test_a_file_that_cannot_be_made_is_said_before_anything_starts(tmp_path: Path) -> None:
    done = remontoir("serve", *FLAGS, "--port", "0", "--record", tmp_path / "none" / "r")
    assert done.returncode == 2
    assert f"--record {tmp_path}/none/r: No such file or directory" in done.stderr
    assert list(tmp_path.iterdir()) == []
