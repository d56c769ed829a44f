"""Step "product": many models through a cache that holds fewer, over HTTP, by the whole product.

One network under many names, so that it is built once; every name has weights of its own in the
cache. Popularity is uniform, so with 50 names and room for 20 three requests of five find their
model absent, unless a batch of it is waited for. Capacity is found first: what comes back in time
at a rate that is more than can be served.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from loadtest import servers
from loadtest.gpu_check import models, predictions
from loadtest.gpu_check.outcome import Document, Line, StepError
from loadtest.gpu_check.predictions import Errors, Missed
from loadtest.http1 import Shot
from loadtest.machine import MachineError
from loadtest.messages import Floats, Tensor, read_remontoir, remontoir_binary
from loadtest.openloop import drive
from loadtest.reference import sample_rows
from loadtest.report import percent
from loadtest.score import Score, read_or_none, score
from loadtest.servers import Server, ServerError
from loadtest.workloads import Poisson, open_loop
from scheduler.recording import RecordingError
from scheduler.spec import MILLISECOND_NS, ModelSpec

CPU = "cpu"
LOADS = (0.5, 0.9)  # of the capacity
NUM_ROWS = 8
MAX_ERROR = 1e-2  # as of engines: TF32, and another kernel for each batch size
# More than this in time is no overload yet, and the rate is doubled.
NOT_FULL = 0.97
MAX_DOUBLINGS = 10
PER_REQUEST_MS = 0.5  # gateway, wire and worker, for a first guess of the rate
START_TIMEOUT_S = 900.0

BAR_ATTAINED = 0.99  # at half of the capacity: a planned system with room
BAR_LATE = 0.001  # of 200s, by the client's clock; what cannot be in time is to be refused
PLAN_FILE = "model.plan"


class ProductOptions(NamedTuple):
    """`num_cached` models fit the cache."""

    device: str
    out_dir: Path
    is_quick: bool
    page_mb: int
    model: str
    num_names: int
    num_cached: int
    slo_ms: float
    seconds: float
    seed: int
    say: Callable[[str], None]


class Run(msgspec.Struct, kw_only=True):
    """At one rate. Shares are of the 200s, errors actual minus predicted."""

    load: float
    rate_per_s: float
    score: Score
    cold_share: float
    request_error: Errors | None
    exec_error: Errors | None
    load_error: Errors | None


class ProductFigures(msgspec.Struct, kw_only=True):
    model: str
    num_names: int
    num_cached: int
    cache_mb: int
    weights_bytes: int
    slo_ms: float
    exec_ms: dict[str, float]
    load_ms: float
    capacity_per_s: float
    runs: list[Run]


class _Played(NamedTuple):
    load: float
    rate_per_s: float
    score: Score
    shots: list[Shot]
    begin_ns: int
    end_ns: int


def run_product(options: ProductOptions) -> Document:
    """Raises StepError."""
    try:
        with _cores_divided() as cpus:
            return _measured(options, cpus)
    except (ServerError, MachineError, RecordingError) as error:
        raise StepError(str(error)) from error


def lines_of(figures: ProductFigures) -> list[Line]:
    what = f"{figures.num_names} x {figures.model}, cache for {figures.num_cached}"
    slo = f"SLO {figures.slo_ms:g} ms"
    exec_ms = ", ".join(f"{size}: {ms:.3g}" for size, ms in figures.exec_ms.items())
    lines = [
        Line("profile: LOAD; execution by batch size", f"{figures.load_ms:.3g} ms; {exec_ms} ms"),
        Line(f"{what}, {slo}: capacity", f"{figures.capacity_per_s:,.1f}/s in time"),
    ]
    for run in figures.runs:
        lines += _lines_of_run(run)
    return lines


def _lines_of_run(run: Run) -> list[Line]:
    scored, at = run.score, f"at {run.load:.0%}"
    has_bar = run.load == min(LOADS)
    lines = [
        Line(
            f"{at} ({run.rate_per_s:,.1f}/s): requests in time",
            f"{percent(scored.on_time_share)} of {scored.sent:,}",
            f">= {BAR_ATTAINED:.0%}" if has_bar else "",
            scored.on_time_share >= BAR_ATTAINED if has_bar else None,
        ),
        Line(
            f"{at}: 200s late by the client's clock",
            f"{scored.late:,} of {scored.answered:,}",
            f"<= {BAR_LATE:.1%}",
            scored.late_share <= BAR_LATE,
        ),
        Line(
            f"{at}: wrong answers (relative error above {MAX_ERROR:g})",
            f"{scored.wrong:,} of {scored.answered:,}",
            "0",
            scored.wrong == 0 < scored.answered,
        ),
        Line(
            f"{at}: refused, 504, no answer",
            f"{scored.refused:,}, {scored.expired:,}, {scored.no_answer + scored.other:,}",
        ),
        Line(f"{at}: 200s that were cold starts", percent(run.cold_share)),
    ]
    for kind, errors in (
        ("latency of requests", run.request_error),
        ("execution", run.exec_error),
        ("LOAD", run.load_error),
    ):
        if errors is not None:
            text = f"{errors.p1_ms:+.3f} / {errors.p50_ms:+.3f} / {errors.p99_ms:+.3f} ms"
            lines.append(Line(f"{at}: {kind}, actual - predicted, p1 / p50 / p99", text))
    return lines


def _measured(options: ProductOptions, cpus: str) -> Document:
    root = options.out_dir / "product"
    cache_dir = options.out_dir / "compiled"
    flags = ["--device", options.device, "--page-mb", str(options.page_mb)]
    one = root / "one" / options.model / "1" / "model.onnx"
    if not one.exists():
        models.write(one, models.SERVED[options.model]())
    options.say(f"compiling {options.model}")
    (spec,) = _compiled(root / "one", cache_dir, flags, root)
    num_pages = spec.num_pages(options.page_mb << 20)
    repository = _under_many_names(options, one, cache_dir, root)
    options.say(f"compiling it under {options.num_names} names: measuring only")
    _compiled(repository, cache_dir, flags, root)
    cache_mb = options.num_cached * num_pages * options.page_mb
    recording = root / "product.rec"
    with servers.remontoir(
        repository,
        cache_dir=cache_dir,
        log_dir=options.out_dir / "logs",
        cpus=cpus,
        flags=[*flags, "--cache-mb", str(cache_mb), "--record", str(recording)],
        start_timeout_s=START_TIMEOUT_S,
    ) as server:
        options.say(f"$ {server.command}")
        client = _Client(options, server, *sample_rows(one, NUM_ROWS))
        capacity_per_s = client.find_capacity(_first_guess(spec, options))
        played = [client.play(load, load * capacity_per_s) for load in LOADS]
    missed = predictions.read(recording)
    figures = ProductFigures(
        model=options.model,
        num_names=options.num_names,
        num_cached=options.num_cached,
        cache_mb=cache_mb,
        weights_bytes=spec.weights_bytes,
        slo_ms=options.slo_ms,
        exec_ms={
            str(size): ns / MILLISECOND_NS for size, ns in spec.profile.shapes[0].exec_ns.items()
        },
        load_ms=spec.profile.load_ns / MILLISECOND_NS,
        capacity_per_s=capacity_per_s,
        runs=[_run_of(each, missed) for each in played],
    )
    return Document(
        step="product",
        device={"device": options.device, "platform": spec.platform},
        is_quick=options.is_quick,
        figures=msgspec.to_builtins(figures),
        lines=lines_of(figures),
    )


class _Client:
    """Requests to all names, uniformly; each name is a stream of its own."""

    def __init__(
        self, options: ProductOptions, server: Server, rows: list[Tensor], outputs: list[Floats]
    ) -> None:
        self._options = options
        self._port = server.port
        self._names = names_of(options)
        self._outputs = [outputs] * len(self._names)
        self._requests = [
            [
                remontoir_binary(name, "x", row, slo_ms=options.slo_ms, port=server.port)
                for row in rows
            ]
            for name in self._names
        ]
        self._num_played = 0

    def find_capacity(self, rate_per_s: float) -> float:
        """The most that came in time per second, up to a rate that is more than can be served."""
        seconds = self._options.seconds / 3
        best_per_s = 0.0
        for _ in range(MAX_DOUBLINGS):
            scored = self.play(0.0, rate_per_s, seconds).score
            self._options.say(
                f"{rate_per_s:,.0f}/s asked, {scored.goodput_per_s:,.0f}/s came in time"
            )
            best_per_s = max(best_per_s, scored.goodput_per_s)
            if scored.on_time_share < NOT_FULL:
                break
            rate_per_s *= 2
        if not best_per_s:
            raise StepError(f"nothing came in time at {rate_per_s:.1f}/s: {scored.reasons}")
        return best_per_s

    def play(self, load: float, rate_per_s: float, seconds: float | None = None) -> _Played:
        seconds = seconds or self._options.seconds
        self._num_played += 1
        streams = [
            Poisson(
                name=name,
                models=name,
                slo_ms=self._options.slo_ms,
                rate_per_s=rate_per_s / len(self._names),
            )
            for name in self._names
        ]
        seed = self._options.seed + self._num_played
        arrivals = list(open_loop(streams, duration_s=seconds, seed=seed))
        if not arrivals:
            raise StepError(f"no request in {seconds:g} s at {rate_per_s:.2f}/s")
        shots = drive(port=self._port, arrivals=arrivals, requests=self._requests)
        scored = score(
            shots,
            slo_ms=[self._options.slo_ms] * len(self._names),
            expected=self._outputs,
            read=read_remontoir,
            duration_s=seconds,
            start_ns=shots[0].at_ns,
            is_right=is_near,
        )
        end_ns = max(shot.done_ns or shot.at_ns for shot in shots)
        return _Played(load, rate_per_s, scored, shots, shots[0].at_ns, end_ns)


def names_of(options: ProductOptions) -> list[str]:
    return [f"{options.model}-{number:02d}" for number in range(options.num_names)]


def is_near(output: Floats, right: Floats) -> bool:
    """By the length of the difference: single values near zero are no measure."""
    if output.size != right.size or not np.isfinite(output).all():
        return False
    wanted = right.ravel().astype(np.float64)
    difference = np.linalg.norm(output.astype(np.float64) - wanted)
    return bool(difference <= MAX_ERROR * np.linalg.norm(wanted))


def _run_of(played: _Played, missed: Sequence[Missed]) -> Run:
    answers = [read_or_none(shot, read_remontoir) for shot in played.shots if shot.status == 200]
    accounts = [
        answer.account for answer in answers if answer is not None and answer.account is not None
    ]
    during = [m for m in missed if played.begin_ns <= m.at_ns <= played.end_ns]
    return Run(
        load=played.load,
        rate_per_s=played.rate_per_s,
        score=played.score,
        cold_share=sum(a.slo.cold_start for a in accounts) / max(1, len(accounts)),
        request_error=predictions.errors_of(
            (a.slo.latency_ms - a.slo.predicted_ms) * MILLISECOND_NS for a in accounts
        ),
        exec_error=predictions.errors_of(m.error_ns for m in during if m.kind == "exec"),
        load_error=predictions.errors_of(m.error_ns for m in during if m.kind == "load"),
    )


def _compiled(
    repository: Path, cache_dir: Path, flags: Sequence[str], directory: Path
) -> list[ModelSpec]:
    """As `remontoir compile` does. Raises StepError, also where a model cannot be served."""
    catalogue = directory / "catalogue.json"
    command = [sys.executable, "-m", "gateway", "compile", "--models", str(repository)]
    command += ["--cache-dir", str(cache_dir), "--catalog-out", str(catalogue), *flags]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parent.parent.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"compiling ended with {done.returncode}"]
        raise StepError(said[-1].removeprefix("gpuworker: "), is_missing=done.returncode == 2)
    specs = msgspec.json.decode(catalogue.read_bytes(), type=list[ModelSpec])
    for spec in specs:
        if spec.unavailable_reason is not None:
            raise StepError(f"{spec.name}: {spec.unavailable_reason}")
    return specs


def _under_many_names(options: ProductOptions, one: Path, cache_dir: Path, root: Path) -> Path:
    """On a GPU the plan that was built, since building it for each name would take an hour."""
    source, file = one, one.name
    if options.device != CPU:
        own = re.compile(rf"{options.model}-[0-9a-f]{{24}}")  # and not of one of the many names
        found = cache_dir.glob(f"{options.model}-*/{PLAN_FILE}")
        plans = sorted((p for p in found if own.fullmatch(p.parent.name)), key=os.path.getmtime)
        if not plans:
            raise StepError(f"compiling {options.model} left no {PLAN_FILE} in {cache_dir}")
        source, file = plans[-1], PLAN_FILE
    repository = root / "many"
    shutil.rmtree(repository, ignore_errors=True)
    for name in names_of(options):
        directory = repository / name / "1"
        directory.mkdir(parents=True)
        os.link(source, directory / file)
    return repository


def _first_guess(spec: ModelSpec, options: ProductOptions) -> float:
    """Requests per second, by the profile: every one executes alone, and most of them LOAD."""
    misses = max(0.0, 1 - options.num_cached / options.num_names)
    needs_ns = misses * spec.profile.load_ns + spec.profile.shapes[0].exec_ns[1]
    return 1000 / (needs_ns / MILLISECOND_NS + PER_REQUEST_MS)


@contextmanager
def _cores_divided() -> Iterator[str]:
    """The client on the last core, the server's list of the others. Raises MachineError."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise MachineError("server and client need a core each, and this process may use one only")
    if shutil.which("taskset") is None:
        raise MachineError("taskset is missing (Debian: apt install util-linux)")
    os.sched_setaffinity(0, {usable[-1]})
    try:
        yield ",".join(map(str, usable[:-1]))
    finally:
        os.sched_setaffinity(0, usable)
