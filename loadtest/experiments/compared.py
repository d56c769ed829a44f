"""6.1: one GPU, 15 ResNet-50, closed-loop clients: goodput by SLO against Clockwork at its best.

Judges ours against the best point of a sweep over Clockwork's schedule_ahead and margin, and
against what the device does in batches of 16.
"""

from loadtest.experiments.jobs import Experiment, Job, Length, Record, bounds, cases, runs
from loadtest.experiments.page import Section
from loadtest.experiments.records import Records, Spread, figure, goodput, text_of
from loadtest.experiments.tables import all_runs, by_policy, code
from loadtest.plots import goodput as draw

NUMBER = "6.1"
OURS = "remontoir"
COMPARED, SWEEP = "61-compared", "61-sweep"
# 16 rows in 17.3 ms, and what little the messages between them cost.
CEILING_PER_S = 923.0
CEILING_SHARE = 0.97
CEILING_FROM_MS = 100
# Seed 000's bars, read from its pictures: Clockwork on another GPU with other kernels, before and
# after choosing schedule_ahead (its captions have the two the wrong way round).
PUBLISHED = {
    "Clockwork as published (bars)": (78, 454, 593, 622, 615, 625),
    "the same, schedule_ahead chosen (bars)": (533, 775, 782, 810, 808, 812),
}
PUBLISHED_MS = (10, 25, 50, 100, 250, 500)
# With --quick, the corners of the grid.
QUICK_GRID = {"schedule_ahead_ms": (2, 5), "margin_ms": (1, 5)}


def jobs(length: Length) -> list[Job]:
    grid = QUICK_GRID if length is Length.QUICK else None
    swept = cases(SWEEP, length, variables=grid)
    played = cases(COMPARED, length)
    return runs(NUMBER, swept) + runs(NUMBER, played) + bounds(NUMBER, played)


def more_jobs(records: Records, length: Length) -> list[Job]:
    """The best point of each SLO, played as long and as often as the others."""
    found = []
    for slo_ms in records.where(SWEEP).numbers_of("slo_ms"):
        best = _best_point(records, slo_ms)
        if best is not None:
            found += cases(
                COMPARED, length, policies=[best.policy], variables={"slo_ms": [_plain(slo_ms)]}
            )
    return runs(NUMBER, found)


def write(records: Records, section: Section) -> None:
    section.say(
        "15 ResNet-50 (the table's resnet50_v2, batches to 16) on one GPU, 16 clients for "
        "each, who ask again 0.3 ms after any answer. Only goodput counts: whoever is refused "
        "asks again at once. The ceiling is what no scheduler can pass with these clients and "
        "SLOs, whatever it knows; Clockwork's best is the best point of the sweep at each SLO, "
        "played again with the seeds of all."
    )
    slos = records.where(COMPARED, kind="run").numbers_of("slo_ms")
    rows: list[tuple[str, ...]] = []
    best = {slo: _best_played(records, slo) for slo in slos}
    chosen = {part.policies()[0] for _, part in best.values() if len(part)}
    played = records.where(COMPARED, kind="run")
    plain = [p for p in played.policies() if p not in chosen]
    for policy in plain:
        parts = [records.where(COMPARED, policy=policy).at(slo_ms=slo) for slo in slos]
        rows.append((code(policy), *(text_of(part.spread(goodput), 0) for part in parts)))
    rows.append(
        (
            "Clockwork's best of the sweep",
            *(text_of(best[slo][1].spread(goodput), 0) for slo in slos),
        )
    )
    rows.append(("at", *(best[slo][0] for slo in slos)))
    for name, bars in PUBLISHED.items():
        bar_of = dict(zip(PUBLISHED_MS, bars, strict=True))
        rows.append((name, *(str(bar_of.get(int(slo), "-")) for slo in slos)))
    ours = [records.where(COMPARED, policy=OURS).at(slo_ms=slo).spread(goodput) for slo in slos]
    ceilings = [_ceiling(records, slo) for slo in slos]
    rows.append(("ceiling of these clients", *(f"{most:,.0f}" for most in ceilings)))
    rows.append(
        (
            "ours, of the ceiling",
            *(
                text_of(found, scale=100 / most, unit=" %")
                for found, most in zip(ours, ceilings, strict=True)
            ),
        )
    )
    section.table(("goodput/s at an SLO of, ms", *(f"{slo:g}" for slo in slos)), rows)
    series = by_policy(
        Records(r for r in records.where(COMPARED) if r.policy in plain), "slo_ms", goodput
    )
    series["Clockwork's best"] = {
        slo: [r.group.goodput_per_s for r in part if r.group] for slo, (_, part) in best.items()
    }
    section.figure(
        "compared",
        draw(series, title="6.1: goodput by SLO", bound=dict(zip(slos, ceilings, strict=True))),
        "Goodput by SLO; dotted: the most that any scheduler could make of these clients.",
    )
    for slo, found in zip(slos, ours, strict=True):
        _judge(section, slo, found, best[slo])
    all_runs(section, records.where(SWEEP), ("slo_ms", "schedule_ahead_ms", "margin_ms"))
    all_runs(section, records.where(COMPARED), ("slo_ms",))


def _judge(section: Section, slo: float, ours: Spread | None, best: tuple[str, Records]) -> None:
    theirs = best[1].spread(goodput)
    is_met, detail = None, ""
    if ours is not None and theirs is not None:
        is_met = ours.mean >= theirs.mean
        detail = (
            f"{ours.text(0)} against {theirs.text(0)} ({best[0]}): "
            f"{(ours.mean / theirs.mean - 1) * 100:+.1f} %"
            if theirs.mean
            else f"{ours.text(0)} against nothing"
        )
    section.verdict(f"SLO {slo:g} ms: at least Clockwork's best of the sweep", is_met, detail)
    if slo >= CEILING_FROM_MS and ours is not None:
        share = ours.mean / CEILING_PER_S
        section.verdict(
            f"SLO {slo:g} ms: within 3 % of the batch-16 ceiling of {CEILING_PER_S:.0f} r/s",
            share >= CEILING_SHARE,
            f"{ours.text(0)}, {share * 100:.1f} % of it",
        )


def _ceiling(records: Records, slo_ms: float) -> float:
    """The most that closed loops with this SLO can have; the batch-16 ceiling if none was found."""
    found = records.where(COMPARED, kind="bound").at(slo_ms=slo_ms).spread(figure("closed_per_s"))
    return CEILING_PER_S if found is None else found.mean


def _best_point(records: Records, slo_ms: float) -> Record | None:
    points = [r for r in records.where(SWEEP).at(slo_ms=slo_ms) if r.group is not None]
    return max(points, key=lambda r: goodput(r) or 0.0, default=None)


def _best_played(records: Records, slo_ms: float) -> tuple[str, Records]:
    """(the point in words, its runs in the comparison)."""
    best = _best_point(records, slo_ms)
    if best is None:
        return "-", Records([])
    words = f"{best.values['schedule_ahead_ms']} ms, margin {best.values['margin_ms']} ms"
    return words, records.where(COMPARED, policy=best.policy).at(slo_ms=slo_ms)


def _plain(number: float) -> float:
    """10 and not 10.0, so that a setting has one name."""
    return int(number) if number == int(number) else number


EXPERIMENT = Experiment(
    NUMBER,
    "How does it compare? 15 ResNet-50 on one GPU, 240 clients",
    jobs,
    write,
    more_jobs=more_jobs,
)
