"""Other servers beside ours: plans, settings, requests, the page; and one of them for real.

The real one is plain FastAPI, which our own environment can run; the others need a network first
(`remontoir bench peers check`).
"""

import base64
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from loadtest.analysis.cell import Cell
from loadtest.driver.job_file import parse
from loadtest.driver.results_db import ResultsDatabase
from loadtest.driver.run import Progress, run_job
from loadtest.http1 import Shot
from loadtest.peers import environments, plan
from loadtest.peers.check import check
from loadtest.peers.environments import MissingPeer
from loadtest.peers.launch import launched
from loadtest.peers.page import key, page
from loadtest.peers.peer import Peer, Tuning, Wire, config_json, tuning
from loadtest.peers.plan import DEFAULT, OURS, TUNED, left_to_do, point, sessions
from loadtest.peers.registry import PEERS
from loadtest.peers.stage import Stage, staged
from loadtest.peers.wires import reader, request
from loadtest.reference import Loop
from tests.processes import is_alive

BY_NAME = {peer.name: peer for peer in PEERS}
# Batches cost a little less than they have rows.
LOOPS = {
    name: {n: Loop(n, 950 * n / ms, ms * n, ms * n) for n in (1, 2, 4, 8)}
    for name, ms in (("fast", 3.0), ("slow", 30.0))
}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return staged(tmp_path_factory.mktemp("models"))


def _tuning(stage: Stage, slo: float = 5.0, is_tuned: bool = True) -> Tuning:
    return tuning(stage.paths, LOOPS, slo_executions=slo, is_tuned=is_tuned)


def test_settings_follow_from_the_slo_and_what_executions_take(stage: Stage) -> None:
    tuned = _tuning(stage, slo=5.0)
    slow = tuned.models["slow"]
    assert (slow.max_batch, slow.limit) == (2, 5)  # two rows take 60 of 150 ms, four take 120
    assert (slow.timeout_ms, slow.queue_timeout_ms) == (150.0, 90.0)
    assert (tuned.timeout_ms, tuned.limit, tuned.batch_wait_ms) == (150.0, 5, 1.5)
    tight = _tuning(stage, slo=1.0).models["fast"]
    assert (tight.max_batch, tight.limit, tight.queue_timeout_ms) == (1, 1, 1.0)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_peer_is_locked_by_hash_with_our_onnx_runtime(peer: Peer) -> None:
    lock = peer.requirements.read_text()
    assert re.search(rf"^{re.escape(peer.package)}(\[\w+\])?==\S+ \\$", lock, re.MULTILINE)
    ours = (Path(__file__).parents[2] / "requirements.txt").read_text()
    version = re.search(r"^onnxruntime==(\S+)", ours, re.MULTILINE)
    assert version
    assert f"onnxruntime=={version[1]} " in lock
    pinned = re.findall(r"^[\w.\[\]-]+==", lock, re.MULTILINE)
    assert lock.count("--hash=sha256:") >= len(pinned)
    assert "index-url" not in lock


@pytest.mark.parametrize("name", ["litserve", "bentoml", "ray_serve", "kserve", "mlserver"])
def test_a_start_says_where_it_is_ready(name: str, stage: Stage, tmp_path: Path) -> None:
    started = BY_NAME[name].start(tmp_path / "bin" / "python", 7000, tmp_path, _tuning(stage))
    assert started.ready_path.startswith("/")
    assert str(tmp_path / "bin") in started.command[0]


def test_triton_is_tuned_by_a_queue_timeout_and_otherwise_has_no_batcher(
    stage: Stage, tmp_path: Path
) -> None:
    python = tmp_path / "bin" / "python"
    home = tmp_path / "lib/python3.11/site-packages/pytriton/tritonserver"
    (home / "backends/python").mkdir(parents=True)
    start = BY_NAME["triton"].start
    tuned = start(python, 7000, tmp_path / "s", _tuning(stage)).files["models/slow/config.pbtxt"]
    assert "max_batch_size: 2" in tuned
    assert "default_timeout_microseconds: 90000" in tuned
    plain = start(python, 7000, tmp_path / "s", _tuning(stage, is_tuned=False))
    assert "dynamic_batching" not in plain.files["models/slow/config.pbtxt"]
    assert "max_batch_size: 1" in plain.files["models/slow/config.pbtxt"]


