"""Results and the queue of `remontoir bench` in a real PostgreSQL: `make e2e-postgresql`.

Two jobs at once write into an empty database, which is restarted under a third; models are
registered; a leader gives jobs to two followers, is killed, and goes on; and every row is there.
The server is Debian's package, installed where it is missing (as root), with data, socket and port
of its own, run by an unprivileged user. psycopg is installed into a folder that goes afterwards.
Two minutes, network.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from loadtest.servers import free_port
from tests.e2e.tools import LeftOut, run
from tests.gateway.running import ROOT, environment

PSYCOPG = "psycopg[binary]==3.2.*"
BINARIES = Path("/usr/lib/postgresql")  # Debian: one folder for each version
USER = "bench"
WAIT_S = 120.0
JOB = """\
job: {name}
target: {{kind: remontoir, cpus: "0"}}
models: [{{name: mlp, canonical: {{family: fully-connected, depth: 2, width: 32}}}}]
workload: [{{kind: poisson, models: mlp, rate_per_s: 20, slo_ms: 500}}]
repeats: {repeats}
duration_s: 1
warm_up_s: 0
"""
ROWS = "SELECT job, count(*), count(DISTINCT run_id) FROM bench_rows GROUP BY job"


class Server:
    """One PostgreSQL, of an unprivileged user; `database` is a URL for it."""

    def __init__(self, home: Path, binaries: Path) -> None:
        self._home = home
        self._binaries = binaries
        self._port = str(free_port())
        self.url = f"postgresql://{USER}:none@127.0.0.1:{self._port}/results"

    def command(self, name: str, *arguments: str) -> str:
        """One of its programs, as its user: it refuses to be root's."""
        whole = [str(self._binaries / name), *arguments]
        if os.geteuid() == 0:
            whole = ["runuser", "-u", "nobody", "--", *whole]
        done = subprocess.run(whole, capture_output=True, text=True, cwd=self._home)
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
        return done.stdout

    def begin(self) -> None:
        data = str(self._home / "data")
        self.command("initdb", "-A", "trust", "-U", USER, "-D", data, "-E", "UTF8")
        self.start()
        self.command("createdb", "-h", "127.0.0.1", "-p", self._port, "-U", USER, "results")

    def start(self, action: str = "start") -> None:
        options = f"-p {self._port} -k {self._home} -c listen_addresses=127.0.0.1"
        where = ["-D", str(self._home / "data"), "-l", str(self._home / "log"), "-o", options]
        self.command("pg_ctl", "-w", "-m", "fast", *where, action)

    def end(self) -> None:
        self.command("pg_ctl", "-w", "-m", "fast", "-D", str(self._home / "data"), "stop")

    def select(self, query: str) -> list[list[str]]:
        """Nothing, too, while nobody has made the table yet."""
        where = ["-h", "127.0.0.1", "-p", self._port, "-U", USER, "-d", "results"]
        try:
            text = self.command("psql", *where, "-A", "-t", "-c", query)
        except AssertionError as error:
            if "does not exist" in str(error):
                return []
            raise
        return [line.split("|") for line in text.splitlines()]

    def rows(self, job: str) -> tuple[int, int]:
        """How many rows of a job there are, and of how many runs."""
        found = {name: (int(rows), int(runs)) for name, rows, runs in self.select(ROWS)}
        return found.get(job, (0, 0))


class Bench:
    """`remontoir bench` with psycopg, in a folder of its own."""

    def __init__(self, home: Path, drivers: Path) -> None:
        self._home = home
        self._settings = {
            **environment(),
            "PYTHONPATH": f"{ROOT}{os.pathsep}{drivers}",
            "XDG_CACHE_HOME": str(home / "cache"),
        }

    def job(self, name: str, repeats: int) -> str:
        path = self._home / f"{name}.yaml"
        path.write_text(JOB.format(name=name, repeats=repeats))
        return str(path)

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "gateway", "bench", *arguments],
            cwd=self._home,
            env=self._settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __call__(self, *arguments: str) -> str:
        return finished(self.start(*arguments))


def main() -> int:
    try:
        binaries = installed()
        with (
            tempfile.TemporaryDirectory(prefix="remontoir-postgresql-") as scratch,
            ExitStack() as life,
        ):
            home = Path(scratch)
            home.chmod(0o755)  # its user comes through
            drivers = home / "drivers"
            run(sys.executable, "-m", "pip", "install", "-q", "--target", drivers, PSYCOPG)
            own = home / "server"
            own.mkdir()
            if os.geteuid() == 0:
                shutil.chown(own, "nobody")
            server = Server(own, binaries)
            server.begin()
            life.callback(server.end)
            bench = Bench(home, drivers)
            two_at_once(server, bench)
            restarted(server, bench)
            registry(server, bench)
            followers(server, bench, life)
    except LeftOut as why:
        print(f"e2e-postgresql: left out: {why}")
    return 0


