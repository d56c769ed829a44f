"""6.2: one GPU, thousands of models: a major workload that spreads ever thinner, and a minor one.

Judges the minor workload's attainment, and the major's goodput against the bound in windows of each
regime: with few models batches are large; then they shrink to one, and the device itself cannot
execute what is asked; beyond the cache LOADs limit what can be served as well.
"""

import numpy as np

from loadtest.experiments.jobs import Experiment, Job, Length, Measured, cases, runs
from loadtest.experiments.page import Section
from loadtest.experiments.pictures import lines
from loadtest.experiments.records import Records, spread, stream_attainment, text_of
from loadtest.experiments.tables import all_runs, code
from loadtest.experiments.windows import at_windows, window_jobs, windows_of
from loadtest.results import Table
from loadtest.results.tables import LOAD, Numbers
from loadtest.simulate import Run, window_of
from scheduler.spec import SECOND_NS

NUMBER = "6.2"
OURS = "remontoir"
SCENARIO = "62-thousands"
MAJOR, MINOR = 0, 1
TARGET_MINOR, TARGET_MAJOR = 0.999, 0.95
BUCKETS = 50
# Windows where the bound is taken: where they begin, as shares of the measured time, and how long.
WINDOWS = (0.1, 0.3, 0.5, 0.7, 0.9)
WINDOW_S = 8.0


def jobs(length: Length) -> list[Job]:
    played = cases(SCENARIO, length, variables=_steps(length))
    return runs(NUMBER, played) + window_jobs(NUMBER, played, WINDOWS, WINDOW_S)


def measure(run: Run) -> Measured:
    """Goodput, attainment and LOADs in buckets of time; good requests in the bound's windows."""
    assert run.tables is not None
    requests, actions = run.tables.requests, run.tables.actions
    begin_ns, end_ns = window_of(run.case)
    edges = np.linspace(begin_ns, end_ns, BUCKETS + 1)
    seconds = (end_ns - begin_ns) / SECOND_NS / BUCKETS
    series = {"at_s": ((edges[:-1] + edges[1:]) / 2 / SECOND_NS).tolist()}
    for name, stream in (("major", MAJOR), ("minor", MINOR)):
        mine = requests["stream"] == stream
        asked = _counts(requests["arrival_ns"][mine], edges)
        good = _counts(requests["arrival_ns"][mine & requests["is_good"]], edges)
        series[f"{name}_goodput"] = (good / seconds).tolist()
        series[f"{name}_attained"] = (good / np.maximum(asked, 1)).tolist()
    loads = actions.has("kind", LOAD) & (actions["end_ns"] >= 0)
    series["loads"] = (_counts(actions["end_ns"][loads], edges) / seconds).tolist()
    return Measured(figures=_good_in_windows(run, requests), series=series)


def write(records: Records, section: Section) -> None:
    step_s = next((v for v in records.where(SCENARIO).numbers_of("step_s")), 1.0)
    section.say(
        f"1,000 r/s (the major workload) spread evenly over k models, k + 1 every {step_s:g} s; one "
        "more model has 200 r/s all along (the minor one). One GPU of 1,376 pages holds 196 of the "
        "models, SLO 100 ms, a LOAD takes 8.3 ms. With k models and 100 ms to gather them a batch "
        "holds about 100 / k requests, so that from some 30 models on the device cannot execute all "
        "of it, long before the cache is full: the bound takes both into account, and is the smaller "
        "of the one that knows executions only and the one that knows LOADs too."
    )
    played = records.where(SCENARIO, kind="run")
    rows = []
    for policy in played.policies():
        mine = played.where(policy=policy)
        rows.append(
            (
                code(policy),
                text_of(mine.spread(lambda r: r.streams[MAJOR].goodput_per_s), 0),
                text_of(mine.spread(stream_attainment(MAJOR)), 1, scale=100, unit=" %"),
                text_of(mine.spread(stream_attainment(MINOR)), 3, scale=100, unit=" %"),
                text_of(mine.spread(lambda r: r.group.loads_per_s if r.group else None)),
                text_of(mine.spread(lambda r: r.group.mean_batch if r.group else None), 2),
            )
        )
    section.table(
        ("policy", "major, good/s", "attained", "minor attained", "LOADs/s", "batch"), rows
    )
    _figures(section, played)
    _windows(section, records)
    minor = played.where(policy=OURS).spread(stream_attainment(MINOR))
    section.verdict(
        f"the minor workload: at least {TARGET_MINOR * 100:g} % attained",
        None if minor is None else minor.mean >= TARGET_MINOR,
        text_of(minor, 3, scale=100, unit=" %"),
    )
    all_runs(section, records.where(SCENARIO), ("step_s",))


