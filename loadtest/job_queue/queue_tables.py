"""The leader's queue, in the database of its results.

Owns every change of a job's state; each call is one transaction, so that a leader
that is killed between two of them has lost nothing. Decisions are two_tier.py's; `now_s` is an
argument.
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import sqlalchemy as sql

from loadtest.analysis.cell import Cell, key_of
from loadtest.driver.results_db import ResultsDatabase, ResultsError
from loadtest.job_queue.messages import (
    OPEN_STATES,
    Assignment,
    Beat,
    End,
    FollowerFacts,
    Job,
    Overview,
    Submission,
    Told,
)
from loadtest.job_queue.queue_schema import (
    FOLLOWERS,
    JOBS,
    ROWS,
    QueueError,
    backlog_s_of,
    database_url,
    fits,
    is_alive,
    job_of,
    open_database,
)
from loadtest.job_queue.two_tier import Follower, Order, Placement, Waiting, choose, place, steal

BEAT_S = 3.0
MAX_ATTEMPTS = 3
# Without a better idea: the middle of what benchmark jobs take.
DEFAULT_ESTIMATE_S = 120.0
# Of how many earlier jobs the estimates are corrected by.
REMEMBERED = 50


class JobQueue:
    """All jobs and followers. One leader at a time works on a database."""

    def __init__(
        self, place: str, *, new_lease: Callable[[], str] = lambda: secrets.token_urlsafe(24)
    ) -> None:
        """`place` is a folder, a file or a URL. Raises QueueError."""
        try:
            self._results = ResultsDatabase(place)
        except ResultsError as error:
            raise QueueError(str(error)) from error
        self._engine = open_database(database_url(place))
        self._new_lease = new_lease

    @property
    def name(self) -> str:
        """Where it is, without a password."""
        return self._results.name

    def resume(self, now_s: float) -> None:
        """A leader has begun: nobody could say anything while there was none, so that followers
        that run something have a whole lease to do so.
        """
        with self._engine.begin() as base:
            running = sql.select(JOBS.c.follower).where(JOBS.c.state == "running")
            base.execute(
                FOLLOWERS.update().where(FOLLOWERS.c.name.in_(running)).values(seen_s=now_s)
            )

    def close(self) -> None:
        self._engine.dispose()
        self._results.close()

    def submit(self, job_id: str, job: Submission, now_s: float) -> Job:
        """Put a job into a follower's queue. The same id again is the same job: it is not queued
        twice, whatever was lost on the way. Raises QueueError for another job under that id.
        """
        spec_hash = hashlib.sha256(job.spec.encode()).hexdigest()
        with self._engine.begin() as base:
            known = base.execute(sql.select(JOBS).where(JOBS.c.job_id == job_id)).first()
            if known is not None:
                if known.spec_hash != spec_hash or known.name != job.name:
                    raise QueueError(f"job {job_id} is another job", is_conflict=True)
                return job_of(known, self._num_rows(base, job_id))
            number = base.execute(
                sql.select(sql.func.coalesce(sql.func.max(JOBS.c.number), -1) + 1)
            ).scalar_one()
            estimated_s = self._estimate_s(base, job, spec_hash)
            base.execute(
                JOBS.insert().values(
                    job_id=job_id,
                    number=number,
                    name=job.name,
                    submitter=job.submitter,
                    labels=json.dumps(job.on),
                    spec=job.spec,
                    spec_hash=spec_hash,
                    state="waiting",
                    told_s=job.estimated_s,
                    estimated_s=estimated_s,
                    submitted_s=now_s,
                    attempts=0,
                    message="",
                )
            )
            self._place(base, now_s)
            return self._read(base, job_id)

    def beat(self, name: str, beat: Beat, now_s: float) -> Told:
        """A follower is there. It gets a job if it has none and its host is idle. Raises
        QueueError if another one has its name.
        """
        with self._engine.begin() as base:
            known = base.execute(sql.select(FOLLOWERS).where(FOLLOWERS.c.name == name)).first()
            if known is not None and known.instance != beat.instance and is_alive(known, now_s):
                raise QueueError(
                    f"another follower is called {name}; give this one another name",
                    is_conflict=True,
                )
            facts = {
                "instance": beat.instance,
                "labels": json.dumps(beat.labels),
                "is_idle": beat.is_idle,
                "busy": beat.busy,
                "seen_s": now_s,
            }
            if known is None:
                base.execute(FOLLOWERS.insert().values(name=name, **facts))
            else:
                base.execute(FOLLOWERS.update().where(FOLLOWERS.c.name == name).values(**facts))
            self._expire(base, now_s)
            if beat.lease is not None:
                is_held = base.execute(
                    sql.select(JOBS.c.job_id).where(
                        JOBS.c.lease == beat.lease, JOBS.c.state == "running"
                    )
                ).first()
                return Told(stop=is_held is None, beat_in_s=BEAT_S)
            # It runs nothing: what it was given never arrived there, or it was restarted.
            self._give_back(base, JOBS.c.follower == name, f"{name} was restarted", now_s)
            self._place(base, now_s)
            run = self._next_of(base, name, beat, now_s) if beat.is_idle else None
            return Told(run=run, beat_in_s=BEAT_S)

    def add_rows(self, job_id: str, lease: str, cells: Sequence[Cell]) -> int:
        """Keep results; how many there are now. Raises QueueError if the lease is void."""
        with self._engine.begin() as base:
            self._held(base, job_id, lease)
        # Kept first and noted after: what is sent again, since the answer was lost, is one row.
        self._results.add(list(cells))
        with self._engine.begin() as base:
            for cell in cells:
                where = (ROWS.c.job_id == job_id) & (ROWS.c.row_key == key_of(cell))
                base.execute(ROWS.delete().where(where))
                base.execute(
                    ROWS.insert().values(job_id=job_id, row_key=key_of(cell), run_id=cell.run_id)
                )
            return self._num_rows(base, job_id)

    def end(self, job_id: str, end: End, now_s: float) -> Job:
        """A follower has ended a job. Raises QueueError if its lease is void."""
        with self._engine.begin() as base:
            job = self._held(base, job_id, end.lease)
            if end.state == "lost":
                self._give_back(base, JOBS.c.job_id == job.job_id, end.message, now_s)
                self._place(base, now_s)
            else:
                base.execute(
                    JOBS.update()
                    .where(JOBS.c.job_id == job_id)
                    .values(state=end.state, message=end.message, ended_s=now_s, lease=None)
                )
            return self._read(base, job_id)

    def cancel(self, job_id: str, now_s: float) -> Job:
        """Whoever runs it hears at its next beat. Raises QueueError if it has ended already."""
        with self._engine.begin() as base:
            job = self._read(base, job_id)
            if job.state not in OPEN_STATES:
                raise QueueError(f"job {job_id} is {job.state} already", is_conflict=True)
            base.execute(
                JOBS.update()
                .where(JOBS.c.job_id == job_id)
                .values(state="cancelled", ended_s=now_s, lease=None)
            )
            return self._read(base, job_id)

    def job(self, job_id: str) -> Job:
        """Raises QueueError for an unknown id."""
        with self._engine.begin() as base:
            return self._read(base, job_id)

    def rows(self, job_id: str) -> list[str]:
        """Results as JSON, as they were measured. Raises QueueError for an unknown job."""
        with self._engine.begin() as base:
            self._read(base, job_id)
            found = base.execute(
                sql.select(ROWS.c.run_id).where(ROWS.c.job_id == job_id).distinct()
            )
            runs = sorted(str(run_id) for (run_id,) in found)
        return [line for run_id in runs for line in self._results.lines(run_id=run_id)]

    def overview(self, now_s: float, *, ended: int = 20) -> Overview:
        """All open jobs, the last `ended` others, and all followers."""
        with self._engine.begin() as base:
            self._expire(base, now_s)
            counts: dict[str, int] = dict(
                base.execute(
                    sql.select(ROWS.c.job_id, sql.func.count()).group_by(ROWS.c.job_id)
                ).all()
            )
            open_jobs = base.execute(
                sql.select(JOBS).where(JOBS.c.state.in_(OPEN_STATES)).order_by(JOBS.c.number)
            ).all()
            done = base.execute(
                sql.select(JOBS)
                .where(JOBS.c.state.not_in(OPEN_STATES))
                .order_by(JOBS.c.ended_s.desc())
                .limit(ended)
            ).all()
            jobs = [job_of(row, counts.get(row.job_id, 0)) for row in (*open_jobs, *reversed(done))]
            followers = [
                FollowerFacts(
                    name=row.name,
                    labels=json.loads(row.labels),
                    is_idle=row.is_idle,
                    busy=row.busy,
                    seen_s=row.seen_s,
                    is_alive=is_alive(row, now_s),
                    backlog_s=backlog_s_of(row.name, open_jobs, now_s),
                    runs=next(
                        (
                            job.job_id
                            for job in open_jobs
                            if job.state == "running" and job.follower == row.name
                        ),
                        None,
                    ),
                )
                for row in base.execute(sql.select(FOLLOWERS).order_by(FOLLOWERS.c.name))
            ]
            return Overview(now_s=now_s, jobs=jobs, followers=followers)

    def _estimate_s(self, base: Any, job: Submission, spec_hash: str) -> float:
        """What the same spec took before; else what it says, times what earlier ones took of what
        theirs said.
        """
        took = JOBS.c.ended_s - JOBS.c.started_s
        same = (
            base.execute(
                sql.select(took).where(JOBS.c.spec_hash == spec_hash, JOBS.c.state == "done")
            )
            .scalars()
            .all()
        )
        if same:
            return max(1.0, float(median(same)))
        if job.estimated_s is None:
            return DEFAULT_ESTIMATE_S
        ratios = (
            base.execute(
                sql.select(took / JOBS.c.told_s)
                .where(JOBS.c.state == "done", JOBS.c.told_s > 0)
                .order_by(JOBS.c.ended_s.desc())
                .limit(REMEMBERED)
            )
            .scalars()
            .all()
        )
        return max(1.0, job.estimated_s * (float(median(ratios)) if ratios else 1.0))

    def _place(self, base: Any, now_s: float) -> None:
        """Tier 1: everything that waits for nobody, or for somebody who is gone."""
        alive = [row for row in base.execute(sql.select(FOLLOWERS)) if is_alive(row, now_s)]
        names = [row.name for row in alive]
        open_jobs = base.execute(
            sql.select(JOBS).where(JOBS.c.state.in_(OPEN_STATES)).order_by(JOBS.c.number)
        ).all()
        backlog_s = {name: backlog_s_of(name, open_jobs, now_s) for name in names}
        for job in open_jobs:
            if job.state != "waiting" or job.follower in backlog_s:
                continue
            fitting = [
                Follower(name=row.name, backlog_s=backlog_s[row.name], is_idle_host=row.is_idle)
                for row in alive
                if fits(json.loads(job.labels), json.loads(row.labels))
            ]
            chosen = place(fitting, Placement.LEAST_BACKLOG, job.number)
            if chosen is not None:
                backlog_s[chosen] += job.estimated_s
            base.execute(JOBS.update().where(JOBS.c.job_id == job.job_id).values(follower=chosen))

    def _next_of(self, base: Any, name: str, beat: Beat, now_s: float) -> Assignment | None:
        """Tier 2; and if nothing waits for it, a job of the longest queue that it may run."""
        queues: dict[str, list[Waiting]] = {}
        found = base.execute(
            sql.select(JOBS).where(JOBS.c.state == "waiting").order_by(JOBS.c.number)
        )
        for job in found:
            if job.follower is not None and fits(json.loads(job.labels), beat.labels):
                queues.setdefault(job.follower, []).append(
                    Waiting(
                        job_id=job.job_id,
                        number=job.number,
                        submitted_s=job.submitted_s,
                        estimated_s=job.estimated_s,
                        follower=job.follower,
                    )
                )
        chosen = choose(queues.get(name, ()), Order.SHORTEST_FIRST, now_s)
        chosen = chosen or steal(queues, Order.SHORTEST_FIRST, now_s)
        if chosen is None:
            return None
        lease = self._new_lease()
        base.execute(
            JOBS.update()
            .where(JOBS.c.job_id == chosen.job_id)
            .values(
                state="running",
                follower=name,
                lease=lease,
                started_s=now_s,
                attempts=JOBS.c.attempts + 1,
                message="",
            )
        )
        job = base.execute(sql.select(JOBS).where(JOBS.c.job_id == chosen.job_id)).one()
        return Assignment(
            job_id=job.job_id,
            lease=lease,
            name=job.name,
            spec=job.spec,
            estimated_s=job.estimated_s,
        )

    def _expire(self, base: Any, now_s: float) -> None:
        """Jobs of followers that were not heard of for a lease."""
        for row in base.execute(sql.select(FOLLOWERS)).all():
            if not is_alive(row, now_s):
                self._give_back(
                    base,
                    JOBS.c.follower == row.name,
                    f"{row.name} was not heard of for {now_s - row.seen_s:.0f} s",
                    now_s,
                )

    def _give_back(self, base: Any, where: Any, why: str, now_s: float) -> None:
        """What ran there waits again, for anybody; after MAX_ATTEMPTS it has failed."""
        running = base.execute(sql.select(JOBS).where(where, JOBS.c.state == "running")).all()
        for job in running:
            is_over = job.attempts >= MAX_ATTEMPTS
            base.execute(
                JOBS.update()
                .where(JOBS.c.job_id == job.job_id)
                .values(
                    state="failed" if is_over else "waiting",
                    message=f"attempt {job.attempts} of {MAX_ATTEMPTS}: {why}",
                    ended_s=now_s if is_over else None,
                    started_s=job.started_s if is_over else None,
                    follower=job.follower if is_over else None,
                    lease=None,
                )
            )

    def _held(self, base: Any, job_id: str, lease: str) -> Job:
        job = self._read(base, job_id)
        held = base.execute(sql.select(JOBS.c.lease).where(JOBS.c.job_id == job_id)).scalar_one()
        if job.state != "running" or held != lease:
            raise QueueError(
                f"job {job_id} is {job.state}, and not by this lease: it was given to somebody "
                "else, or cancelled",
                is_conflict=True,
            )
        return job

    def _read(self, base: Any, job_id: str) -> Job:
        row = base.execute(sql.select(JOBS).where(JOBS.c.job_id == job_id)).first()
        if row is None:
            raise QueueError(f"there is no job {job_id}")
        return job_of(row, self._num_rows(base, job_id))

    def _num_rows(self, base: Any, job_id: str) -> int:
        counted = sql.select(sql.func.count()).where(ROWS.c.job_id == job_id)
        return int(base.execute(counted).scalar_one())
