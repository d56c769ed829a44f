"""6.5: 4,026 models on 6 GPUs, asked as Azure Functions were: misses by cause, prediction errors.

The trace is scaled so that executing all of it in batches of 8 would take 60 % of the devices;
which model costs what depends on the seed, and so does the rate.
"""

from loadtest.experiments.azure_load import (
    FIRST_MINUTES,
    first_part,
    part_s,
    scale_of,
    window_starts,
)
from loadtest.experiments.bounding import good_in_windows
from loadtest.experiments.jobs import Experiment, Job, Length, Measured, bounds, cases, runs
from loadtest.experiments.page import Section
from loadtest.experiments.records import Records, attainment, figure, good_at, text_of
from loadtest.experiments.tables import all_runs, code
from loadtest.plots import latency_cdf, png_of, prediction_errors
from loadtest.results import Table, Tables
from loadtest.results.summary import completion_errors_ns, percentile, prediction_errors_ns
from loadtest.results.tables import INFER, LOAD, SERVED
from loadtest.scenario import Value
from loadtest.simulate import Run, window_of
from scheduler.spec import SECOND_NS

NUMBER = "6.5"
OURS = "remontoir"
SCENARIO = "65-azure"
TARGET, PAPER = 0.999, 0.99997
# (what it is called, file, first minute): an hour of each trace
VARIANTS = (
    (
        "500 functions, nearly as smooth as the paper's, one of which has 63 % of all requests",
        "azure2019_500fn_min480_959.csv.gz",
        320,
    ),
    ("1,000 functions of day A, whose minutes differ", "azure2019_1000fn_day_A.csv.gz", 70),
)
# Beside ours in the second variant.
BESIDE = ("clockwork:schedule_ahead_ms=10", "symphony")
# Of the bound, a window for each of the first minutes: nearly all of its requests, since a short
# one flatters the bound, which has the devices to itself until the last deadline.
WINDOW_REQUESTS = 18_000
QUANTILES = (0.5, 0.9, 0.99, 0.999, 1.0)


def jobs(length: Length) -> list[Job]:
    found = []
    for _, trace, first_minute in VARIANTS:
        values: dict[str, list[Value]] = {"trace": [trace], "first_minute": [first_minute]}
        for bare in cases(SCENARIO, length, policies=[OURS], variables=values):
            played = cases(
                SCENARIO,
                length,
                seeds=[bare.seed],
                variables={**values, "scale": [scale_of(bare)]},
            )
            for case in played:
                if case.policy == OURS:
                    found.append(case)
                elif trace == VARIANTS[0][1] or case.policy in BESIDE:
                    found.append(first_part(case))
    first = {case.values["trace"]: case for case in reversed(found) if case.policy == OURS}
    windows = [
        job
        for case in first.values()
        for job in bounds(NUMBER, [case], from_s=window_starts(case), max_requests=WINDOW_REQUESTS)
    ]
    return runs(NUMBER, found) + windows


def measure(run: Run) -> Measured:
    """Misses by cause, quantiles of the errors, and of the first seed the curves."""
    assert run.tables is not None
    tables, window = run.tables, window_of(run.case)
    figures = _errors(tables, window)
    pictures = {}
    if run.case.seed == 1:
        pictures = {
            "errors": png_of(
                prediction_errors(
                    tables, window, title=f"6.5: prediction errors, {run.case.policy}"
                )
            ),
            "latency": png_of(
                latency_cdf({run.case.policy: tables}, window, title="6.5: latency at the client")
            ),
        }
    causes = causes_of_misses(tables, window)
    figures["models_asked"] = float(len(set(tables.requests["model"].tolist())))
    figures |= _first(run) | good_in_windows(run, window_starts(run.case), WINDOW_REQUESTS)
    return Measured(figures=figures, words=causes, pictures=pictures)


