"""6.4: latency-sensitive models beside batch clients who take all the devices they can get."""

from loadtest.experiments.jobs import Experiment, Job, Length, bounds, cases, runs
from loadtest.experiments.page import Section
from loadtest.experiments.records import (
    Records,
    bound_attainment,
    stream_attainment,
    stream_goodput,
    text_of,
)
from loadtest.experiments.tables import all_runs, bound_line, by_policy, code, over
from loadtest.plots import goodput as draw

NUMBER = "6.4"
OURS = "remontoir"
SCENARIO = "64-isolation"
SENSITIVE, BATCH = 0, 1
TARGET, TARGET_MS = 0.98, 9.788
# 6 devices in batches of 16, which take 17.9 ms: what the batch clients could have alone.
CEILING_PER_S = 6 * 16 / 0.0179
# (models with batch clients, clients of each, rate of the sensitive in all), as the paper and twice
# more: with few clients of many models, and at 200 r/s for each of the sensitive.
SETTINGS = ((12, 16, 200), (48, 4, 200), (12, 16, 1200))
BESIDE = (OURS, "clockwork:schedule_ahead_ms=5", "clockwork:schedule_ahead_ms=2,margin_ms=1")
BOUND_MOST_MS = 20


def jobs(length: Length) -> list[Job]:
    found = []
    for num_batch, clients, rate in SETTINGS:
        values = {"num_batch": [num_batch], "clients": [clients], "rate_per_s": [rate]}
        others = () if (num_batch, clients, rate) == SETTINGS[0] else BESIDE
        played = cases(SCENARIO, length, policies=others, variables=values)
        found += runs(NUMBER, played, is_bounded=True)
        found += bounds(NUMBER, [c for c in played if float(c.values["slo_ms"]) < BOUND_MOST_MS])
    return found


def write(records: Records, section: Section) -> None:
    section.say(
        "6 latency-sensitive models share Poisson requests; batch clients, in closed loops "
        "with an SLO of 24 hours, take what is left of 6 GPUs. A batch of b takes b + 1.9 ms, "
        "17.9 ms at 16: longer than the tight SLOs. The bound is that of the sensitive "
        "requests with the devices to themselves."
    )
    for num_batch, clients, rate in SETTINGS:
        part = records.where(SCENARIO).at(num_batch=num_batch, clients=clients, rate_per_s=rate)
        if not len(part):
            continue
        section.head(f"{rate:,} r/s beside {num_batch} models with {clients} clients each")
        over(
            section, part, "slo_ms", what=stream_attainment(SENSITIVE), first="attained, %, at, ms"
        )
        _batch_goodput(section, part)
        section.figure(
            f"isolation-{num_batch}-{rate}",
            draw(
                by_policy(part, "slo_ms", stream_attainment(SENSITIVE), scale=100),
                title=f"6.4: {rate:,} r/s beside {num_batch} x {clients} batch clients",
                y_label="attained by the sensitive (%)",
                bound=bound_line(part, "slo_ms") or None,
            ),
            f"Attainment of the sensitive requests by their SLO, {rate:,} r/s in all.",
        )
    num_batch, clients, rate = SETTINGS[0]
    at = records.where(SCENARIO).at(
        num_batch=num_batch, clients=clients, rate_per_s=rate, slo_ms=TARGET_MS
    )
    ours = at.where(policy=OURS).spread(stream_attainment(SENSITIVE))
    most = bound_attainment(at)
    others = at.where(policy=OURS).spread(stream_goodput(BATCH))
    section.verdict(
        f"{rate} r/s beside {num_batch} x {clients} batch clients: at least {TARGET:.2f} of the "
        f"sensitive attained at an SLO of 9.8 ms",
        None if ours is None else ours.mean >= TARGET,
        f"{text_of(ours, 2, scale=100, unit=' %')}"
        + (f"; the bound is {most * 100:.2f} %" if most is not None else "")
        + f"; the batch clients have {text_of(others, 0)} r/s beside it",
    )
    all_runs(section, records.where(SCENARIO), ("num_batch", "clients", "rate_per_s", "slo_ms"))


def _batch_goodput(section: Section, part: Records) -> None:
    slos = part.numbers_of("slo_ms")
    rows = []
    for policy in part.where(kind="run").policies():
        mine = part.where(kind="run", policy=policy)
        found = [mine.at(slo_ms=slo).spread(stream_goodput(BATCH)) for slo in slos]
        cells = [
            "-" if one is None else f"{one.text(0)} ({one.mean / CEILING_PER_S * 100:.0f} %)"
            for one in found
        ]
        rows.append((code(policy), *cells))
    columns = (
        f"batch clients, r/s (of {CEILING_PER_S:,.0f} in batches of 16)",
        *(f"{slo:g}" for slo in slos),
    )
    section.table(columns, rows)


EXPERIMENT = Experiment(NUMBER, "Can batch clients be kept from hurting the others?", jobs, write)
