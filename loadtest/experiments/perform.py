"""One job, done: a run with its measures, a bound, or a measurement of cost.

Runs in a process of its own. Owns how a record is made and where a run's pictures go.
"""

import time
from pathlib import Path

import msgspec

from loadtest.experiments.bounding import bound_figures, window_figures
from loadtest.experiments.jobs import Experiment, Job, Measured, Record
from loadtest.simulate import Run, cost_of, run
from scheduler import build

Instants = tuple[float, float]  # of the clock on the wall, of this process' CPU time


def perform(job: Job, pictures_dir: str) -> Record:
    """Raises ValueError for a case that cannot be played, as `run` does."""
    from loadtest.experiments.registry import find  # the experiments import what is here

    begin_s = time.perf_counter(), time.process_time()
    if job.kind == "cost":
        return _cost(job, begin_s)
    if job.kind == "bound":
        return _record(
            job, Measured(figures=bound_figures(job.case, job.from_s, job.max_requests)), begin_s
        )
    played = run(job.case)
    measured = _measured(job, played, find(job.experiment))
    names = tuple(f"{job.stem}-{name}.png" for name in measured.pictures)
    for name, content in zip(names, measured.pictures.values(), strict=True):
        Path(pictures_dir, name).write_bytes(content)
    record = _record(job, measured, begin_s)
    summary = played.summary
    return msgspec.structs.replace(
        record,
        num_requests=played.num_requests,
        num_events=played.num_events,
        handle_ns=played.handle_wall_ns,
        group=None if summary is None else summary.run,
        streams={} if summary is None else summary.streams,
        anomalies=played.anomalies,
        pictures=names,
    )


def _cost(job: Job, begin_s: Instants) -> Record:
    cost = cost_of(job.case)
    return msgspec.structs.replace(
        _record(job, Measured(), begin_s),
        num_requests=cost.num_requests,
        num_events=cost.num_events,
        handle_ns=cost.handle_wall_ns,
        anomalies=cost.anomalies,
    )


def _measured(job: Job, played: Run, experiment: Experiment) -> Measured:
    measured = Measured()
    if experiment.measure is not None and played.tables is not None:
        measured = experiment.measure(played)
    if job.is_bounded and played.tables is not None:
        figures = {**window_figures(job.case, played.tables), **measured.figures}
        measured = msgspec.structs.replace(measured, figures=figures)
    return measured


def _record(job: Job, measured: Measured, begin_s: Instants) -> Record:
    case = job.case
    return Record(
        experiment=job.experiment,
        kind=job.kind,
        scenario=case.scenario,
        policy="" if job.kind == "bound" else case.policy,
        seed=case.seed,
        values=case.values,
        warmup_s=case.setup.warmup_s,
        duration_s=case.duration_s,
        core=build.describe(),
        wall_s=time.perf_counter() - begin_s[0],
        cpu_s=time.process_time() - begin_s[1],
        figures=measured.figures,
        series=measured.series,
        words=measured.words,
    )