def test_torchserve_is_tuned_by_its_queue_and_its_clients_timeout(
    stage: Stage, tmp_path: Path
) -> None:
    start = BY_NAME["torchserve"].start
    text = start(tmp_path / "bin/python", 7000, tmp_path, _tuning(stage)).files["config.properties"]
    properties = dict(line.split("=", 1) for line in text.splitlines())
    assert properties["job_queue_size"] == "5"
    slow = json.loads(properties["models"])["slow"]["1.0"]
    assert (slow["batchSize"], slow["clientTimeoutInMills"]) == (2, 150)


@pytest.mark.parametrize(
    ("wire", "body"),
    [
        (Wire.RAW, lambda data: data),
        (Wire.BASE64, lambda data: json.dumps({"data": base64.b64encode(data).decode()}).encode()),
        (Wire.BASE64_LIST, lambda data: json.dumps([base64.b64encode(data).decode()]).encode()),
        (
            Wire.V2_BASE64,
            lambda data: json.dumps(
                {"outputs": [{"data": [base64.b64encode(data).decode()]}]}
            ).encode(),
        ),
    ],
)
def test_an_answer_is_read_in_the_form_that_was_asked_for(wire: Wire, body: object) -> None:
    row = np.arange(4, dtype=np.float32).reshape(1, 4)
    sent = request(wire, "/{model}/x", model="m", tensor="x", row=row, port=1, slo_ms=1.0)
    assert sent.startswith(b"POST /m/x HTTP/1.1\r\n")
    assert callable(body)
    shot = Shot(0, 0, 0)
    shot.body = body(row.tobytes())
    assert reader(wire)(shot).output.tolist() == [0.0, 1.0, 2.0, 3.0]
    shot.body = b"{}"
    with pytest.raises(ValueError, match=r"not an answer|buffer size"):
        reader(wire)(shot)


def test_default_settings_are_played_once_and_read_at_every_slo() -> None:
    planned = sessions([BY_NAME["mosec"], BY_NAME["kserve"]], with_ours=True)
    num_plays = {
        (session.server, session.settings, session.tuned_for): len(session.plays)
        for session in planned
    }
    assert num_plays == {
        (OURS, DEFAULT, None): 4 * 2 * 3,
        ("mosec", DEFAULT, None): 4 * 2,
        ("mosec", TUNED, 2.0): 4 * 2,
        ("mosec", TUNED, 5.0): 4 * 2,
        ("mosec", TUNED, 20.0): 4 * 2,
        ("kserve", DEFAULT, None): 4 * 2,
    }


def test_the_whole_plan_takes_an_hour_at_the_most() -> None:
    assert plan.estimated_s(sessions(PEERS, with_ours=True), plan.CELL_S) <= 3600.0


def test_a_stopped_run_goes_on_with_the_plays_that_are_not_whole() -> None:
    (session, *_) = sessions([BY_NAME["kserve"]], with_ours=False)
    done = {("kserve", DEFAULT, name) for play in session.plays[:2] for name in play.points}
    done.discard(("kserve", DEFAULT, point("mixed", 0.5, 20.0)))
    assert left_to_do(session, done).plays == session.plays[1:]


def _cell(server: str, settings: str, load: float, share: float, **more: object) -> Cell:
    facts: Mapping[str, object] = {
        "job": "peers", "run_id": "r", "repeat": 1, "seed": 1, "started_at": "2026-01-02T03:04:05",
        "model": "slow", "config": (("server", server), ("settings", settings)),
        "arrivals": "poisson", "rate_per_s": 30.0, "slo_ms": 150.0, "duration_s": 6.0, "sent": 180,
        "good": 90, "late": 10, "refused": 70, "failed": 10, "driver_error_p99_ms": 0.25,
        "errors": (("no answer", 7), ("wrong output", 3)), "point": point("one model", load, 5.0),
        "environment": {"share_of_possible": str(share), "machine": "a machine"}, **more,
    }  # fmt: skip
    return Cell(**facts)  # type: ignore[arg-type]


