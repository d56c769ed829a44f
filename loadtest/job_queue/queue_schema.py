"""The leader's tables: SQLite by default, any database that SQLAlchemy knows by URL.

Owns columns, how a database is opened, and what a row means. Changes nothing in it.
"""

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sql

from loadtest.analysis.cell import MOST_KEY_CHARACTERS
from loadtest.driver.results_db import create_tables, url_of, without_password
from loadtest.job_queue.messages import Job, Labels

# Ten beats: a follower's host that swaps or is suspended for less is not lost.
LEASE_S = 30.0

TABLES = sql.MetaData()
JOBS = sql.Table(
    "queue_jobs",
    TABLES,
    sql.Column("job_id", sql.String(36), primary_key=True),
    sql.Column("number", sql.Integer, nullable=False, unique=True),
    sql.Column("name", sql.String(100), nullable=False),
    sql.Column("submitter", sql.Text, nullable=False),
    sql.Column("labels", sql.Text, nullable=False),
    sql.Column("spec", sql.Text, nullable=False),
    sql.Column("spec_hash", sql.String(64), nullable=False, index=True),
    sql.Column("state", sql.String(16), nullable=False, index=True),
    sql.Column("told_s", sql.Float),  # what the spec said, uncorrected
    sql.Column("estimated_s", sql.Float, nullable=False),
    sql.Column("submitted_s", sql.Float, nullable=False),
    sql.Column("started_s", sql.Float),
    sql.Column("ended_s", sql.Float),
    sql.Column("follower", sql.String(100)),
    sql.Column("lease", sql.String(64)),
    sql.Column("attempts", sql.Integer, nullable=False),
    sql.Column("message", sql.Text, nullable=False),
)
FOLLOWERS = sql.Table(
    "queue_followers",
    TABLES,
    sql.Column("name", sql.String(100), primary_key=True),
    sql.Column("instance", sql.String(64), nullable=False),
    sql.Column("labels", sql.Text, nullable=False),
    sql.Column("is_idle", sql.Boolean, nullable=False),
    sql.Column("busy", sql.Float, nullable=False),
    sql.Column("seen_s", sql.Float, nullable=False),
)
ROWS = sql.Table(
    "queue_rows",  # which results are of which job; they lie in the results' own table
    TABLES,
    sql.Column("job_id", sql.String(36), primary_key=True),
    sql.Column("row_key", sql.String(MOST_KEY_CHARACTERS), primary_key=True),
    sql.Column("run_id", sql.String(64), nullable=False),
)


class QueueError(Exception):
    """The queue cannot do that. The message says why; `is_conflict` if the job's state is why."""

    def __init__(self, message: str, *, is_conflict: bool = False) -> None:
        super().__init__(message)
        self.is_conflict = is_conflict


def database_url(place: str) -> str:
    """A folder or file as the URL of its SQLite database; URLs as they are."""
    url, path = url_of(place)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    return url


def open_database(url: str) -> Any:
    """The engine, with all tables. Raises QueueError."""
    try:
        engine = sql.create_engine(url, pool_pre_ping=True)
        if engine.dialect.name == "sqlite":
            sql.event.listen(engine, "connect", _durable)
        create_tables(TABLES, engine)
    except (sql.exc.SQLAlchemyError, ImportError) as error:
        raise QueueError(f"the database {without_password(url)} cannot be used: {error}") from error
    return engine


def job_of(row: Any, num_rows: int) -> Job:
    return Job(
        job_id=row.job_id,
        number=row.number,
        name=row.name,
        submitter=row.submitter,
        on=json.loads(row.labels),
        state=row.state,
        estimated_s=row.estimated_s,
        submitted_s=row.submitted_s,
        started_s=row.started_s,
        ended_s=row.ended_s,
        follower=row.follower,
        attempts=row.attempts,
        message=row.message,
        num_rows=num_rows,
    )


def is_alive(follower: Any, now_s: float) -> bool:
    return bool(now_s - follower.seen_s <= LEASE_S)


def backlog_s_of(name: str, open_jobs: Sequence[Any], now_s: float) -> float:
    total = 0.0
    for job in open_jobs:
        if job.follower == name:
            ran_s = now_s - job.started_s if job.state == "running" else 0.0
            total += max(0.0, job.estimated_s - ran_s)
    return total


def fits(wanted: Labels, found: Labels) -> bool:
    return all(found.get(key) == value for key, value in wanted.items())


def _durable(connection: Any, _: object) -> None:
    """SQLite keeps what it has said is kept, also through a power cut."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA busy_timeout=10000")