def _figures(section: Section, played: Records) -> None:
    for name, what, label, scale in (
        ("major_goodput", "the major workload's goodput", "good requests/s", 1.0),
        ("minor_attained", "the minor workload", "attained (%)", 100.0),
        ("loads", "LOADs", "LOADs/s", 1.0),
    ):
        curves = {}
        for policy in played.policies():
            first = next(iter(played.where(policy=policy)))
            ys = [y * scale for y in first.series.get(name, [])]
            curves[policy] = (first.series.get("at_s", []), ys)
        section.figure(
            f"thousands-{name.replace('_', '-')}",
            lines(curves, title=f"6.2: {what} over time", x_label="time (s)", y_label=label),
            f"{what[0].upper()}{what[1:]} over time, first seed.",
        )


def _windows(section: Section, records: Records) -> None:
    """Ours and the bound, window by window; the verdict is about the worst of them."""
    rows, shares = [], []
    for bound in records.where(SCENARIO, kind="bound"):
        at_s = bound.figures["begin_s"]
        ours = [r for r in records.where(SCENARIO, kind="run", policy=OURS) if r.seed == bound.seed]
        if not ours:
            continue
        minor_good = ours[0].figures.get(f"minor_good_{at_s:.3f}", 0.0)
        major_good = ours[0].figures.get(f"major_good_{at_s:.3f}", 0.0)
        most = bound.figures["most"]
        # what the minor workload was served is not there for the major one
        share = major_good / (most - minor_good) if most > minor_good else None
        if share is not None:
            shares.append(share)
        rows.append(
            (
                f"{at_s:.0f}",
                f"{1 + int(at_s / _step_of(bound)):,}",
                f"{bound.figures['asked']:,.0f}",
                f"{bound.figures['most_executed']:,.0f}",
                f"{bound.figures['most_loaded']:,.0f}" if "most_loaded" in bound.figures else "-",
                f"{minor_good:,.0f}",
                f"{major_good:,.0f}",
                "-" if share is None else f"{share * 100:.1f} %",
            )
        )
    section.say(
        f"Windows of {WINDOW_S:g} s, first seed: the most that could be good of both workloads "
        "(executions alone, and with LOADs), what ours had of each, and the major's share of what "
        "the bound leaves beside the minor's."
    )
    columns = (
        "from s", "models", "asked", "bound: executions", "bound: with LOADs", "minor good",
        "major good", "of its bound",
    )  # fmt: skip
    section.table(columns, rows)
    found = spread(shares)
    section.verdict(
        f"the major workload: within {(1 - TARGET_MAJOR) * 100:.0f} % of the bound, in each window",
        None if found is None else min(shares) >= TARGET_MAJOR,
        "" if found is None else f"{min(shares) * 100:.1f} to {max(shares) * 100:.1f} %",
    )


def _good_in_windows(run: Run, requests: Table) -> dict[str, float]:
    figures = {}
    for begin_s, end_s in windows_of(run.case, WINDOWS, WINDOW_S):
        inside = at_windows(requests, begin_s, end_s) & requests["is_good"]
        for name, stream in (("major", MAJOR), ("minor", MINOR)):
            count = int((inside & (requests["stream"] == stream)).sum())
            figures[f"{name}_good_{begin_s:.3f}"] = float(count)
    return figures


def _counts(instants: Numbers, edges: np.ndarray) -> np.ndarray:
    return np.histogram(instants, edges)[0]


def _steps(length: Length) -> dict[str, list[float]] | None:
    """The paper's second with its length; a quick run takes shorter steps, to see the same."""
    if length is Length.FULL:
        return {"step_s": [1]}
    return {"step_s": [0.08]} if length is Length.QUICK else None


def _step_of(bound: object) -> float:
    return float(getattr(bound, "values", {}).get("step_s", 1.0))


EXPERIMENT = Experiment(
    NUMBER, "Can thousands of models share one GPU?", jobs, write, measure=measure
)
