"""Files of a run: what is written comes back, and says which run it is of."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from loadtest.results import Collector, RunMeta, Tables, read, summarise, versions, write
from scheduler import __version__
from scheduler.events import Reason, Rejected
from tests.loadtest.results_story import (
    Script,
    infer,
    inferred,
    load,
    ms,
    scheduler_with,
    served,
)

META = RunMeta(
    scenario="6.1",
    policy="clockwork:schedule_ahead_ms=5",
    seed=3,
    case={"slo_ms": 10, "noise": 0.05, "profile": "v100", "exact": True},
    window_begin_ns=ms(1),
    window_end_ns=ms(1000),
    versions={"remontoir": "0.1.0"},
)


def tables_of_a_run() -> Tables:
    scheduler = scheduler_with("w0", "w1")
    told = Script(Collector(scheduler))
    told.arrive(2, 1, model="b", tenant="acme", stream=1)
    told.arrive(3, 2, 3, model="a")
    told.answer(4, (2, Rejected(Reason.OVERLOADED, "", predicted_ns=7)))
    told.send(4, infer(1, 1, start_ms=5, model="b"), load(2, start_ms=5, model="a"))
    told.collector.sample(ms(5), scheduler)
    told.finish(10, inferred(1, 5, 9), [(1, served())])
    told.collector.sample(ms(10), scheduler)
    return told.collector.tables()


def empty_tables() -> Tables:
    return Collector(scheduler_with()).tables()


def as_words(tables: Tables) -> dict[str, dict[str, list[object]]]:
    """Without codes: a file may number its words as it likes."""
    return {
        name: {
            column: (table.texts(column) if column in table.names else table[column]).tolist()
            for column in table.columns
        }
        for name, table in tables.named().items()
    }


@pytest.mark.parametrize("format", ["parquet", "sqlite"])
@pytest.mark.parametrize("tables", [tables_of_a_run(), empty_tables()], ids=["run", "empty"])
def test_what_is_written_comes_back(tmp_path: Path, tables: Tables, format: str) -> None:
    write(tables, tmp_path / "new" / "folder", META, format)
    found, meta = read(tmp_path / "new" / "folder")
    assert meta == META
    assert as_words(found) == as_words(tables)
    window = (0, ms(100))
    assert summarise(found, window) == summarise(tables, window)
    for name, table in tables.named().items():
        for column, values in table.columns.items():
            assert found.named()[name].columns[column].dtype == values.dtype, (name, column)


def test_parquet_files_are_read_by_anyone(tmp_path: Path) -> None:
    import pyarrow.parquet as parquet

    paths = write(tables_of_a_run(), tmp_path, META)
    assert [path.name for path in paths] == [
        "requests.parquet", "actions.parquet", "devices.parquet",
    ]  # fmt: skip
    requests = parquet.read_table(paths[0])
    assert requests.column("model").to_pylist() == ["b", "a", "a"]
    assert requests.column("outcome").to_pylist() == ["served", "rejected", "open"]
    for path in paths:
        told = parquet.read_schema(path).metadata[b"remontoir.run"]
        assert b'"scenario":"6.1"' in told
        assert b'"slo_ms":10' in told


def test_sqlite_files_are_read_by_anyone(tmp_path: Path) -> None:
    [path] = write(tables_of_a_run(), tmp_path, META, "sqlite")
    base = sqlite3.connect(path)
    assert base.execute("SELECT model, outcome, is_good FROM requests").fetchall() == [
        ("b", "served", 1), ("a", "rejected", 0), ("a", "open", 0),
    ]  # fmt: skip
    facts = dict(base.execute("SELECT key, value FROM run"))
    base.close()
    assert facts["policy"] == "clockwork:schedule_ahead_ms=5"
    assert (facts["seed"], facts["window_end_ns"]) == ("3", "1000000000")


@pytest.mark.parametrize("format", ["parquet", "sqlite"])
def test_writing_again_replaces_and_the_same_run_gives_the_same_bytes(
    tmp_path: Path, format: str
) -> None:
    write(empty_tables(), tmp_path, META, format)
    once = [path.read_bytes() for path in write(tables_of_a_run(), tmp_path, META, format)]
    again = [path.read_bytes() for path in write(tables_of_a_run(), tmp_path, META, format)]
    assert once == again
    assert len(read(tmp_path)[0].requests) == 3


@pytest.mark.parametrize(("before", "format"), [("parquet", "sqlite"), ("sqlite", "parquet")])
def test_an_older_run_in_the_other_format_is_not_what_is_read(
    tmp_path: Path, before: str, format: str
) -> None:
    (tmp_path / "notes.txt").touch()
    write(empty_tables(), tmp_path, META, before)
    written = write(tables_of_a_run(), tmp_path, META, format)
    assert len(read(tmp_path)[0].requests) == 3
    assert set(tmp_path.iterdir()) == {*written, tmp_path / "notes.txt"}


def test_another_format_is_refused_by_name_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="parquet or sqlite, not 'csv'"):
        write(empty_tables(), tmp_path / "new", META, "csv")
    assert not (tmp_path / "new").exists()


def test_a_folder_without_results_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither requests\.parquet nor results\.sqlite"):
        read(tmp_path)


def test_a_file_that_is_of_no_run_is_said_to_be(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    parquet.write_table(pyarrow.table({"x": [1]}), tmp_path / "requests.parquet")
    with pytest.raises(ValueError, match=r"requests\.parquet does not say which run it is of"):
        read(tmp_path)


def test_versions_name_what_a_run_depends_on() -> None:
    assert versions()["remontoir"] == __version__
    assert versions()["numpy"] == np.__version__
    assert set(versions()) == {"remontoir", "python", "numpy"}
