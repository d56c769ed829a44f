"""Rows are safe once they are kept, whatever ends the driver."""

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from loadtest.analysis.cell import MOST_KEY_CHARACTERS, key_of
from loadtest.driver import results_db
from loadtest.driver.results_db import ResultsDatabase, ResultsError
from tests.loadtest.analysis_cells import a_cell, a_day

ROOT = Path(__file__).parents[2]


def test_rows_come_back_as_they_were_kept(tmp_path: Path):
    cells = a_day(repeats=1)
    database = ResultsDatabase(tmp_path / "results")
    database.add(cells)
    assert sorted(database.cells(), key=key_of) == sorted(cells, key=key_of)
    magika = list(database.cells(model="magika"))
    assert magika
    assert {cell.model for cell in magika} == {"magika"}
    assert list(database.cells(run_id="another")) == []
    database.close()


def test_a_second_copy_of_a_row_replaces_the_first(tmp_path: Path):
    database = ResultsDatabase(tmp_path / "own.sqlite")
    database.add([a_cell(good=90, partial="stopped")])
    database.add([a_cell(good=98)])
    (cell,) = database.cells()
    assert (cell.good, cell.partial) == (98, "")
    database.close()


def test_the_last_run_of_a_job_is_found_by_its_files_hash(tmp_path: Path):
    database = ResultsDatabase(tmp_path)
    for run_id, job_hash, hour in (("r1", "a", 10), ("r2", "a", 12), ("r3", "b", 13)):
        started_at = f"2026-05-04T{hour}:00:00+00:00"
        database.add([a_cell(run_id=run_id, job_hash=job_hash, started_at=started_at)])
    assert database.last_run("a") == "r2"
    assert database.last_run("c") is None
    database.close()


def test_no_results_and_no_database_are_said(tmp_path: Path):
    with pytest.raises(ResultsError, match="there are no results"):
        ResultsDatabase(tmp_path / "none", must_exist=True)
    (tmp_path / "text.db").write_text("this is a letter, and no database at all, " * 20)
    with pytest.raises(ResultsError, match=r"text\.db cannot hold results: file is not a database"):
        ResultsDatabase(tmp_path / "text.db")
    with pytest.raises(ResultsError) as caught:
        ResultsDatabase("nonsense://me:secret@host/name")
    assert "secret" not in str(caught.value)


def test_a_disk_with_little_room_stops_a_job_before_its_time_is_spent(tmp_path, monkeypatch):
    database = ResultsDatabase(tmp_path)
    database.check_room()
    monkeypatch.setattr(results_db, "LEAST_FREE_BYTES", 1 << 60)
    with pytest.raises(ResultsError, match=r"MB free, .* MB are needed"):
        database.check_room()
    database.close()


def a_writer(tmp_path: Path, more: str) -> subprocess.Popen[str]:
    """A process that keeps row after row, and says so after each."""
    program = f"""
        import resource, signal
        from loadtest.driver.results_db import ResultsDatabase, ResultsError
        from tests.loadtest.analysis_cells import a_cell
        database = ResultsDatabase({str(tmp_path)!r})
        {more}
        try:
            for repeat in range(1000):
                database.add([a_cell(repeat=repeat, histogram="x" * 4000)])
                print(repeat, flush=True)
        except ResultsError as error:
            print(f"error {{error}}", flush=True)
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_killed_driver_loses_no_row_that_it_kept(tmp_path: Path):
    with a_writer(tmp_path, "") as writer:
        assert writer.stdout is not None
        kept = [writer.stdout.readline().strip() for _ in range(5)]
        writer.send_signal(signal.SIGKILL)
        kept += writer.stdout.read().split()
    database = ResultsDatabase(tmp_path, must_exist=True)
    found = {str(cell.repeat) for cell in database.cells()}
    assert found >= set(kept)
    database.close()


def test_a_full_disk_loses_no_row_that_was_kept_and_is_said(tmp_path: Path):
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))"
    with a_writer(tmp_path, f"signal.signal(signal.SIGXFSZ, signal.SIG_IGN); {limit}") as writer:
        assert writer.stdout is not None
        *kept, last = writer.stdout.read().splitlines()
    assert last.startswith("error")
    assert "a row cannot be kept" in last
    assert str(tmp_path) in last
    database = ResultsDatabase(tmp_path, must_exist=True)
    assert {str(cell.repeat) for cell in database.cells()} == set(kept)
    assert kept
    database.add([a_cell(repeat=2000)])  # and there is room again
    database.close()


def test_a_key_of_many_words_fits_its_column_and_stays_one_of_a_kind(tmp_path: Path):
    """PostgreSQL refuses a longer one, where SQLite keeps anything."""
    words = tuple((f"flag{i}", "x" * 50) for i in range(20))
    database = ResultsDatabase(tmp_path)
    for last in ("a", "b", "b"):
        cell = a_cell(config=(*words, ("last", last)))
        assert len(key_of(cell)) == MOST_KEY_CHARACTERS
        database.add([cell])
    assert sorted(dict(cell.config)["last"] for cell in database.cells()) == ["a", "b"]
    database.close()


def test_tables_that_another_makes_at_the_same_moment_are_taken_as_they_are():
    class Tables:
        """The other is faster the first time."""

        tries = 0

        def create_all(self, _: object) -> None:
            self.tries += 1
            if self.tries == 1:
                raise OperationalError("CREATE", {}, Exception("table bench_rows already exists"))

    class Broken(Tables):
        def create_all(self, _: object) -> None:
            self.tries += 1
            raise OperationalError("CREATE", {}, Exception("no route to host"))

    tables, broken = Tables(), Broken()
    results_db.create_tables(tables, None)
    assert tables.tries == 2
    with pytest.raises(OperationalError):
        results_db.create_tables(broken, None)
    assert broken.tries == 1
