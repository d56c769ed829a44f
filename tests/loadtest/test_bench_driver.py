"""The driver of jobs against a puppet server: who asks when, what ends a run early, its rows."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import uvloop

from loadtest.analysis.cell import Cell
from loadtest.driver.ceiling import Ceiling, KnownCeilings, TooBusy
from loadtest.driver.client_stages import Stages
from loadtest.driver.job_file import JobError, parse
from loadtest.driver.job_target import Url
from loadtest.driver.limits import Limits
from loadtest.driver.plans import Planned
from loadtest.driver.results_db import ResultsDatabase, ResultsError
from loadtest.driver.run import Progress, run_job
from loadtest.driver.settling import settle
from loadtest.driver.shooting import Group, Plan
from loadtest.openloop import Load, Stop, play
from loadtest.workloads import Ask, Closed, closed_loops

MS = 1_000_000
ANSWER = json.dumps(
    {"outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}]}
).encode()


class Puppet(threading.Thread):
    """A v2 server that answers [1, 2] to everybody, a number of times, and then is gone. It refuses
    the first `refuses`.
    """

    def __init__(self, answers: int = 10**9) -> None:
        super().__init__(daemon=True)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        self.port = self._listener.getsockname()[1]
        self._left = answers
        self._loop = asyncio.new_event_loop()
        self.refuses = self.asked = 0
        self.most_at_once = 0
        self._at_once = 0

    def run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    def stop(self) -> None:
        self._left = 0
        if self.is_alive():
            self._loop.call_soon_threadsafe(self._is_over.set)
        self.join()

    async def _serve(self) -> None:
        self._is_over = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        server = await asyncio.start_server(self._answer, sock=self._listener)
        await self._is_over.wait()
        server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = head.lower().partition(b"content-length: ")[2].split()[0]
                await reader.readexactly(int(length))
                self._at_once += 1
                self.most_at_once = max(self.most_at_once, self._at_once)
                await asyncio.sleep(0)
                self._at_once -= 1
                self._left -= 1
                if self._left < 0:
                    self._is_over.set()
                    return
                self.asked += 1
                status = b"200 OK" if self.asked > self.refuses else b"503 Busy"
                head = b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(ANSWER))
                writer.write(head + ANSWER)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self._writers.discard(writer)
            writer.transport.abort()


@pytest.fixture
def puppets() -> Iterator[list[Puppet]]:
    started: list[Puppet] = []
    yield started
    for puppet in started:
        puppet.stop()


def start(puppets: list[Puppet], answers: int = 10**9) -> Puppet:
    puppet = Puppet(answers)
    puppets.append(puppet)
    puppet.start()
    return puppet


REQUEST = b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n"


def test_a_closed_loops_clients_have_one_request_each_and_ask_again(puppets: list[Puppet]):
    puppet = start(puppets)
    entry = Closed(models="m", slo_ms=50, clients=3, think_ms=0.1, requests=5)
    loops = closed_loops([entry], duration_s=60, seed=1)
    load = Load(
        host="127.0.0.1", port=puppet.port, arrivals=[], requests=[[REQUEST]], loops=loops,
        starts=list(loops[0].starts()), connections=3,
    )  # fmt: skip
    played = uvloop.run(play(load))
    assert [shot.status for shot in played.shots] == [200] * 15
    assert puppet.most_at_once <= 3
    assert played.stopped == ""


def test_a_clients_work_before_the_send_delays_the_send_and_not_the_schedule(
    puppets: list[Puppet],
):
    puppet = start(puppets)
    arrivals = [Ask(0, "m", 50 * MS, 0), Ask(1 * MS, "m", 50 * MS, 1)]
    load = Load(
        host="127.0.0.1", port=puppet.port, arrivals=arrivals, requests=[[REQUEST], [REQUEST]],
        before_ns=[[20 * MS], [0]], connections=2,
    )  # fmt: skip
    played = uvloop.run(play(load))
    first, second = sorted(played.shots, key=lambda shot: shot.at_ns)
    assert [shot.stream for shot in played.shots] == [1, 0]  # in the order of sends
    assert second.at_ns - first.at_ns == 1 * MS
    assert first.sent_ns - first.at_ns >= 20 * MS


def test_a_run_that_is_stopped_keeps_what_was_answered(puppets: list[Puppet]):
    puppet = start(puppets)
    stop = Stop()

    def arrivals() -> Iterator[Ask]:
        for index in range(10**6):
            if index == 50:
                stop.set("stopped")
            yield Ask(index * MS // 10, "m", 50 * MS, 0)

    load = Load(host="127.0.0.1", port=puppet.port, arrivals=arrivals(), requests=[[REQUEST]])
    played = uvloop.run(play(load, stop))
    assert played.stopped == "stopped"
    assert len(played.shots) <= 50
    assert all(shot.done_ns for shot in played.shots)


JOB = """\
job: puppet
target: {{kind: v2, url: "http://127.0.0.1:{port}"}}
protocol: v2-json
models: [{{name: m, path: m.onnx}}]
workload:
  - kind: poisson
    models: m
    rate_per_s: {rate}
    slo_ms: [{{slo_ms: 900, weight: 3}}, {{slo_ms: 1900, weight: 1}}]