def causes_of_misses(tables: Tables, window: tuple[int, int]) -> dict[str, int]:
    """Cause → requests of the window that were not good.

    A request waited for weights if a LOAD of its model, on any device, was sent or under way while
    it was open; else the devices' other work is what it waited for.
    """
    requests = tables.requests
    arrival_ns = requests["arrival_ns"]
    missed = requests.rows(
        (arrival_ns >= window[0]) & (arrival_ns < window[1]) & ~requests["is_good"]
    )
    loads = _loads_by_model(tables.actions)
    models, outcomes = missed.texts("model"), missed.texts("outcome")
    causes: dict[str, int] = {}
    for model, outcome, begin_ns, end_ns in zip(
        models, outcomes, missed["arrival_ns"], missed["answered_ns"], strict=True
    ):
        waited = any(sent <= end_ns and done >= begin_ns for sent, done in loads.get(model, ()))
        of = "its weights were being loaded" if waited else "its weights were not being loaded"
        cause = f"{'late' if outcome == SERVED else outcome}, {of}"
        causes[cause] = causes.get(cause, 0) + 1
    return dict(sorted(causes.items(), key=lambda item: -item[1]))


def write(records: Records, section: Section) -> None:
    section.say(
        "61 rows of the table (without the three `tuned` ones) times 66 models on 6 GPUs of "
        "1,376 pages, which hold about a quarter of them, SLO 100 ms; an hour of the trace in "
        f"nine minutes, after 27 s of warm-up, other policies than ours for {FIRST_MINUTES} "
        "minutes of that hour. 60 "
        "% is what all of it would take of the devices if every batch had 8 requests; smaller "
        "batches take more."
    )
    for what, trace, first_minute in VARIANTS:
        part = records.where(SCENARIO).at(trace=trace, first_minute=first_minute)
        if not len(part):
            continue
        section.head(what)
        _table(section, part)
        beside = _windows(section, part)
        _pictures(section, part, trace.split("_")[1])
        ours = part.where(policy=OURS)
        found = ours.spread(attainment)
        section.verdict(
            f"{what}: at least {TARGET * 100:g} % of all requests attained",
            None if found is None else found.mean >= TARGET,
            f"{text_of(found, 4, scale=100, unit=' %')} (the paper: {PAPER * 100:.3f} %)"
            + ("" if found is None else beside),
        )
    all_runs(section, records, ("trace", "scale"))


def _table(section: Section, part: Records) -> None:
    rows, causes = [], []
    played = part.where(kind="run")
    for policy in played.policies():
        mine = played.where(policy=policy)
        requests = sum(r.group.requests for r in mine if r.group)
        rows.append(
            (
                code(policy),
                f"{requests:,}",
                text_of(mine.spread(lambda r: r.group.goodput_per_s if r.group else None), 0),
                text_of(mine.spread(attainment), 3, scale=100, unit=" %"),
                text_of(mine.spread(figure("first_attained")), 3, scale=100, unit=" %"),
                text_of(mine.spread(lambda r: r.group.latency_p99_ms if r.group else None)),
                text_of(mine.spread(lambda r: r.group.loads_per_s if r.group else None)),
                text_of(mine.spread(lambda r: r.group.mean_batch if r.group else None), 2),
                text_of(mine.spread(lambda r: r.group.cold / r.group.requests if r.group else None),
                        2, scale=100, unit=" %"),
                *(text_of(mine.spread(figure(f"exec_over_{q}")), 0) for q in (0.99, 0.999)),
                *(text_of(mine.spread(figure(f"completion_over_{q}")), 0) for q in (0.99, 0.999)),
            )
        )  # fmt: skip
        total: dict[str, int] = {}
        for record in mine:
            for cause, count in record.words.items():
                total[cause] = total.get(cause, 0) + count
        causes += [
            (code(policy), cause, f"{count:,}", f"{count / max(1, requests) * 100:.4f} %")
            for cause, count in sorted(total.items(), key=lambda item: -item[1])
        ]
    section.table(
        ("policy", "requests", "goodput/s", "attained", f"first {FIRST_MINUTES} minutes", "p99 ms",
         "LOADs/s", "batch", "cold", "duration error µs p99", "p99.9",
         "completion error µs p99", "p99.9"),
        rows,
    )  # fmt: skip
    section.say("Misses by cause, of all seeds:")
    section.table(("policy", "cause", "requests", "of all"), causes, words=2)


