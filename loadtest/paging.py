"""Twelve models through a cache for three: is every answer right, and what does a LOAD take?

Owns the experiment of the README's paging table, in two halves. Over HTTP: random accesses under
load, each answer compared with plain ONNX Runtime's. Against one worker directly: each LOAD beside
a memmove of the same bytes on the same cores. Both where LOADs share the core with EXEC (the device
says `shares_exec_core`, and the scheduler plans LOADs on its lane), and where they do not.
"""

import msgspec

from loadtest import load_times, repositories, servers
from loadtest.bench import Bench
from loadtest.load_times import LoadTimes
from loadtest.messages import read_remontoir, remontoir_binary
from loadtest.openloop import drive
from loadtest.reference import sample_rows
from loadtest.score import Score, percentile, score
from loadtest.scrape import scrape
from loadtest.servers import Server, ServerError
from loadtest.workloads import Poisson, open_loop

FORMS = (("one core", "0"), ("two cores", "0,1"))
CACHE_MB = 96  # three models of two pages of 16 MiB
NUM_CACHED = 3
SLO_MS = 500.0
NUM_ROWS = 16
# Of what the device could do if every access that misses waited for its LOAD: busy, not drowning.
LOAD_FACTOR = 0.6
PER_REQUEST_MS = 0.5  # gateway, wire and worker around an execution of under a millisecond
MAX_CHUNKS = 20

BAR_ANSWERS = 10_000


class HttpRun(msgspec.Struct, kw_only=True):
    """Random accesses over HTTP. LOAD percentiles are interpolated in the metric's buckets."""

    form: str
    rate_per_s: float
    scores: list[Score]
    wrong: int
    answered: int
    refused: int
    expired: int
    no_answer: int
    p50_ms: float | None
    p99_ms: float | None
    loads: int
    failed_loads: int
    evictions: int
    load_mean_ms: float
    load_p50_ms: float
    load_p99_ms: float
    anomalies: int


class Result(msgspec.Struct, kw_only=True):
    num_models: int
    weights_bytes: int
    cache_mb: int
    http: list[HttpRun]
    direct: list[LoadTimes]


def run(bench: Bench) -> Result:
    report = bench.report
    report.start(
        f"Paging: {repositories.NUM_PAGING_MODELS} models through a cache for {NUM_CACHED}"
    )
    repository = repositories.paging(bench.models_dir)
    http_runs = []
    weights_bytes = 0
    for form, cpus in FORMS:
        with servers.remontoir(
            repository,
            cache_dir=bench.cache_dir,
            log_dir=bench.log_dir,
            cpus=cpus,
            flags=["--cache-mb", str(CACHE_MB)],
        ) as server:
            report.say(f"$ {server.command}")
            weights_bytes = server.get_json("/models")["models"][0]["weights_bytes"]
            http_runs.append(_run_over_http(bench, server, form))
    direct = load_times.measure(
        bench, repository, forms=FORMS, cache_mb=CACHE_MB, num_cached=NUM_CACHED
    )
    result = Result(
        num_models=repositories.NUM_PAGING_MODELS,
        weights_bytes=weights_bytes,
        cache_mb=CACHE_MB,
        http=http_runs,
        direct=direct,
    )
    _report(bench, result)
    return result


