"""The leader's queue and its followers: nothing is lost, whoever is killed."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette

from loadtest.analysis.cell import row_of
from loadtest.driver.job_file import JobError
from loadtest.driver.results_db import ResultsDatabase
from loadtest.job_queue.client import LeaderClient, LeaderRefused, LeaderUnreachable
from loadtest.job_queue.follower import (
    FolderInUse,
    Follower,
    claim,
    follow,
    rows_of_results,
    run_program,
)
from loadtest.job_queue.host import HostUse
from loadtest.job_queue.leader import LeaderError, check_exposure, leader_app
from loadtest.job_queue.messages import Beat, End, Job, Submission, Told
from loadtest.job_queue.queue_schema import LEASE_S, QueueError
from loadtest.job_queue.queue_tables import MAX_ATTEMPTS, JobQueue
from loadtest.job_queue.spec import checked
from tests.loadtest.analysis_cells import a_cell


class InProcess(httpx.BaseTransport):
    """An application without a socket, asked synchronously as followers ask."""

    def __init__(self, app: Starlette) -> None:
        self._transport = httpx.ASGITransport(app)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        async def ask() -> httpx.Response:
            sent = httpx.Request(
                request.method, request.url, headers=request.headers, content=request.read()
            )
            response = await self._transport.handle_async_request(sent)
            content = await response.aread()
            return httpx.Response(response.status_code, headers=response.headers, content=content)

        return asyncio.run(ask())


def http_to(app: Starlette, token: str | None = "secret") -> httpx.Client:
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    return httpx.Client(transport=InProcess(app), base_url="http://leader", headers=headers)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[JobQueue]:
    found = JobQueue(str(tmp_path / "leader"))
    yield found
    found.close()


def submit(queue: JobQueue, job_id: str, now_s: float = 0.0, **facts) -> Job:
    given = {"name": job_id, "spec": f"name: {job_id}", **facts}
    return queue.submit(job_id, Submission(**given), now_s)


def beat(queue: JobQueue, name: str, now_s: float, **facts) -> Told:
    return queue.beat(name, Beat(**{"instance": name, **facts}), now_s)


def test_the_shortest_job_goes_first_to_an_idle_follower(queue: JobQueue):
    submit(queue, "long", estimated_s=600)
    submit(queue, "short", estimated_s=10)
    told = beat(queue, "a", 1)
    assert told.run is not None
    assert (told.run.name, told.run.spec) == ("short", "name: short")
    assert queue.job("short").state == "running"


def test_jobs_go_to_the_least_backlog(queue: JobQueue):
    for name in ("a", "b"):
        beat(queue, name, 0)
    submit(queue, "long", estimated_s=600)
    submit(queue, "other", estimated_s=10)
    submit(queue, "third", estimated_s=10)
    placed = {job.job_id: job.follower for job in queue.overview(1).jobs}
    assert placed == {"long": "a", "other": "b", "third": "b"}


def test_a_busy_host_gets_nothing_and_an_idle_one_takes_its_job(queue: JobQueue):
    beat(queue, "a", 0, is_idle=False, busy=0.9)
    submit(queue, "j")
    assert beat(queue, "a", 1, is_idle=False, busy=0.9).run is None
    told = beat(queue, "b", 2)
    assert told.run is not None
    assert queue.job("j").follower == "b"


def test_a_job_waits_for_a_follower_with_its_labels(queue: JobQueue):
    submit(queue, "j", on={"gpu": "t4"})
    assert beat(queue, "cpu-host", 1).run is None
    assert queue.job("j").follower is None
    told = beat(queue, "gpu-host", 2, labels={"gpu": "t4", "zone": "x"})
    assert told.run is not None


def test_a_lost_followers_job_is_run_again_by_somebody_else(queue: JobQueue):
    submit(queue, "j")
    lost = beat(queue, "a", 0).run
    assert lost is not None
    assert beat(queue, "b", LEASE_S - 1).run is None  # a may only be slow
    told = beat(queue, "b", LEASE_S + 1)
    assert told.run is not None
    assert told.run.lease != lost.lease
    job = queue.job("j")
    assert (job.follower, job.attempts) == ("b", 2)
    # and the lost one, when it is back, is told to stop, and cannot end it
    assert beat(queue, "a", LEASE_S + 2, lease=lost.lease).stop
    with pytest.raises(QueueError, match="not by this lease"):
        queue.end("j", End(lease=lost.lease, state="done"), LEASE_S + 3)


def test_a_follower_that_was_restarted_gets_its_job_again(queue: JobQueue):
    submit(queue, "j")
    first = beat(queue, "a", 0).run
    again = beat(queue, "a", 5).run
    assert first is not None
    assert again is not None
    assert first.lease != again.lease
    assert queue.job("j").attempts == 2


def test_a_job_that_loses_every_follower_has_failed(queue: JobQueue):
    submit(queue, "j")
    for attempt in range(MAX_ATTEMPTS):
        assert beat(queue, "a", attempt).run is not None
    assert beat(queue, "a", 9).run is None
    job = queue.job("j")
    assert job.state == "failed"
    assert job.message == "attempt 3 of 3: a was restarted"


def test_a_killed_leader_loses_nothing(tmp_path: Path):
    url = str(tmp_path / "q.sqlite")
    before = JobQueue(url)
    submit(before, "runs", estimated_s=1)
    submit(before, "waits")
    run = beat(before, "a", 0).run
    assert run is not None
    before.add_rows("runs", run.lease, [a_cell()])
    del before  # nothing is closed, nothing said

    after = JobQueue(url)
    after.resume(500)  # it was away for longer than a lease
    assert not beat(after, "a", 510, lease=run.lease).stop
    assert [job.state for job in after.overview(511).jobs] == ["running", "waiting"]
    after.end("runs", End(lease=run.lease, state="done"), 520)
    assert after.rows("runs") == [row_of(a_cell()).decode()]
    told = beat(after, "a", 521)
    assert told.run is not None
    assert told.run.job_id == "waits"
    after.close()


def test_the_same_submission_twice_is_one_job(queue: JobQueue):
    submit(queue, "j")
    submit(queue, "j")
    assert len(queue.overview(1).jobs) == 1
    with pytest.raises(QueueError, match="is another job"):
        submit(queue, "j", spec="name: something else")


def test_estimates_come_from_what_jobs_took(queue: JobQueue):
    submit(queue, "j1", spec="same", estimated_s=10)
    run = beat(queue, "a", 100).run
    assert run is not None
    queue.end("j1", End(lease=run.lease, state="done"), 130)
    assert submit(queue, "j2", spec="same", estimated_s=10).estimated_s == 30
    assert submit(queue, "j3", spec="other", estimated_s=10).estimated_s == 30  # as wrong as that
    assert submit(queue, "j4", spec="third").estimated_s == 120


def test_a_row_that_is_sent_again_is_one_row(queue: JobQueue):
    submit(queue, "j")
    first = beat(queue, "a", 0).run
    assert first is not None
    assert queue.add_rows("j", first.lease, [a_cell(repeat=1)]) == 1
    assert queue.add_rows("j", first.lease, [a_cell(repeat=1), a_cell(repeat=2)]) == 2
    assert len(queue.rows("j")) == 2
    assert beat(queue, "a", 1).run is not None
    with pytest.raises(QueueError, match="not by this lease"):
        queue.add_rows("j", first.lease, [])


def test_a_cancelled_job_is_stopped_where_it_runs(queue: JobQueue):
    submit(queue, "j")
    run = beat(queue, "a", 0).run
    assert run is not None
    assert queue.cancel("j", 1).state == "cancelled"
    assert beat(queue, "a", 2, lease=run.lease).stop
    with pytest.raises(QueueError, match="cancelled already"):
        queue.cancel("j", 3)


def test_two_followers_of_one_name_do_not_take_each_others_jobs(queue: JobQueue):
    submit(queue, "j")
    beat(queue, "a", 0, instance="one")
    with pytest.raises(QueueError, match="another follower is called a"):
        beat(queue, "a", 1, instance="two")
    assert queue.job("j").state == "running"


def test_followers_and_their_backlogs_are_shown(queue: JobQueue):
    submit(queue, "j", estimated_s=100)
    beat(queue, "a", 10)
    [follower] = queue.overview(40).followers
    assert (follower.backlog_s, follower.runs, follower.is_alive) == (70, "j", True)
    [follower] = queue.overview(100).followers
    assert not follower.is_alive


def test_a_database_that_cannot_be_used_is_named_without_its_password():
    with pytest.raises(QueueError, match=r"nosuch://u:\*\*\*@h/x cannot hold results"):
        JobQueue("nosuch://u:secret@h/x")


# Over HTTP


@pytest.fixture
def leader(queue: JobQueue, clock: Clock) -> Iterator[LeaderClient]:
    def check(spec: str) -> str | None:
        return "line 1: what is this?" if "nonsense" in spec else None

    app = leader_app(queue, token="secret", clock=clock, check_spec=check)
    with http_to(app) as http:
        yield LeaderClient(http, name="leader")


def test_without_the_token_nobody_gets_in(queue: JobQueue):
    for token in (None, "wrong"):
        with http_to(leader_app(queue, token="secret"), token) as http:
            response = http.get("/queue")
            assert response.status_code == 401
            assert "Bearer TOKEN" in response.json()["error"]


def test_a_wrong_spec_is_refused_with_its_line(leader: LeaderClient):
    with pytest.raises(LeaderRefused, match="line 1: what is this"):
        leader.submit("j", Submission(name="j", spec="nonsense"))


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("PUT", "/jobs/j", b"{", 400, "truncated"),
        ("PUT", "/jobs/j", b'{"name": "", "spec": "x"}', 400, "a name has 1 to 100 characters"),
        ("PUT", "/jobs/j", b'{"name": "j", "spec": "x", "sl": 1}', 400, "unknown field `sl`"),
        ("PUT", "/jobs/a_b", b'{"name": "j", "spec": "x"}', 400, "letters, digits and hyphens"),
        ("GET", "/jobs/none", None, 404, "there is no job none"),
        ("DELETE", "/jobs/none", None, 404, "there is no job none"),
        ("POST", f"/followers/{'x' * 101}/beat", b"{}", 400, "at most 100 characters"),
    ],
)
def test_what_makes_no_sense_is_told(leader: LeaderClient, method, path, body, status, message):
    response = leader._http.request(method, path, content=body)
    assert response.status_code == status
    assert message in response.json()["error"]


def test_beyond_loopback_a_token_is_needed():
    check_exposure("127.0.0.1", token=None)
    check_exposure("::1", token=None)
    check_exposure("localhost", token=None)
    check_exposure("0.0.0.0", token="secret")
    for host in ("0.0.0.0", "10.0.0.3", "bench.example"):
        with pytest.raises(LeaderError, match=f"--host {host} is reached from other machines"):
            check_exposure(host, token=None)


def test_a_job_is_checked_as_a_whole_before_it_is_queued():
    good = (
        "job: day\ntarget: {kind: v2, url: http://h:1}\nmodels: [{name: m MORE}]\n"
        "workload: [{kind: poisson, models: m, rate_per_s: 5, slo_ms: 50}]\n"
        "duration_s: 4\nwarm_up_s: 1\ngive_up_s: 2\n"
    )
    job = checked(good.replace(" MORE", ""), "a.yaml")
    assert job.estimated_s() >= 7
    assert checked(good.replace(" MORE", ", path: /models/m.onnx"), "a.yaml").name == "day"
    with pytest.raises(JobError, match=r"a\.yaml: model 'm' has the path m\.onnx, relative"):
        checked(good.replace(" MORE", ", path: m.onnx"), "a.yaml")
    with pytest.raises(JobError, match=r"a\.yaml, line 3: .*shape"):
        checked(good.replace(" MORE", ", shape: 7"), "a.yaml")


# Followers


class Process:
    """A run that ends when the test says so."""

    def __init__(self) -> None:
        self.code: int | None = None
        self.was_stopped = False

    def poll(self) -> int | None:
        return self.code

    def wait(self, timeout: float | None = None) -> int:
        return self.code or 0

    def terminate(self) -> None:
        self.was_stopped = True
        self.code = -15

    def kill(self) -> None:
        pass


class Stage:
    """A leader, a follower, and what the follower runs."""

    def __init__(self, leader: LeaderClient, folder: Path) -> None:
        self.leader = leader
        self.folder = folder
        self.busy_share = 0.0
        self.said: list[str] = []
        self.processes: list[Process] = []
        self.specs: list[Path] = []
        self.follower = self.new_follower()

    def new_follower(self) -> Follower:
        return Follower(
            self.leader,
            name="a",
            instance="a1",
            folder=self.folder,
            labels={},
            host=self,
            run=self.run,
            rows_of=rows_of_results,
            say=self.said.append,
        )

    def busy(self) -> float:
        return self.busy_share

    def run(self, spec: Path, folder: Path, log) -> Process:
        log.write(b"it says this")
        self.specs.append(spec)
        self.processes.append(Process())
        return self.processes[-1]

    def write_rows(self, *values: int) -> None:
        results = ResultsDatabase(self.specs[-1].parent / "results")
        results.add([a_cell(repeat=value) for value in values])
        results.close()


@pytest.fixture
def stage(leader: LeaderClient, tmp_path: Path) -> Stage:
    leader.submit("j", Submission(name="day", spec="name: day"))
    return Stage(leader, tmp_path / "follower")


def test_a_follower_runs_a_job_and_delivers_its_rows(stage: Stage):
    stage.follower.step()
    assert stage.specs[0].read_text() == "name: day"
    stage.follower.step()
    assert stage.leader.job("j").state == "running"
    stage.write_rows(1, 2)
    stage.processes[0].code = 0
    stage.follower.step()
    job = stage.leader.job("j")
    assert (job.state, job.num_rows) == ("done", 2)
    assert stage.leader.rows("j")[0] == row_of(a_cell(repeat=1))
    assert [path.name for path in stage.folder.iterdir()] == []


@pytest.mark.parametrize(("code", "state"), [(3, "partial"), (1, "failed")])
def test_a_run_that_did_not_end_well_delivers_what_it_has(stage: Stage, code: int, state: str):
    stage.follower.step()
    stage.write_rows(1)
    stage.processes[0].code = code
    stage.follower.step()
    job = stage.leader.job("j")
    assert (job.state, job.num_rows) == (state, 1)
    assert job.message == f"exit code {code}: it says this"


def test_a_busy_host_asks_for_nothing(stage: Stage):
    stage.busy_share = 0.5
    stage.follower.step()
    assert stage.processes == []
    [facts] = stage.leader.overview().followers
    assert (facts.is_idle, facts.busy) == (False, 0.5)
    stage.busy_share = 0.01
    stage.follower.step()
    assert len(stage.processes) == 1


def test_results_are_kept_until_the_leader_answers_again(stage: Stage):
    stage.follower.step()
    stage.write_rows(1)
    stage.processes[0].code = 0
    reached = stage.leader._http

    def dead(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    stage.leader._http = httpx.Client(transport=httpx.MockTransport(dead), base_url="http://l")
    stage.follower.step()
    stage.follower.step()
    assert [text for text in stage.said if "asking again" in text] == [
        "leader does not answer: connection refused; asking again"
    ]
    stage.leader._http = reached
    stage.follower.step()
    assert stage.leader.job("j").state == "done"


def test_a_killed_followers_results_are_delivered_by_the_next(stage: Stage):
    stage.follower.step()
    stage.write_rows(1)
    stage.processes[0].code = 0
    stage.follower._reap()  # it has noticed, and is killed here
    stage.new_follower().step()
    assert stage.leader.job("j").state == "done"


def test_a_follower_killed_while_it_ran_gives_the_job_back_at_once(stage: Stage):
    stage.follower.step()
    stage.new_follower().step()
    job = stage.leader.job("j")
    assert (job.state, job.attempts) == ("running", 2)
    assert len(stage.processes) == 2


def test_a_void_lease_stops_what_runs(stage: Stage, clock: Clock):
    stage.follower.step()
    stage.leader.cancel("j")
    stage.follower.step()
    assert stage.processes[0].was_stopped
    assert list(stage.folder.iterdir()) == []


def test_results_that_come_too_late_are_dropped_and_said(stage: Stage):
    stage.follower.step()
    stage.write_rows(1)
    stage.leader.cancel("j")
    stage.processes[0].code = 0
    stage.follower.step()
    assert any("are not wanted" in text for text in stage.said)
    assert stage.leader.job("j").num_rows == 0


def test_a_stopped_follower_gives_its_job_back(stage: Stage):
    steps = iter((True, False))
    follow(stage.follower, sleep=lambda _: None, goes_on=lambda: next(steps))
    assert stage.processes[0].was_stopped
    job = stage.leader.job("j")
    assert (job.state, job.message) == ("waiting", "attempt 1 of 3: a was stopped")


def test_a_follower_the_leader_refuses_stops(stage: Stage):
    stage.leader._http.headers["authorization"] = "Bearer wrong"
    with pytest.raises(LeaderRefused, match="a token is needed"):
        stage.follower.step()


def test_a_run_without_results_delivers_none(tmp_path: Path):
    assert list(rows_of_results(tmp_path)) == []


def test_a_real_process_gets_spec_and_folder_and_ends_with_its_children(tmp_path: Path):
    script = "import sys; print(sys.argv[1:]); sys.exit(3)"
    run = run_program(["python3", "-c", script])
    with (tmp_path / "log").open("wb") as log:
        process = run(tmp_path / "job.yaml", tmp_path, log)
        assert process.wait(60) == 3
    text = (tmp_path / "log").read_text()
    assert text.strip() == str([str(tmp_path / "job.yaml"), "--results", str(tmp_path / "results")])
    process.kill()  # nobody is left: no error


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv of util-linux")
def test_what_runs_ends_with_a_killed_follower(tmp_path: Path):
    reader, writer = os.pipe()
    runs = "import sys, time; print('it runs', flush=True); time.sleep(600)"
    follows = (
        "import sys, time; from pathlib import Path; "
        "from loadtest.job_queue.follower import run_program; "
        f"run_program([sys.executable, '-c', {runs!r}])"
        f"(Path('job'), Path({str(tmp_path)!r}), open({writer}, 'wb')); time.sleep(600)"
    )
    follower = subprocess.Popen([sys.executable, "-c", follows], pass_fds=[writer])
    os.close(writer)
    with open(reader, "rb") as said:
        assert said.readline() == b"it runs\n"
        follower.kill()
        follower.wait()
        assert said.read() == b""  # it had the last writing end, and is gone


def test_two_followers_do_not_work_in_one_folder(tmp_path: Path):
    instance, lock = claim(tmp_path)
    with pytest.raises(FolderInUse, match="give --folder"):
        claim(tmp_path)
    lock.close()
    again, lock = claim(tmp_path)
    assert again == instance
    lock.close()


def test_the_hosts_use_is_what_passed_since_the_last_look():
    texts = iter(
        (
            "cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 1",
            "cpu  150 0 110 930 10 0 0 0 0 0\ncpu0 1",
            "cpu  150 0 110 930 10 0 0 0 0 0\ncpu0 1",
        )
    )
    host = HostUse(read=lambda: next(texts))
    assert host.busy() == pytest.approx(60 / 200)
    assert host.busy() == 0.0


def test_what_nobody_answers_is_unreachable_and_what_is_refused_is_not():
    def of(response: httpx.Response) -> LeaderClient:
        transport = httpx.MockTransport(lambda _: response)
        return LeaderClient(httpx.Client(transport=transport, base_url="http://l"), name="l")

    with pytest.raises(LeaderUnreachable, match="502 Bad Gateway"):
        of(httpx.Response(502)).overview()
    with pytest.raises(LeaderRefused, match="404 Not Found"):
        of(httpx.Response(404)).overview()
    with pytest.raises(LeaderRefused, match="l is no leader"):
        of(httpx.Response(200, content=b"<html>")).overview()
