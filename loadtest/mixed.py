"""What no constant can do: short and long executions, tight and loose SLOs, 120 % of a core.

Owns the experiment of the README's table of mixed classes, and the search for the constant that
does best: plain FastAPI with at most N outstanding, N from 1 to 16, each on the same arrivals.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from loadtest import repositories, servers
from loadtest.bench import Bench
from loadtest.http1 import Shot
from loadtest.messages import (
    Floats,
    ReadAnswer,
    Tensor,
    baseline_binary,
    read_baseline,
    read_remontoir,
    remontoir_binary,
)
from loadtest.openloop import drive
from loadtest.reference import measure, sample_rows
from loadtest.report import percent
from loadtest.score import Score, score
from loadtest.scrape import Scrape, scrape
from loadtest.workloads import Poisson, open_loop


class Class(NamedTuple):
    """Requests of one kind, and the share of the core that they ask for."""

    model: str
    slo_ms: float
    core_share: float

    @property
    def name(self) -> str:
        return f"{self.model} / {self.slo_ms:.0f} ms"


CLASSES = (Class("fast", 50.0, 0.20), Class("fast", 500.0, 0.10), Class("slow", 450.0, 0.90))
FAST = (0, 1)
LIMITS = range(1, 17)
NUM_ROWS = 8
MAX_DRIFT = 0.1
MAX_TRIES = 3

BAR_FAST = 0.97
BAR_USEFUL = 0.90


class Cell(msgspec.Struct, kw_only=True):
    """One server, all classes. Shares are of the core's time.

    `useful_share`: requests on time, times what their model takes in the bare loop.
    `executed_share`, `executed_on_time_share`: by the server's own account, where it gives one.
    """

    server: str
    limit: int
    scores: list[Score]
    useful_share: float
    executed_share: float | None = None
    executed_on_time_share: float | None = None
    tries: int = 1


class Result(msgspec.Struct, kw_only=True):
    exec_ms_before: dict[str, float]
    exec_ms_after: dict[str, float]
    ours: Cell
    baselines: list[Cell]
    best_baseline: Cell


class _Target(NamedTuple):
    name: str
    limit: int
    port: int
    requests: list[list[bytes]]
    read: ReadAnswer


def run(bench: Bench) -> Result:
    """Raises CalibrationError."""
    report = bench.report
    report.start("Mixed classes: two models, three SLOs, 120 % of the core")
    repository, times_ms = repositories.mixed(bench.models_dir, say=report.say)
    experiment = _Experiment(bench, repository, times_ms)
    ours = _run_ours(bench, experiment)
    baselines, best = _run_baselines(bench, experiment)
    result = Result(
        exec_ms_before=times_ms,
        exec_ms_after=experiment.measure_times(),
        ours=ours,
        baselines=baselines,
        best_baseline=best,
    )
    _report(bench, result)
    return result


def _run_ours(bench: Bench, experiment: "_Experiment") -> Cell:
    with servers.remontoir(
        experiment.repository, cache_dir=bench.cache_dir, log_dir=bench.log_dir
    ) as server:
        bench.report.say(f"$ {server.command}")
        requests = [
            [
                remontoir_binary(kind.model, "x", row, slo_ms=kind.slo_ms, port=server.port)
                for row in experiment.rows[kind.model]
            ]
            for kind in CLASSES
        ]
        target = _Target("remontoir", 0, server.port, requests, read_remontoir)
        experiment.play(target, bench.seconds(3.0, 1.0), seed=0)
        for tries in range(1, MAX_TRIES + 1):
            before_ms = experiment.measure_times()
            at_start = scrape(server)
            cell = experiment.play(target, bench.seconds(30.0, 6.0), seed=bench.seed + tries)
            at_end = scrape(server)
            after_ms = experiment.measure_times()
            cell.tries = tries
            drift = max(abs(after_ms[name] / before_ms[name] - 1) for name in before_ms)
            if drift <= MAX_DRIFT:
                break
            bench.report.say(
                f"remontoir: executions moved by {drift:.0%}, try {tries} of {MAX_TRIES}",
                style="yellow",
            )
    _add_own_account(cell, at_start, at_end)
    return cell


def _add_own_account(cell: Cell, at_start: Scrape, at_end: Scrape) -> None:
    """What was executed, and how much of it for requests that were on time."""
    span_s = max(scored.span_s for scored in cell.scores)
    executed_s = 0.0
    on_time_s = 0.0
    for model in {kind.model for kind in CLASSES}:

        def grown(name: str, model: str = model) -> float:
            return at_end.sum(name, model=model) - at_start.sum(name, model=model)

        exec_s = grown("remontoir_exec_duration_seconds_sum")
        rows = grown("remontoir_batch_size_sum")
        on_time = sum(
            scored.on_time
            for kind, scored in zip(CLASSES, cell.scores, strict=True)
            if kind.model == model
        )
        executed_s += exec_s
        on_time_s += exec_s * on_time / rows if rows else 0.0
    cell.executed_share = executed_s / span_s
    cell.executed_on_time_share = on_time_s / span_s


def _run_baselines(bench: Bench, experiment: "_Experiment") -> tuple[list[Cell], Cell]:
    paths = {
        name: repositories.model_path(experiment.repository, name).resolve()
        for name in experiment.times_ms
    }
    environ = {"BASELINE_MODELS": ",".join(f"{name}={path}" for name, path in paths.items())}
    with servers.asgi(
        "fastapi", "loadtest.baselines.fastapi_ort:app", log_dir=bench.log_dir, environ=environ
    ) as server:
        bench.report.say(f"$ BASELINE_MODELS=... {server.command}")
        requests = [
            [
                baseline_binary(kind.model, row, port=server.port)
                for row in experiment.rows[kind.model]
            ]
            for kind in CLASSES
        ]

        def measure_cell(limit: int, seconds: float, seed: int) -> Cell:
            server.put(f"/limit/{limit}")
            name = f"FastAPI, at most {limit}"
            target = _Target(name, limit, server.port, requests, read_baseline)
            return experiment.play(target, seconds, seed=seed)

        limits = (1, 2, 4, 8, 16) if bench.is_quick else LIMITS
        cells = [measure_cell(limit, bench.seconds(4.0, 2.0), bench.seed) for limit in limits]
        limit = max(cells, key=lambda cell: cell.useful_share).limit
        best = measure_cell(limit, bench.seconds(15.0, 3.0), bench.seed + 1)
    return cells, best


class _Experiment:
    """Arrivals, inputs and right answers: the same for everybody."""

    def __init__(self, bench: Bench, repository: Path, times_ms: dict[str, float]) -> None:
        self._bench = bench
        self.repository = repository
        self.times_ms = times_ms
        self.rows: dict[str, list[Tensor]] = {}
        self._outputs: dict[str, list[Floats]] = {}
        for name in times_ms:
            path = repositories.model_path(repository, name)
            self.rows[name], self._outputs[name] = sample_rows(path, NUM_ROWS)

    def measure_times(self) -> dict[str, float]:
        seconds = self._bench.seconds(0.5, 0.3)
        return {
            name: measure(
                repositories.model_path(self.repository, name), seconds=seconds, batch_sizes=[1]
            )[1].exec_p50_ms
            for name in self.times_ms
        }

    def play(self, target: _Target, seconds: float, *, seed: int) -> Cell:
        streams = [
            Poisson(
                name=kind.name,
                models=kind.model,
                slo_ms=kind.slo_ms,
                rate_per_s=kind.core_share * 1000 / self.times_ms[kind.model],
            )
            for kind in CLASSES
        ]
        arrivals = list(open_loop(streams, duration_s=seconds, seed=seed))
        shots = drive(port=target.port, arrivals=arrivals, requests=target.requests)
        scores = [
            self._score(shots, stream, target.read, seconds) for stream in range(len(CLASSES))
        ]
        span_s = max(scored.span_s for scored in scores)
        useful_ms = sum(
            scored.on_time * self.times_ms[kind.model]
            for kind, scored in zip(CLASSES, scores, strict=True)
        )
        return Cell(
            server=target.name,
            limit=target.limit,
            scores=scores,
            useful_share=useful_ms / 1000 / span_s,
        )

    def _score(self, shots: Sequence[Shot], stream: int, read: ReadAnswer, seconds: float) -> Score:
        return score(
            [shot for shot in shots if shot.stream == stream],
            slo_ms=[kind.slo_ms for kind in CLASSES],
            expected=[self._outputs[kind.model] for kind in CLASSES],
            read=read,
            duration_s=seconds,
            start_ns=shots[0].at_ns,
        )


def _report(bench: Bench, result: Result) -> None:
    report = bench.report
    before, after = result.exec_ms_before, result.exec_ms_after
    report.say(
        "One execution in the bare loop, before and after: "
        + ", ".join(f"{name} {before[name]:.2f} and {after[name]:.2f} ms" for name in before)
    )
    report.table(
        "On-time share by class, and the core's time that went into answers on time",
        ("server", *(kind.name for kind in CLASSES), "useful share of the core"),
        [_summary(cell) for cell in (*result.baselines, result.best_baseline, result.ours)],
        note="Useful: requests on time x their model's execution in the bare loop. The line before "
        "the last is the best N again, for longer.",
    )
    report.table(
        "Ours, by class",
        (
            *("class", "asks of core", "sent", "on time", "p50 ms", "p99 ms", "late", "refused"),
            *("refusal p50 ms", "504", "no answer", "wrong"),
        ),
        [_detail(kind, scored) for kind, scored in zip(CLASSES, result.ours.scores, strict=True)],
    )
    for index in FAST:
        share = result.ours.scores[index].on_time_share
        report.verdict(
            f"{CLASSES[index].name}: {percent(share)} on time (bar: {BAR_FAST:.0%})",
            is_met=share >= BAR_FAST,
        )
    executed, on_time = result.ours.executed_share or 0.0, result.ours.executed_on_time_share or 0.0
    report.verdict(
        f"executed time that met its SLO: {percent(on_time)} of the core by the server's account "
        f"of {percent(executed)} executed; {percent(result.ours.useful_share)} in the bare loop's "
        f"time (bar: {BAR_USEFUL:.0%})",
        is_met=on_time >= BAR_USEFUL,
    )
    report.save("mixed", result)


def _summary(cell: Cell) -> tuple[object, ...]:
    shares = [percent(scored.on_time_share) for scored in cell.scores]
    return cell.server, *shares, percent(cell.useful_share)


def _detail(kind: Class, scored: Score) -> tuple[object, ...]:
    return (
        *(kind.name, f"{kind.core_share:.0%}", scored.sent, percent(scored.on_time_share)),
        *(scored.p50_ms, scored.p99_ms, scored.late, scored.refused, scored.refusal_p50_ms),
        *(scored.expired, scored.no_answer, scored.wrong),
    )