duration_s: {duration}
warm_up_s: 0
variants: 2
repeats: {repeats}
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Adds nothing to nothing: its outputs are [1, 2] for every input, as the puppet's."""
    from onnx import TensorProto, helper, numpy_helper, save

    right = numpy_helper.from_array(np.array([[1.0, 2.0]], np.float32), "right")
    zero = numpy_helper.from_array(np.zeros((1, 2), np.float32), "zero")
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "zero"], ["none"]),
         helper.make_node("Add", ["none", "right"], ["y"])],
        "constant",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [right, zero],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    save(made, tmp_path / "m.onnx")
    return tmp_path


def run(text: str, folder: Path, *, given_ceiling: float = 50_000, resume: bool = False):
    database = ResultsDatabase(folder / "results")
    said: list[str] = []
    try:
        summary = run_job(
            parse(text, str(folder / "job.yaml")),
            database,
            folder=folder,
            progress=Progress(say=said.append, step=lambda _: None, done=lambda *_: None),
            given_ceiling=given_ceiling,
            resume=resume,
        )
        return summary, list(database.cells()), said
    finally:
        database.close()


def test_a_job_against_a_url_leaves_rows_with_all_that_a_figure_depends_on(
    puppets: list[Puppet], model: Path
):
    puppet = start(puppets)
    text = JOB.format(port=puppet.port, rate=100, duration=0.5, repeats=1)
    summary, cells, said = run(text, model)
    assert (summary.measured, summary.failed, said) == (1, 0, [])
    tight, loose = sorted(cells, key=lambda cell: cell.slo_ms)
    assert (tight.slo_ms, loose.slo_ms) == (900, 1900)
    assert (tight.rate_per_s, loose.rate_per_s) == (75, 25)
    for cell in cells:
        assert cell.sent == cell.good + cell.late + cell.refused + cell.failed > 0
        assert cell.failed == 0  # answers are what ONNX Runtime gives
        assert cell.p50_ms is not None
        assert cell.histogram
        assert cell.driver_error_p99_ms is not None
        assert (cell.partial, cell.seed, cell.point) == ("", 1, "as it is")
        assert {"cpu", "python", "onnxruntime", "load_average"} <= cell.environment.keys()
        assert len(cell.model_hash) == len(cell.job_hash) == 64
    again, cells, _ = run(text, model, resume=True)
    assert (again.measured, again.skipped, len(cells)) == (0, 1, 2)


def test_a_target_that_dies_leaves_partial_rows_that_say_so(puppets: list[Puppet], model: Path):
    puppet = start(puppets, answers=40)
    text = JOB.format(port=puppet.port, rate=200, duration=30, repeats=2)
    summary, cells, said = run(text, model)
    assert (summary.measured, summary.partial, summary.failed) == (1, 1, 1)
    assert all("the server took no connection from" in cell.partial for cell in cells)
    assert 0 < sum(cell.good + cell.late for cell in cells) <= 40
    assert all(cell.duration_s < 30 for cell in cells)  # a dead server is not asked to the end
    assert len(said) == 1  # the second repeat found nobody
    assert f"127.0.0.1:{puppet.port}" in said[0]


def test_rates_beyond_the_drivers_ceiling_are_refused_with_its_number(model: Path):
    text = JOB.format(port=1, rate=10**9, duration=60, repeats=1)
    summary, cells, said = run(text, model, given_ceiling=8200)
    assert (summary.measured, summary.failed, cells) == (0, 1, [])
    assert "1,000,000,000 requests/s are asked for" in said[0]
    assert "keeps its schedule up to 8,200/s" in said[0]


def test_more_answers_than_memory_holds_are_refused(model: Path):
    text = JOB.format(port=1, rate=10**6, duration=3600, repeats=1)
    text = text.replace("path: m.onnx", "path: m.onnx, batch: 4096").replace(
        "variants: 2", "variants: 1"
    )
    summary, cells, said = run(text, model, given_ceiling=10**7)
    assert (summary.measured, summary.failed, cells) == (0, 1, [])
    assert "answers of about 164,140 bytes would be kept until the end" in said[0]


def test_a_measurement_without_numbers_fails_alone(puppets: list[Puppet], model: Path):
    puppet = start(puppets)
    text = JOB.format(port=puppet.port, rate="0.001 x capacity", duration=0.2, repeats=1)
    text = text.replace(" 900,", " '${slo}',") + "variables: {slo: [0.000001, 1000]}\n"
    summary, cells, said = run(text, model)
    assert (summary.measured, summary.failed) == (1, 1)
    assert "slo=1e-06: model 'm': one execution takes" in said[0]
    assert {cell.point for cell in cells} == {"slo=1000"}