def _windows(section: Section, part: Records) -> str:
    """What could have been good, and what was, in a window of each of the first minutes.

    In words for the verdict: the bound of all of them, and what ours had.
    """
    bounds_of = [r for r in part.where(kind="bound") if r.figures.get("asked")]
    played = [r for r in part.where(kind="run") if bounds_of and r.seed == bounds_of[0].seed]
    if not bounds_of or not played:
        return ""
    rows, totals = [], [0.0] * (2 + len(played))
    for bound in bounds_of:
        counts = [bound.figures["asked"], bound.figures["most"]]
        counts += [good_at(run, bound.figures["from_s"], 0) for run in played]
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        rows.append(_window_row(f"{bound.figures['from_s']:.0f}", counts))
    rows.append(_window_row("all", totals))
    section.say(
        f"The first {WINDOW_REQUESTS:,} requests of each of the first minutes, first seed: the "
        "most of them that could be good, with all arrivals known beforehand and whatever "
        "weights one likes on the devices at its beginning, and what was good, in percent."
    )
    names = [code(run.policy) for run in played]
    section.table(("from s", "asked", "bound", *names, "ours of the bound"), rows)
    asked, most, ours, *_ = totals
    return (
        f"; in the bound's windows {ours / asked * 100:.2f} % of at most {most / asked * 100:.2f} %"
    )


def _window_row(at: str, counts: list[float]) -> tuple[str, ...]:
    """The first of the played ones is ours."""
    asked, most, *good = counts
    shares = [f"{count / asked * 100:.2f}" for count in (most, *good)]
    of_bound = f"{good[0] / most * 100:.2f}" if good and most else "-"
    return (at, f"{asked:,.0f}", *shares, of_bound)


def _pictures(section: Section, part: Records, name: str) -> None:
    for policy in (OURS, "clockwork:schedule_ahead_ms=10"):
        short = policy.split(":")[0]
        for record in part.where(policy=policy):
            for file_name in record.pictures:
                kind = file_name.removesuffix(".png").rpartition("-")[2]
                caption = {
                    "errors": f"Prediction and completion errors, {policy}, first seed.",
                    "latency": f"Latency, {policy}, first seed.",
                }[kind]
                section.picture_of_run(f"azure-{name}-{kind}-{short}", file_name, caption)


def _first(run: Run) -> dict[str, float]:
    """Attainment of the part that all policies are played for."""
    assert run.tables is not None
    requests = run.tables.requests
    begin_ns, end_ns = window_of(run.case)
    end_ns = min(end_ns, begin_ns + round(part_s(run.case) * SECOND_NS))
    inside = (requests["arrival_ns"] >= begin_ns) & (requests["arrival_ns"] < end_ns)
    good = inside & requests["is_good"]
    return {"first_attained": float(good.sum() / max(1, inside.sum()))}


def _errors(tables: Tables, window: tuple[int, int]) -> dict[str, float]:
    """Quantiles, in µs, of how much longer than said an execution took, or ended later."""
    sent_ns = tables.actions["sent_ns"]
    actions = tables.actions.rows((sent_ns >= window[0]) & (sent_ns < window[1]))
    figures = {}
    for name, of in (("exec", prediction_errors_ns), ("completion", completion_errors_ns)):
        errors = of(actions, INFER)
        for share in QUANTILES:
            value = percentile(errors, share)
            if value is not None:
                figures[f"{name}_over_{share}"] = value / 1000
    return figures


def _loads_by_model(actions: Table) -> dict[str, list[tuple[int, int]]]:
    """Model → (sent, ended) of its LOADs; one without an end is still under way."""
    loads = actions.rows(actions.has("kind", LOAD))
    found: dict[str, list[tuple[int, int]]] = {}
    for model, sent_ns, end_ns in zip(
        loads.texts("model"), loads["sent_ns"].tolist(), loads["end_ns"].tolist(), strict=True
    ):
        found.setdefault(model, []).append((sent_ns, end_ns if end_ns >= 0 else 2**62))
    return found


EXPERIMENT = Experiment(
    NUMBER, "4,026 models on 6 GPUs, asked as Azure Functions were", jobs, write, measure=measure
)