def test_the_page_has_what_was_measured_and_says_what_was_not() -> None:
    cells = [
        _cell(OURS, DEFAULT, 1.5, 0.93),
        _cell("mosec", DEFAULT, 1.5, 0.02),
        _cell("mosec", TUNED, 1.5, 0.4, partial="the server ended"),
    ]
    assert key(cells[1]) == ("mosec", DEFAULT, point("one model", 1.5, 5.0))
    text = page(
        cells,
        [BY_NAME["mosec"], BY_NAME["torchserve"]],
        versions={"mosec": "0.9.8"},
        left_out={"torchserve": "it needs java"},
        command="remontoir bench peers",
    )
    lines = text.splitlines()
    assert "## One model, SLO of 5 executions" in lines
    assert "| **Remontoir** | - | - | **93%** | - |" in lines
    assert "| mosec, default | - | - | 2% | - |" in lines
    assert r"| mosec, tuned | - | - | 40%\* | - |" in lines
    assert r"1 of 3 cells are partial and marked \*." in text
    assert "| TorchServe |  | not measured: it needs java |" in lines
    (detail,) = [line for line in lines if line.startswith("| mosec, default | one model |")]
    assert "| 180 | 90 | 10 | 70 | - | 7 | 3 |" in detail


def test_a_peer_that_is_not_installed_says_how_to(tmp_path: Path) -> None:
    with pytest.raises(MissingPeer, match="remontoir bench peers install --peer mosec"):
        environments.python_of(BY_NAME["mosec"], tmp_path)


@pytest.mark.parametrize("is_tuned", [False, True])
def test_fastapi_answers_as_onnx_runtime_does_and_ends_with_all_it_started(
    stage: Stage, tmp_path: Path, is_tuned: bool
) -> None:
    peer = BY_NAME["fastapi_ort"]
    tuned = _tuning(stage, slo=1000.0, is_tuned=is_tuned)
    with launched(
        peer, Path(sys.executable), tuned, scratch=tmp_path / "s", log_dir=tmp_path / "logs"
    ) as running:
        found = check(peer, running, stage)
        assert found.is_right, found.trouble
        assert running.is_alive
        assert running.use().rss_bytes > 0
    assert not is_alive(running.server.process.pid)
    assert running.use().rss_bytes == 0  # nobody is left who has its mark


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in which plain FastAPI is installed: its Python is ours."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    peer = BY_NAME["fastapi_ort"]
    home = environments.default_root() / peer.name
    (home / "bin").mkdir(parents=True)
    python = home / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (home / environments.STAMP).write_text(environments.wanted(peer))
    return home


JOB = """\
job: peer
target: {kind: peer, peer: PEER, tuned_for: 1000}
models: [{name: mlp, canonical: {family: fully-connected, depth: 1, width: 16}}]
workload: [{kind: poisson, models: mlp, rate_per_s: 40, slo_ms: 2000}]
duration_s: 0.5
warm_up_s: 0
give_up_s: 30
"""


def _run_job(text: str, folder: Path) -> tuple[list[Cell], list[str]]:
    said: list[str] = []
    database = ResultsDatabase(folder)
    progress = Progress(say=said.append, step=lambda _: None, done=lambda *_: None)
    run_job(parse(text, "peer.yaml"), database, folder=folder, progress=progress, given_ceiling=1e5)
    cells = list(database.cells())
    database.close()
    return cells, said


@pytest.mark.skipif(sys.version_info[:2] != environments.PYTHON, reason="peers are of Python 3.11")
def test_a_peer_is_measured_by_a_job_as_any_other_server(installed: Path, tmp_path: Path) -> None:
    (cell,), said = _run_job(JOB.replace("PEER", "fastapi_ort"), tmp_path / "results")
    assert said == []
    assert (cell.partial, cell.failed, cell.errors) == ("", 0, ())
    assert cell.good + cell.late + cell.refused == cell.sent > 0
    assert cell.good > 0  # its answers are ONNX Runtime's
    assert dict(cell.config) == {
        "target": "peer", "peer": "fastapi_ort", "settings": "tuned for 1000 x execution",
    }  # fmt: skip
    assert cell.cold_start_ms
    assert cell.server_rss_bytes


def test_a_job_says_of_a_peer_how_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cells, said = _run_job(JOB.replace("PEER", "mosec"), tmp_path / "results")
    assert cells == []
    assert "remontoir bench peers install --peer mosec" in said[0]


def test_the_configuration_of_a_peer_is_json_with_all_it_may_need(
    stage: Stage, tmp_path: Path
) -> None:
    config = json.loads(config_json(_tuning(stage), port=7, scratch=tmp_path))
    assert {"port", "models", "is_tuned", "batch_wait_ms", "timeout_ms", "limit"} <= set(config)
    assert set(config["models"]["fast"]) >= {"path", "max_batch", "limit", "queue_timeout_ms"}
