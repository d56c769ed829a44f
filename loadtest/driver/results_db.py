"""Where results are kept: a table of rows and one of registered models, in SQLite or by URL.

Owns the tables and when a row is safe: `add` returns once the row is on the disk, so that whatever
ends a driver later takes no finished run with it. A row is a `Cell`; its key is the same for the
same cell of the same run, so that a second copy replaces the first.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from loadtest.analysis.cell import MOST_KEY_CHARACTERS, Cell, key_of, row_of

FILE_NAME = "results.sqlite"
SUFFIXES = (".sqlite", ".db")
# A row is 5 to 20 KB. Below this the disk would fill up in the middle of a job, after its time.
LEAST_FREE_BYTES = 16 << 20
EXTRA = "for PostgreSQL: pip install 'remontoir[bench-postgresql]'"
BUSY_TIMEOUT_S = 10.0  # another process commits a row in milliseconds; a slow disk in seconds


class ResultsError(Exception):
    """Results cannot be read or kept. The message names the place and what is wrong with it."""


class ResultsDatabase:
    """An open database. `place` is a folder, a .sqlite or .db file, or a URL:
    postgresql://HOST/NAME, or any that SQLAlchemy knows. Raises ResultsError.
    """

    def __init__(self, place: str | Path, *, must_exist: bool = False) -> None:
        sql = _sqlalchemy()
        self.folder: Path | None = None
        url, path = url_of(place)
        if path is not None:
            if must_exist and not path.exists():
                raise ResultsError(f"{path}: there are no results")
            self.folder = path.parent
        self.name = str(place) if self.folder else without_password(url)
        self._sql = sql
        self._tables = tables = sql.MetaData()
        text = sql.Text
        self._rows = sql.Table(
            "bench_rows",
            tables,
            sql.Column("row_key", sql.String(MOST_KEY_CHARACTERS), primary_key=True),
            sql.Column("run_id", sql.String(64), nullable=False, index=True),
            sql.Column("job", sql.String(200), nullable=False, index=True),
            sql.Column("job_hash", sql.String(64), nullable=False, index=True),
            sql.Column("model", sql.String(200), nullable=False, index=True),
            sql.Column("started_at", sql.String(40), nullable=False),
            sql.Column("is_partial", sql.Boolean, nullable=False),
            sql.Column("content", text, nullable=False),
        )
        self._models = sql.Table(
            "bench_models",
            tables,
            sql.Column("name", sql.String(200), primary_key=True),
            sql.Column("content", text, nullable=False),
        )
        try:
            if self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
            # a server may have been started anew since the last row, an hour ago
            self._engine = sql.create_engine(url, pool_pre_ping=True)
            if self._engine.dialect.name == "sqlite":
                sql.event.listen(self._engine, "connect", _durable)
            create_tables(tables, self._engine)
        except ImportError as error:
            raise ResultsError(f"{self.name} cannot hold results: {error}; {EXTRA}") from error
        except (OSError, sql.exc.SQLAlchemyError) as error:
            raise ResultsError(f"{self.name} cannot hold results: {short(error)}") from error

    def close(self) -> None:
        self._engine.dispose()

    def check_room(self) -> None:
        """Raises ResultsError where a disk is so full that a measured row might find no room."""
        if self.folder is None:
            return
        free = shutil.disk_usage(self.folder).free
        if free < LEAST_FREE_BYTES:
            raise ResultsError(
                f"{self.folder} has {free / 1e6:.1f} MB free, {LEAST_FREE_BYTES / 1e6:.0f} MB are "
                "needed: nothing more is measured that could not be kept"
            )

    def add(self, cells: list[Cell]) -> None:
        """All or none of them, and on the disk. Raises ResultsError; earlier rows stay."""
        sql, rows = self._sql, self._rows
        keys = [key_of(cell) for cell in cells]
        try:
            with self._engine.begin() as base:
                base.execute(sql.delete(rows).where(rows.c.row_key.in_(keys)))
                for cell, key in zip(cells, keys, strict=True):
                    base.execute(
                        sql.insert(rows).values(
                            row_key=key,
                            run_id=cell.run_id,
                            job=cell.job,
                            job_hash=cell.job_hash,
                            model=cell.model,
                            started_at=cell.started_at,
                            is_partial=bool(cell.partial),
                            content=row_of(cell).decode(),
                        )
                    )
        except sql.exc.SQLAlchemyError as error:
            raise ResultsError(f"{self.name}: a row cannot be kept: {short(error)}") from error

    def cells(
        self, *, job: str | None = None, model: str | None = None, run_id: str | None = None
    ) -> Iterator[Cell]:
        """In the order they were measured."""
        for line in self.lines(job=job, model=model, run_id=run_id):
            yield msgspec.json.decode(line, type=Cell)

    def lines(
        self, *, job: str | None = None, model: str | None = None, run_id: str | None = None
    ) -> list[str]:
        """Rows as JSON, each with its `key`."""
        rows = self._rows
        wanted = [
            column == value
            for column, value in ((rows.c.job, job), (rows.c.model, model), (rows.c.run_id, run_id))
            if value is not None
        ]
        return self._read(
            self._sql.select(rows.c.content)
            .where(*wanted)
            .order_by(rows.c.started_at, rows.c.row_key)
        )

    def last_run(self, job_hash: str) -> str | None:
        """The latest run of this very job file, or None."""
        rows = self._rows
        found = self._read(
            self._sql.select(rows.c.run_id)
            .where(rows.c.job_hash == job_hash)
            .order_by(rows.c.started_at.desc())
            .limit(1)
        )
        return found[0] if found else None

    # registered models, as JSON

    def model_lines(self) -> list[str]:
        return self._read(self._sql.select(self._models.c.content).order_by(self._models.c.name))

    def model_line(self, name: str) -> str | None:
        models = self._models
        found = self._read(self._sql.select(models.c.content).where(models.c.name == name))
        return found[0] if found else None

    def put_model(self, name: str, content: str) -> None:
        sql, models = self._sql, self._models
        self._write(
            sql.delete(models).where(models.c.name == name),
            sql.insert(models).values(name=name, content=content),
        )

    def delete_model(self, name: str) -> None:
        self._write(self._sql.delete(self._models).where(self._models.c.name == name))

    def _read(self, query: Any) -> list[str]:
        try:
            with self._engine.begin() as base:
                return [str(value) for (value,) in base.execute(query)]
        except self._sql.exc.SQLAlchemyError as error:
            raise ResultsError(f"{self.name} cannot be read: {short(error)}") from error

    def _write(self, *statements: Any) -> None:
        try:
            with self._engine.begin() as base:
                for statement in statements:
                    base.execute(statement)
        except self._sql.exc.SQLAlchemyError as error:
            raise ResultsError(f"{self.name} cannot be written: {short(error)}") from error


def url_of(place: str | Path) -> tuple[str, Path | None]:
    """As SQLAlchemy has it, and the file where it is one: `place` is a folder, a file or a URL."""
    text = str(place)
    for usual in ("postgresql://", "postgres://"):  # as everybody writes it
        if text.startswith(usual):
            return "postgresql+psycopg://" + text.removeprefix(usual), None
    if "://" in text:
        return text, None
    path = Path(place)
    if path.suffix not in SUFFIXES:
        path = path / FILE_NAME
    return f"sqlite:///{path.resolve()}", path


def create_tables(tables: Any, engine: Any) -> None:
    """`tables` is SQLAlchemy's MetaData. Of two that begin at once both find none of them; who is
    second then looks again. Raises SQLAlchemyError.
    """
    for is_last in (False, True):
        try:
            tables.create_all(engine)
            return
        except _sqlalchemy().exc.DBAPIError as error:
            if is_last or not _is_there_already(error):
                raise


def _is_there_already(error: Any) -> bool:
    # PostgreSQL's duplicate_table, and unique_violation of its own catalogue; SQLite has words only
    sqlstate = getattr(error.orig, "sqlstate", None)
    return sqlstate in ("42P07", "23505") or "already exists" in str(error.orig)


def _sqlalchemy() -> Any:  # the module: it is an extra, and without types here
    try:
        import sqlalchemy
    except ImportError as error:
        raise ResultsError(
            f"results need SQLAlchemy: pip install 'remontoir[bench]'; {EXTRA}"
        ) from error
    return sqlalchemy


def _durable(connection: Any, _: object) -> None:
    """SQLite says that a row is kept when it is, also through a power cut."""
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(f"PRAGMA busy_timeout={int(BUSY_TIMEOUT_S * 1000)}")


def short(error: Exception) -> str:
    """What the database said, without the statement and SQLAlchemy's background links."""
    return " ".join(str(getattr(error, "orig", None) or error).split())[:300]


def without_password(url: str) -> str:
    sql = _sqlalchemy()
    try:
        return str(sql.engine.make_url(url).render_as_string(hide_password=True))
    except sql.exc.ArgumentError:
        return repr(url)
