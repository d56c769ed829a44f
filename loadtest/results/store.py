"""Tables as files and back: Parquet, one file per table, or one SQLite file.

Owns the files' names and how metadata is carried in them. Every file says which run it is of.
"""

import platform
import sqlite3
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np

from loadtest.results.tables import (
    ACTION_COLUMNS,
    CODED,
    DEVICE_COLUMNS,
    REQUEST_COLUMNS,
    RunMeta,
    Table,
    Tables,
)
from scheduler import __version__

COLUMNS = {"requests": REQUEST_COLUMNS, "actions": ACTION_COLUMNS, "devices": DEVICE_COLUMNS}
SQLITE_FILE = "results.sqlite"
_META_KEY = b"remontoir.run"
_SQL_TYPES = {"d": "REAL"}
_SQLITE_CHUNK = 50_000  # rows turned into Python objects at a time


def versions() -> dict[str, str]:
    """What a run depends on, for RunMeta."""
    return {"remontoir": __version__, "python": platform.python_version(), "numpy": np.__version__}


def write(
    tables: Tables, directory: str | Path, meta: RunMeta, format: str = "parquet"
) -> list[Path]:
    """Write the tables into the directory, which is made if need be; the files written.

    Raises ValueError for another format than "parquet" or "sqlite", RuntimeError with what to
    install if Parquet is wanted without its library. What was written there before is replaced, in
    whichever format: a folder is of one run, and whoever reads it must not find an older one.
    """
    directory = Path(directory)
    if format not in ("parquet", "sqlite"):
        raise ValueError(f"results are written as parquet or sqlite, not {format!r}")
    directory.mkdir(parents=True, exist_ok=True)
    if format == "sqlite":
        written = [_write_sqlite(tables, directory / SQLITE_FILE, meta)]
    else:
        written = _write_parquet(tables, directory, meta)
    for path in (directory / SQLITE_FILE, *(directory / f"{name}.parquet" for name in COLUMNS)):
        if path not in written:
            path.unlink(missing_ok=True)
    return written


def read(directory: str | Path) -> tuple[Tables, RunMeta]:
    """What `write` wrote there. FileNotFoundError names what is missing."""
    directory = Path(directory)
    if (directory / "requests.parquet").exists():
        return _read_parquet(directory)
    if (directory / SQLITE_FILE).exists():
        return _read_sqlite(directory / SQLITE_FILE)
    raise FileNotFoundError(f"{directory} holds neither requests.parquet nor {SQLITE_FILE}")


def _write_parquet(tables: Tables, directory: Path, meta: RunMeta) -> list[Path]:
    _, parquet = _pyarrow()
    paths = []
    for name, table in tables.named().items():
        path = directory / f"{name}.parquet"
        parquet.write_table(_to_arrow(table, meta), path, compression="zstd")
        paths.append(path)
    return paths


def _pyarrow() -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow  # type: ignore[import-untyped,unused-ignore]
        import pyarrow.parquet  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise RuntimeError(
            'Parquet needs pyarrow: pip install "remontoir[simulate]" (or write sqlite)'
        ) from error
    return pyarrow, pyarrow.parquet


def _to_arrow(table: Table, meta: RunMeta) -> Any:
    pyarrow, _ = _pyarrow()
    columns = {}
    for name, values in table.columns.items():
        if name in table.names:
            words = pyarrow.array(list(table.names[name]), pyarrow.string())
            codes = pyarrow.array(values.astype(np.int32))
            columns[name] = pyarrow.DictionaryArray.from_arrays(codes, words)
        else:
            columns[name] = pyarrow.array(values)
    return pyarrow.table(columns).replace_schema_metadata({_META_KEY: msgspec.json.encode(meta)})


def _read_parquet(directory: Path) -> tuple[Tables, RunMeta]:
    pyarrow, parquet = _pyarrow()
    tables, found = {}, b""
    for table_name, columns in COLUMNS.items():
        arrow = parquet.read_table(directory / f"{table_name}.parquet").combine_chunks()
        found = (arrow.schema.metadata or {}).get(_META_KEY, b"")
        if not found:
            raise ValueError(f"{directory / table_name}.parquet does not say which run it is of")
        values, names = {}, {}
        for name, code in columns.items():
            column = arrow.column(name).combine_chunks()
            if isinstance(column, pyarrow.ChunkedArray):  # of no rows
                column = pyarrow.array([], column.type)
            if name in CODED[table_name]:
                if not pyarrow.types.is_dictionary(column.type):
                    column = column.dictionary_encode()
                names[name] = column.dictionary.to_pylist()
                column = column.indices
            values[name] = np.asarray(column.to_numpy(zero_copy_only=False)).astype("<" + code)
        tables[table_name] = Table(values, names)
    return Tables(**tables), msgspec.json.decode(found, type=RunMeta)


def _write_sqlite(tables: Tables, path: Path, meta: RunMeta) -> Path:
    path.unlink(missing_ok=True)
    base = sqlite3.connect(path)
    try:
        base.execute("CREATE TABLE run (key TEXT PRIMARY KEY, value TEXT)")
        for key, value in msgspec.to_builtins(meta).items():
            text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
            base.execute("INSERT INTO run VALUES (?, ?)", (key, text))
        for table_name, table in tables.named().items():
            types = COLUMNS[table_name]
            parts = [
                f"{name} {'TEXT' if name in table.names else _SQL_TYPES.get(code, 'INTEGER')}"
                for name, code in types.items()
            ]
            base.execute(f"CREATE TABLE {table_name} ({', '.join(parts)})")
            insert = f"INSERT INTO {table_name} VALUES ({', '.join('?' * len(types))})"
            for first in range(0, len(table), _SQLITE_CHUNK):
                part = table.rows(np.arange(first, min(first + _SQLITE_CHUNK, len(table))))
                lists = [
                    (part.texts(name) if name in part.names else part[name]).tolist()
                    for name in types
                ]
                base.executemany(insert, zip(*lists, strict=True))
        base.commit()
    finally:
        base.close()
    return path


def _read_sqlite(path: Path) -> tuple[Tables, RunMeta]:
    base = sqlite3.connect(path)
    try:
        facts = dict(base.execute("SELECT key, value FROM run"))
        texts = {"scenario", "policy"}
        meta = {k: v if k in texts else msgspec.json.decode(v) for k, v in facts.items()}
        tables = {name: _read_sql_table(base, name) for name in COLUMNS}
    finally:
        base.close()
    return Tables(**tables), msgspec.convert(meta, RunMeta)


def _read_sql_table(base: sqlite3.Connection, table_name: str) -> Table:
    values: dict[str, Any] = {}
    names: dict[str, list[str]] = {}
    for name, code in COLUMNS[table_name].items():
        found = [value for (value,) in base.execute(f"SELECT {name} FROM {table_name}")]
        if name in CODED[table_name]:
            places: dict[str, int] = {}
            found = [places.setdefault(text, len(places)) for text in found]
            names[name] = list(places)
        values[name] = np.array(found, dtype="<" + code)
    return Table(values, names)
