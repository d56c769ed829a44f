"""6.3: how low may the SLO be? 12 or 48 models on 6 GPUs, three rates, SLO 2.9 ms x 1.5^n."""

from loadtest.experiments.jobs import Experiment, Job, Length, bounds, cases, runs
from loadtest.experiments.page import Section
from loadtest.experiments.records import (
    Records,
    attainment,
    bound_attainment,
    share_of_bound,
    text_of,
)
from loadtest.experiments.tables import all_runs, bound_line, by_policy, over
from loadtest.plots import goodput as draw
from loadtest.scenario import Case

NUMBER = "6.3"
OURS = "remontoir"
THEIRS = (
    "clockwork:schedule_ahead_ms=5,deadline_floor,late_refusal,loads_never_stop,"
    "load_demand_never_expires"
)
LINE, TABLE = "63-how-low", "63-how-low-table"
TARGET = 0.92
TARGET_AT = {"num_models": 12, "rate_per_s": 2400, "slo_ms": 6.525}
# What the published rules gave in a first study of this experiment.
THEIRS_ABOUT = 0.05
BUSY_PER_S = 2400
FEW = (OURS, THEIRS, "clockwork:schedule_ahead_ms=2,margin_ms=1", "symphony")
QUICK_SLOS = (6.525, 9.788, 22.022)
BOUND_MOST_MS = 40  # from there on everything can be served, and the bound says nothing


def jobs(length: Length) -> list[Job]:
    found = []
    for scenario in (LINE, TABLE):
        slos = {"slo_ms": QUICK_SLOS} if length is Length.QUICK else None
        played = [case for case in cases(scenario, length, variables=slos) if _matters(case)]
        found += runs(NUMBER, played, is_bounded=True)
        tight = [case for case in played if _number(case.values["slo_ms"]) < BOUND_MOST_MS]
        found += bounds(NUMBER, tight)
    return found


def write(records: Records, section: Section) -> None:
    section.say(
        "Poisson requests over N models on 6 GPUs, all weights resident; a batch of b takes "
        "b + 1.9 ms. Attainment in percent by SLO; the bound is clairvoyant, of the first seed."
    )
    line = records.where(LINE)
    for num_models in line.numbers_of("num_models"):
        for rate in line.numbers_of("rate_per_s"):
            part = line.at(num_models=num_models, rate_per_s=rate)
            section.head(f"{num_models:g} models, {rate:g} r/s")
            over(section, part, "slo_ms", first="attained, %, at an SLO of, ms")
            section.figure(
                f"how-low-{num_models:g}-{rate:g}",
                draw(
                    by_policy(part, "slo_ms", attainment, scale=100),
                    title=f"6.3: {num_models:g} models, {rate:g} r/s on 6 GPUs",
                    y_label="attained (%)",
                    bound=bound_line(part, "slo_ms") or None,
                ),
                f"Attainment by SLO, {num_models:g} models, {rate:g} r/s.",
            )
    table = records.where(TABLE)
    for num_models in table.numbers_of("num_models"):
        section.head(
            f"{num_models:g} models of the paper's table, 2,400 r/s, batches padded to powers "
            "of two"
        )
        over(section, table.at(num_models=num_models), "slo_ms", first="attained, %, at, ms")
    _judge(section, line)
    all_runs(section, line, ("num_models", "rate_per_s", "slo_ms"))
    all_runs(section, table, ("num_models", "slo_ms"))


def _judge(section: Section, line: Records) -> None:
    at = line.at(**TARGET_AT)
    ours = at.where(policy=OURS).spread(attainment)
    theirs = at.where(policy=THEIRS).spread(attainment)
    most = bound_attainment(at)
    share = at.where(policy=OURS).spread(share_of_bound(at))
    detail = "" if ours is None else ours.text(2, scale=100, unit=" %")
    if most is not None:
        detail += (
            f"; the bound is {most * 100:.2f} %, ours {text_of(share, scale=100, unit=' %')} of it"
        )
    section.verdict(
        f"12 models, 2400 r/s, SLO 6.5 ms: at least {TARGET:.2f} attained",
        None if ours is None else ours.mean >= TARGET,
        detail,
    )
    if ours is None or theirs is None:
        return
    section.say(
        f"At that point Clockwork as published, with schedule_ahead 5 ms, reaches "
        f"{theirs.text(1, scale=100, unit=' %')} here (a first study of them: about "
        f"{THEIRS_ABOUT * 100:.0f} %)."
        + (
            f" What is missing to the target is {(TARGET - ours.mean) * 100:.1f} points; a "
            f"scheduler that knows all arrivals beforehand could have {most * 100:.1f} %."
            if most is not None and ours.mean < TARGET
            else ""
        )
    )
    for percent in (99.0,):
        words = []
        for policy in line.where(kind="run").policies():
            reached = [
                slo
                for slo in line.numbers_of("slo_ms")
                if (
                    found := line.where(kind="run", policy=policy)
                    .at(num_models=12, rate_per_s=2400, slo_ms=slo)
                    .spread(attainment)
                )
                and found.mean * 100 >= percent
            ]
            words.append(f"`{policy}` {f'{min(reached):g} ms' if reached else 'none'}")
        section.say(
            f"The tightest SLO of which {percent:g} % are attained, 12 models, 2,400 r/s: "
            f"{', '.join(words)}."
        )


def _matters(case: Case) -> bool:
    """At the lower rates nearly everything is attained by all: a few policies show it."""
    return case.values.get("rate_per_s", BUSY_PER_S) == BUSY_PER_S or case.policy in FEW


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


EXPERIMENT = Experiment(NUMBER, "How low may the SLO be?", jobs, write)