def two_at_once(server: Server, bench: Bench) -> None:
    """Both make the tables, and both keep rows."""
    both = [
        bench.start("run", bench.job(name, 2), "--results", server.url, "--ceiling", "5000")
        for name in ("one", "two")
    ]
    said = [finished(process) for process in both]
    assert server.rows("one") == server.rows("two") == (2, 1), said
    assert all(":none@" not in text and ":***@" in text for text in said), said
    report = bench("leaderboard", server.url)
    assert "mlp" in report, report
    print("e2e-postgresql: two jobs at once into an empty database: every row is there")


def restarted(server: Server, bench: Bench) -> None:
    """Between two rows of one run."""
    arguments = ("run", bench.job("three", 4), "--results", server.url, "--ceiling", "5000")
    process = bench.start(*arguments)
    until(lambda: server.rows("three")[0] >= 1, "the first row", process)
    server.start("restart")
    said = finished(process)
    assert server.rows("three") == (4, 1), said
    again = bench(*arguments, "--resume")
    assert "4 skipped" in again, again
    print("e2e-postgresql: the database was restarted under a run, which kept every row")


def registry(server: Server, bench: Bench) -> None:
    model = next((bench._home / "bench-results").glob("models/generated/*/model.onnx"))
    where = ("--results", server.url)
    bench("models", "register", "mlp", "--path", str(model), "--task", "nothing at all", *where)
    bench("models", "update", "mlp", "--accuracy", "none", *where)
    assert "nothing" in bench("models", "search", "at", "all", *where)
    bench("models", "delete", "mlp", *where)
    listed = bench.start("models", "list", *where)
    assert listed.communicate(timeout=WAIT_S)[0].strip() == "no models"
    print("e2e-postgresql: a model was registered, changed, found and deleted")


def followers(server: Server, bench: Bench, life: ExitStack) -> None:
    port = str(free_port())
    leader = ("leader", "--database", server.url, "--port", port)
    url = ("--leader", f"http://127.0.0.1:{port}")
    leading = bench.start(*leader)
    life.callback(stop, lambda: leading)
    for name in ("left", "right"):
        process = bench.start("follower", *url, "--name", name, "--max-busy", "1")
        life.callback(stop, lambda process=process: process)
    until(lambda: server.select("SELECT count(*) FROM queue_followers") == [["2"]], "followers")
    submitted = [
        bench.start("submit", bench.job(f"queued{i}", 2), *url, "--wait", "--out", f"rows{i}.jsonl")
        for i in range(4)
    ]
    running = "SELECT count(*) FROM queue_jobs WHERE state = 'running'"
    until(lambda: server.select(running) == [["2"]], "two that run")
    leading.send_signal(signal.SIGKILL)
    leading.wait()
    leading = bench.start(*leader)
    for i, process in enumerate(submitted):
        said = finished(process)
        rows = [
            json.loads(line) for line in (bench._home / f"rows{i}.jsonl").read_text().splitlines()
        ]
        assert len(rows) == 2, said
        assert server.rows(f"queued{i}") == (2, 1), said
    ran = Counter(name for (name,) in server.select("SELECT follower FROM queue_jobs"))
    assert set(ran) == {"left", "right"}, ran
    print(
        f"e2e-postgresql: two followers ran {ran.total()} jobs ({dict(ran)}), the leader was killed"
    )


def installed() -> Path:
    """Where Debian has the server's programs. Raises LeftOut."""
    if not any(BINARIES.glob("*/bin/initdb")):
        if os.geteuid() != 0 or not shutil.which("apt-get"):
            raise LeftOut(
                "PostgreSQL is not there, and its package is installed as root, on Debian"
            )
        settings = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "-qq", "install", "--no-install-recommends", "-y", "postgresql"]
        for command in (["apt-get", "-qq", "update"], install):
            subprocess.run(command, env=settings, check=True, stdout=subprocess.DEVNULL)
    return max(BINARIES.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3])).parent


def finished(process: "subprocess.Popen[str]") -> str:
    said, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, f"{process.args} ended with {process.returncode}:\n{said}"
    return said


def until(
    is_so: Callable[[], bool], what: str, process: "subprocess.Popen[str] | None" = None
) -> None:
    give_up_s = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < give_up_s, f"no {what} within {WAIT_S:.0f} s"
        assert process is None or process.poll() is None, f"{process.args} ended"
        time.sleep(0.2)


def stop(of: Callable[[], "subprocess.Popen[str]"]) -> None:
    process = of()
    process.terminate()
    process.communicate(timeout=WAIT_S)


if __name__ == "__main__":
    sys.exit(main())