def test_requests_of_a_file_have_its_own_slos(puppets: list[Puppet], model: Path):
    puppet = start(puppets)
    rows = "".join(f"{index / 100},{500 + 250 * (index % 2)}\n" for index in range(20))
    (model / "day.csv").write_text(f"at_s,slo_ms\n{rows}")
    text = JOB.format(port=puppet.port, rate=1, duration=0.5, repeats=1)
    head, _, tail = text.partition("workload:\n")
    entry = "  - {kind: requests, models: m, file: day.csv, slo_ms: 5}\n"
    summary, cells, said = run(
        f"{head}workload:\n{entry}duration_s{tail.split('duration_s')[1]}", model
    )
    assert (summary.measured, said) == (1, [])
    assert {cell.slo_ms: cell.sent for cell in cells} == {500.0: 10, 750.0: 10}
    many = "".join(f"{index / 100},{500 + index}\n" for index in range(60))
    (model / "day2.csv").write_text(f"at_s,slo_ms\n{many}")
    text = f"{head}workload:\n{entry.replace('day', 'day2')}duration_s: 1\n"
    summary, _, said = run(text, model)
    assert (summary.measured, summary.failed) == (0, 1)
    assert "day2.csv has 60 different SLOs" in said[0]


def test_rows_that_a_database_refuses_were_shown_before(puppets: list[Puppet], model: Path):
    """So that whoever shows them can keep them elsewhere."""
    puppet = start(puppets)

    class Full(ResultsDatabase):
        def add(self, cells: list[Cell]) -> None:
            raise ResultsError("full")

    database, shown = Full(model / "results"), []
    job = parse(JOB.format(port=puppet.port, rate=50, duration=0.2, repeats=3), "job.yaml")
    progress = Progress(
        say=lambda _: None, step=lambda _: None, done=lambda _, cells: shown.extend(cells)
    )
    job = msgspec.structs.replace(job, folder=str(model))
    with pytest.raises(ResultsError, match="full"):
        run_job(job, database, folder=model, progress=progress, given_ceiling=50_000)
    database.close()
    assert len(shown) == 2  # of the first measurement, one for each SLO


def a_plan(port: int) -> Plan:
    groups = [Group(0, name, 50 * MS, [REQUEST], []) for name in ("a", "b")]
    return Plan(
        host="127.0.0.1", port=port, is_tls=False, target=Url(url="http://h:1", path="/"),
        entries=(), models=("a", "b"), groups=groups, duration_s=1, warm_up_s=0, give_up_s=1,
        stages=Stages(network=None, preprocess=(0,), postprocess=(0,)), connections=1, seed=1,
        cpus=(),
    )  # fmt: skip


def test_a_server_is_asked_until_it_has_done_with_what_was_before(puppets: list[Puppet]):
    puppet = start(puppets)
    puppet.refuses = 1
    assert settle(a_plan(puppet.port))
    assert puppet.asked == 1 + 2  # again, and once for the other model
    puppet.stop()
    assert settle(a_plan(puppet.port))  # nobody is waited for who is gone


def test_a_ceiling_of_a_busy_day_is_measured_anew_before_it_refuses(tmp_path: Path):
    known, measured = KnownCeilings(tmp_path / "ceilings.json"), []

    def a_ceiling(rate_per_s: float) -> Ceiling:
        return Ceiling(
            rate_per_s=rate_per_s, error_p99_ms=0.5, next_rate_per_s=2 * rate_per_s,
            request_bytes=256, processes=1, cpus=(1,), machine="m",
        )  # fmt: skip

    def measure(**_: object) -> Ceiling:
        measured.append(1)
        return a_ceiling(5000)

    known.keep(a_ceiling(700))
    said: list[str] = []
    limits = Limits(
        given_per_s=None, known=known, log_dir=tmp_path, say=said.append, step=said.append,
        measure=measure,
    )  # fmt: skip

    def check(rate_per_s: float) -> float | None:
        (case,) = parse(JOB.format(port=1, rate=rate_per_s, duration=0.5, repeats=1), "j").cases
        plan = a_plan(1)._replace(entries=case.job.workload, models=("m",))
        return limits.check(case, Planned(plan, [], []), (1,))

    assert (check(600), measured) == (700, [])
    assert (check(900), measured) == (5000, [1])
    assert known.find(256, 1, (1,)) == a_ceiling(5000)
    with pytest.raises(JobError, match="keeps its schedule up to 5,000/s"):
        check(6000)
    assert measured == [1]  # once in a run


def test_a_wild_rate_is_refused_where_no_ceiling_is_known(tmp_path: Path):
    def measure(**_: object) -> Ceiling:
        raise TooBusy("others are at work")

    said: list[str] = []
    known = KnownCeilings(tmp_path / "ceilings.json")
    limits = Limits(
        given_per_s=None, known=known, log_dir=tmp_path, say=said.append, step=said.append,
        measure=measure,
    )  # fmt: skip
    (case,) = parse(JOB.format(port=1, rate=10**9, duration=0.5, repeats=1), "j").cases
    plan = a_plan(1)._replace(entries=case.job.workload, models=("m",))
    with pytest.raises(JobError, match=r"ceiling is not known.* more than 200,000/s are not even"):
        limits.check(case, Planned(plan, [], []), (1,))
    assert "rates up to 200,000/s are tried" in said[-1]
