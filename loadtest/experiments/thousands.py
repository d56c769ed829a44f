"""6.2: one GPU, thousands of models: a major workload that spreads ever thinner, and a minor one.

Judges the minor workload's attainment, and the major's goodput against the bound in windows of each
regime: with few models batches are large; then they shrink to one, and the device itself cannot
execute what is asked; beyond the cache LOADs limit what can be served as well.
"""

import numpy as np

from loadtest.experiments.bounding import good_in_windows, starts_of
from loadtest.experiments.jobs import Experiment, Job, Length, Measured, bounds, cases, runs
from loadtest.experiments.page import Section
from loadtest.experiments.pictures import lines
from loadtest.experiments.records import Records, good_at, stream_attainment, text_of
from loadtest.experiments.tables import all_runs, code
from loadtest.results.tables import LOAD, Numbers
from loadtest.simulate import Run, window_of
from scheduler.spec import SECOND_NS

NUMBER = "6.2"
OURS = "remontoir"
SCENARIO = "62-thousands"
TENANTS = "62-tenants"  # the same, the minor workload with a floor of its own
MAJOR, MINOR = 0, 1
TARGET_MINOR, TARGET_MAJOR = 0.999, 0.95
BUCKETS = 50
# Windows where the bound is taken: where they begin, as shares of the measured time, and how many
# requests they hold. A window that is short flatters the bound, which has the devices to itself
# until the last deadline: at 18,000 requests that is 0.7 % of its time.
WINDOWS = (0.05, 0.2, 0.4, 0.6, 0.8, 0.9)
WINDOW_REQUESTS = 18_000


def jobs(length: Length) -> list[Job]:
    played = cases(SCENARIO, length, variables=_steps(length))
    starts = starts_of(played[0], WINDOWS)
    tenants = cases(TENANTS, length, variables=_steps(length))
    return runs(NUMBER, [*played, *tenants]) + bounds(
        NUMBER, played, from_s=starts, max_requests=WINDOW_REQUESTS
    )


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
    return Measured(
        figures=good_in_windows(run, starts_of(run.case, WINDOWS), WINDOW_REQUESTS), series=series
    )


def write(records: Records, section: Section) -> None:
    step_s = next((v for v in records.where(SCENARIO).numbers_of("step_s")), 1.0)
    section.say(
        f"1,000 r/s (the major workload) spread evenly over k models, k + 1 every {step_s:g} s; "
        "one more model has 200 r/s all along (the minor one). One GPU of 1,376 pages holds "
        "196 of the models, SLO 100 ms, a LOAD takes 8.3 ms. With k models and 100 ms to "
        "gather them a batch holds about 100 / k requests, so that from some 30 models on the "
        "device cannot execute all of it, long before the cache is full: the bound takes both "
        "into account, and is the smaller of the one that knows executions only and the one "
        "that knows LOADs too."
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
    own = records.where(TENANTS, kind="run", policy=OURS)
    for words, part in (
        ("", played.where(policy=OURS)),
        (", as a tenant of its own with a floor of a quarter of the device", own),
    ):
        minor = part.spread(stream_attainment(MINOR))
        section.verdict(
            f"the minor workload: at least {TARGET_MINOR * 100:g} % attained{words}",
            None if minor is None else minor.mean >= TARGET_MINOR,
            text_of(minor, 3, scale=100, unit=" %"),
        )
    _when_missed(section, played.where(policy=OURS), own)
    all_runs(section, records.where(SCENARIO), ("step_s",))
    all_runs(section, records.where(TENANTS), ("step_s",))


def _when_missed(section: Section, ours: Records, own: Records) -> None:
    """How much of what the minor workload missed fell into the first tenth of the time."""
    for words, part in (("as one tenant", ours), ("as two", own)):
        missed, early = 0.0, 0.0
        for record in part:
            shares = [1 - share for share in record.series.get("minor_attained", [])]
            missed += sum(shares)
            early += sum(shares[: BUCKETS // 10])
        if missed > 0:
            section.say(
                f"Played {words}, {early / missed * 100:.0f} % of what the minor workload missed "
                "fell into the first tenth of the time, when both workloads together ask a few "
                "models for more than the device does in the largest batches."
            )


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
    """Each policy and the bound, window by window; the verdict is about the worst of ours."""
    played = records.where(SCENARIO, kind="run")
    rows, shares, totals, found = [], [], [], []
    for bound in records.where(SCENARIO, kind="bound"):
        at_s, most = bound.figures["from_s"], bound.figures["most"]
        cells = []
        for run in played.where(seed=bound.seed):
            major, minor = good_at(run, at_s, MAJOR), good_at(run, at_s, MINOR)
            cells.append(f"{major:,.0f} + {minor:,.0f} ({(major + minor) / most * 100:.1f} %)")
            if run.policy == OURS:
                # what the minor workload was served is not there for the major one
                shares.append(major / (most - minor))
                totals.append((major + minor) / most)
                found.append(bound.figures["found"] / most)
        rows.append(
            (
                f"{at_s:.0f}",
                f"{1 + int(at_s / _step_of(bound)):,}",
                f"{bound.figures['asked']:,.0f}",
                f"{most:,.0f}",
                "executions and LOADs" if bound.figures["counts_loads"] else "executions",
                *cells,
                f"{shares[-1] * 100:.1f} %" if shares else "-",
            )
        )
    section.say(
        f"Windows of up to {WINDOW_REQUESTS:,} requests, first seed: the most of them that could "
        "be good, what limits that, and how many were: of the major workload, of the minor one, "
        "and both as a share of the bound. Last, our share of what the bound leaves for the "
        "major workload beside the minor's."
    )
    names = [code(policy) for policy in played.policies()]
    section.table(("from s", "models", "asked", "bound", "by", *names, "ours, major"), rows)
    section.verdict(
        f"the major workload: within {(1 - TARGET_MAJOR) * 100:.0f} % of the bound, in each window",
        min(shares) >= TARGET_MAJOR if shares else None,
        f"{min(shares) * 100:.1f} to {max(shares) * 100:.1f} %" if shares else "",
    )
    if shares and min(shares) < TARGET_MAJOR:
        section.say(
            f"Of both workloads together ours has {min(totals) * 100:.1f} to "
            f"{max(totals) * 100:.1f} % of the bound. The bound knows all arrivals beforehand and "
            "is itself above what can be had: the best schedule that was found beside it, with "
            "the same knowledge, without the minor workload's precedence and as if all weights "
            f"were there, has {min(found) * 100:.1f} to {max(found) * 100:.1f} % of it"
            + (", less than ours." if max(found) < min(totals) else ".")
        )


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