def _run_over_http(bench: Bench, server: Server, form: str) -> HttpRun:
    entries = {entry["name"]: entry for entry in server.get_json("/models")["models"]}
    names = sorted(entries)
    rate_per_s = _rate_per_s(entries[names[0]])
    requests, outputs = [], []
    for name in names:
        path = repositories.model_path(bench.models_dir / "paging", name)
        rows, right = sample_rows(path, NUM_ROWS)
        outputs.append(right)
        requests.append(
            [remontoir_binary(name, "x", row, slo_ms=SLO_MS, port=server.port) for row in rows]
        )
    wanted = 1_000 if bench.is_quick else BAR_ANSWERS
    streams = [
        Poisson(name=name, models=name, slo_ms=SLO_MS, rate_per_s=rate_per_s / len(names))
        for name in names
    ]
    duration_s = 1.05 * wanted / rate_per_s / (1 if bench.is_quick else 4)
    at_start = scrape(server)
    scores: list[Score] = []
    latencies_ms: list[float] = []
    while sum(scored.answered for scored in scores) < wanted and len(scores) < MAX_CHUNKS:
        seed = bench.seed + len(scores)
        arrivals = list(open_loop(streams, duration_s=duration_s, seed=seed))
        shots = drive(port=server.port, arrivals=arrivals, requests=requests)
        scores.append(
            score(
                shots,
                slo_ms=[SLO_MS] * len(names),
                expected=outputs,
                read=read_remontoir,
                duration_s=duration_s,
                start_ns=shots[0].at_ns,
            )
        )
        latencies_ms += [(shot.done_ns - shot.at_ns) / 1e6 for shot in shots if shot.status == 200]
    at_end = scrape(server)
    if not scores:
        raise ServerError("paging: nothing was asked")
    load = "remontoir_load_duration_seconds"
    loads = at_end.sum(f"{load}_count") - at_start.sum(f"{load}_count")
    load_s = at_end.sum(f"{load}_sum") - at_start.sum(f"{load}_sum")
    return HttpRun(
        form=form,
        rate_per_s=rate_per_s,
        scores=scores,
        wrong=sum(scored.wrong for scored in scores),
        answered=sum(scored.answered for scored in scores),
        refused=sum(scored.refused for scored in scores),
        expired=sum(scored.expired for scored in scores),
        no_answer=sum(scored.no_answer + scored.other for scored in scores),
        p50_ms=percentile(latencies_ms, 50),
        p99_ms=percentile(latencies_ms, 99),
        loads=int(loads),
        failed_loads=int(at_end.sum("remontoir_loads_total", result="failed")),
        evictions=int(
            at_end.sum("remontoir_evictions_total") - at_start.sum("remontoir_evictions_total")
        ),
        load_mean_ms=1000 * load_s / loads if loads else 0.0,
        load_p50_ms=1000 * at_end.quantile(load, 0.5, since=at_start),
        load_p99_ms=1000 * at_end.quantile(load, 0.99, since=at_start),
        anomalies=int(at_end.sum("remontoir_anomalies_total")),
    )


def _rate_per_s(entry: dict[str, dict[str, object]]) -> float:
    """By the profile that /models shows: every request executes, and most of them LOAD."""
    profile = msgspec.convert(entry["profile"], _Profile)
    misses = 1 - NUM_CACHED / repositories.NUM_PAGING_MODELS
    needs_ms = misses * profile.load_ms + profile.shapes[0].exec_ms["1"] + PER_REQUEST_MS
    return LOAD_FACTOR * 1000 / needs_ms


class _Shape(msgspec.Struct):
    exec_ms: dict[str, float]


class _Profile(msgspec.Struct):
    load_ms: float
    shapes: list[_Shape]


def _report(bench: Bench, result: Result) -> None:
    report = bench.report
    report.table(
        f"Over HTTP: random accesses to {result.num_models} models of "
        f"{result.weights_bytes / 1e6:.1f} MB, {result.cache_mb} MiB of pages",
        (
            *("form", "asked/s", "answers", "wrong", "refused", "504", "no answer"),
            *("p50 ms", "p99 ms", "LOADs", "failed", "EVICTs"),
            *("LOAD mean ms", "p50 ms", "p99 ms"),
        ),
        [
            (
                *(run.form, run.rate_per_s, run.answered, run.wrong, run.refused, run.expired),
                *(run.no_answer, run.p50_ms, run.p99_ms, run.loads, run.failed_loads),
                *(run.evictions, run.load_mean_ms, run.load_p50_ms, run.load_p99_ms),
            )
            for run in result.http
        ],
        note="Every answer is compared with plain ONNX Runtime's (rtol 1e-4, atol 1e-5). LOAD "
        "percentiles are interpolated in the buckets of /metrics; the table below is exact.",
    )
    report.table(
        "One worker, ordered about directly: a LOAD, then a memmove of the same bytes, and so on",
        (
            *("form", "pairs", "LOAD p50 ms", "p99 ms", "memmove p50 ms", "p99 ms"),
            *("p50 ratio", "p99 ratio", "LOAD GB/s"),
        ),
        [
            (
                *(times.form, times.num_pairs, times.load_p50_ms, times.load_p99_ms),
                *(times.memmove_p50_ms, times.memmove_p99_ms),
                times.load_p50_ms / times.memmove_p50_ms,
                times.load_p99_ms / times.memmove_p99_ms,
                times.num_bytes / times.load_p50_ms / 1e6,
            )
            for times in result.direct
        ],
        note="LOAD: pages mapped and weights copied, as the worker reports it. Busy: batches of "
        "another model execute back to back meanwhile.",
    )
    wanted = 1_000 if bench.is_quick else BAR_ANSWERS
    for run in result.http:
        report.verdict(
            f"{run.form}: {run.wrong} wrong in {run.answered:,} answers (bar: 0 in {wanted:,})",
            is_met=run.wrong == 0 and run.answered >= wanted,
        )
    report.save("paging", result)
