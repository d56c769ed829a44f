"""8: what the papers did not mix: sizes, SLOs inside a model, bursts, overload, loss, noise."""

import numpy as np

from loadtest.experiments.jobs import Experiment, Job, Length, Measured, bounds, cases, runs
from loadtest.experiments.page import Section
from loadtest.experiments.pictures import lines
from loadtest.experiments.records import (
    Records,
    attainment,
    share_of_bound,
    stream_attainment,
    text_of,
)
from loadtest.experiments.tables import all_runs, bound_line, by_policy, code, over
from loadtest.plots import goodput as draw
from loadtest.simulate import Run, window_of
from scheduler.spec import SECOND_NS

NUMBER = "8"
OURS = "remontoir"
SIZES, SLOS, BURSTS = "80-mixed-sizes", "81-mixed-slos", "82-bursts"
OVERLOAD, LOST, NOISE = "83-overload", "84-worker-lost", "85-noise"
MIXED_OVERLOAD = "86-mixed-overload"
FAST, SLOW = 0, 1
# (devices, fast r/s, slow r/s); what a first study of the blocking cap attained.
SIZE_SETTINGS = (
    (4, 1500, 200, 1.0),
    (4, 2500, 300, 0.998),
    (4, 2500, 500, 0.934),
    (2, 800, 100, 1.0),
)
BUCKETS = 60
BUSY_PER_S = 4 * 16 / 0.0212  # what four devices do in batches of 16


def jobs(length: Length) -> list[Job]:
    found = []
    for num_devices, fast, slow, _ in SIZE_SETTINGS:
        values = {"num_devices": [num_devices], "fast_per_s": [fast], "slow_per_s": [slow]}
        played = cases(SIZES, length, variables=values)
        found += runs(NUMBER, played, is_bounded=True) + bounds(NUMBER, played)
    for scenario in (SLOS, BURSTS, OVERLOAD, MIXED_OVERLOAD, LOST, NOISE):
        played = cases(scenario, length)
        found += runs(NUMBER, played, is_bounded=True)
        found += bounds(NUMBER, played, without=("exec_noise", "spikes"))
    return found


def measure(run: Run) -> Measured:
    """Goodput and attainment over time, of the run with a loss."""
    if run.case.scenario != LOST or run.tables is None:
        return Measured()
    requests = run.tables.requests
    begin_ns, end_ns = window_of(run.case)
    edges = np.linspace(begin_ns, end_ns, BUCKETS + 1)
    asked = np.histogram(requests["arrival_ns"], edges)[0]
    good = np.histogram(requests["arrival_ns"][requests["is_good"]], edges)[0]
    return Measured(
        series={
            "at_s": ((edges[:-1] + edges[1:]) / 2 / SECOND_NS).tolist(),
            "attained": (good / np.maximum(asked, 1)).tolist(),
        }
    )


def write(records: Records, section: Section) -> None:
    _sizes(records.where(SIZES), section)
    _slos(records.where(SLOS), section)
    _bursts(records.where(BURSTS), section)
    _overload(records.where(OVERLOAD), section)
    _mixed_overload(records.where(MIXED_OVERLOAD), section)
    _lost(records.where(LOST), section)
    _noise(records.where(NOISE), section)


def _sizes(records: Records, section: Section) -> None:
    section.head("Mixed sizes")
    section.say(
        "4 fast models (0.3 b + 1.5 ms, SLO 15 ms) and 4 slow ones (4 b + 20 ms, SLO 400 ms) "
        "on the same devices: a large batch of a slow one is longer than a fast one's SLO. "
        "Attainment of all, and of the fast and slow ones."
    )
    rows = []
    for num_devices, fast, slow, _ in SIZE_SETTINGS:
        at = _at_size(records, num_devices, fast, slow)
        for policy in at.where(kind="run").policies():
            mine = at.where(kind="run", policy=policy)
            rows.append(
                (
                    f"{num_devices} GPUs, {fast:,} + {slow} r/s",
                    code(policy),
                    text_of(mine.spread(lambda r: r.group.goodput_per_s if r.group else None), 0),
                    text_of(mine.spread(attainment), 2, scale=100),
                    text_of(mine.spread(stream_attainment(FAST)), 2, scale=100),
                    text_of(mine.spread(stream_attainment(SLOW)), 2, scale=100),
                    text_of(mine.spread(share_of_bound(at)), 1, scale=100),
                )
            )
    section.table(
        ("setting", "policy", "goodput/s", "attained %", "fast %", "slow %", "of the bound %"),
        rows,
        words=2,
    )
    for num_devices, fast, slow, studied in SIZE_SETTINGS:
        at = _at_size(records, num_devices, fast, slow)
        ours = at.where(policy=OURS).spread(attainment)
        # as many digits as that study's figure has
        is_met = None if ours is None else round(ours.mean, 3) >= studied
        section.verdict(
            f"mixed sizes, {num_devices} GPUs, {fast:,} + {slow} r/s: at least the first study's "
            f"{studied:.3f}",
            is_met,
            "" if ours is None else ours.text(4),
        )
    _cap(records, section)
    all_runs(section, records, ("num_devices", "fast_per_s", "slow_per_s"))


def _cap(records: Records, section: Section) -> None:
    """With and without the blocking cap, in words."""
    words = []
    for num_devices, fast, slow, _ in SIZE_SETTINGS:
        at = _at_size(records, num_devices, fast, slow)
        capped = at.where(policy=OURS).spread(attainment)
        free = at.where(policy=f"{OURS}:blocking_cap=false").spread(attainment)
        if capped is not None and free is not None:
            words.append(f"{(capped.mean - free.mean) * 100:+.2f}")
    if words:
        section.say(
            f"The blocking cap makes {', '.join(words)} points of attainment in these settings."
        )


def _at_size(records: Records, num_devices: int, fast: int, slow: int) -> Records:
    return records.at(num_devices=num_devices, fast_per_s=fast, slow_per_s=slow)


def _slos(records: Records, section: Section) -> None:
    section.head("Mixed SLOs inside one model")
    section.say(
        "4 models on 2 GPUs (a batch of b takes b + 5.2 ms); a third of the requests each is "
        "wanted within 20, 60 and 200 ms. Attained, in percent, by requests per second; in "
        "batches of 16 the devices do 1,509."
    )
    over(section, records, "rate_per_s", first="attained, %, at r/s")
    all_runs(section, records, ("rate_per_s",))


def _bursts(records: Records, section: Section) -> None:
    section.head("Bursts")
    section.say(
        "8 models on 4 GPUs (b + 5.2 ms), SLO 50 ms, at 0.7 and 0.9 of what they do in batches of "
        "16; gaps with a coefficient of variation of 1 (Poisson) and 4."
    )
    for cv in records.numbers_of("cv"):
        over(section, records.at(cv=cv), "rate_per_s", first=f"attained, %, CV {cv:g}, at r/s")
    all_runs(section, records, ("cv", "rate_per_s"))


def _overload(records: Records, section: Section) -> None:
    section.head("Overload")
    section.say(
        "4 GPUs (b + 5.2 ms), SLO 50 ms, 1.2 to 3 times what they do in batches of 16. "
        "Attained, in percent; the bound knows all arrivals beforehand, and no scheduler that "
        "does not reaches it here."
    )
    for num_models in records.numbers_of("num_models"):
        part = records.at(num_models=num_models)
        over(section, part, "rate_per_s", first=f"{num_models:g} models, attained, %, at r/s")
        section.figure(
            f"overload-{num_models:g}",
            draw(
                by_policy(part, "rate_per_s", attainment, scale=100),
                title=f"8: overload, {num_models:g} models on 4 GPUs",
                x_label="requests/s",
                y_label="attained (%)",
                bound=bound_line(part, "rate_per_s") or None,
            ),
            f"Attainment in overload, {num_models:g} models; {BUSY_PER_S:,.0f} r/s is what the "
            "devices do in batches of 16.",
        )
    all_runs(section, records, ("num_models", "rate_per_s"))


def _mixed_overload(records: Records, section: Section) -> None:
    section.head("Overload of mixed sizes")
    section.say(
        "61 models of the table, one row of which takes 1 to 12 ms, unequally asked for, on 4 "
        "GPUs, SLO 100 ms. Attained, in percent, by requests per second."
    )
    over(section, records, "rate_per_s", first="attained, %, at r/s")
    all_runs(section, records, ("rate_per_s",))


def _lost(records: Records, section: Section) -> None:
    section.head("A worker lost and back")
    section.say(
        "8 models on 4 GPUs at 0.7 of what they do in batches of 16; one worker dies at 8 s, is "
        "missed 50 ms later and is back at 14 s, without weights."
    )
    all_runs(section, records, (), is_folded=False)
    curves = {}
    for policy in records.where(kind="run").policies():
        first = next(iter(records.where(kind="run", policy=policy)))
        ys = [share * 100 for share in first.series.get("attained", [])]
        curves[policy] = (first.series.get("at_s", []), ys)
    section.figure(
        "worker-lost",
        lines(
            curves,
            title="8: one of four workers lost at 8 s, back at 14 s",
            x_label="time (s)",
            y_label="attained (%)",
        ),
        "Attainment over time, first seed.",
    )


def _noise(records: Records, section: Section) -> None:
    section.head("Noise")
    section.say(
        "8 models on 4 GPUs at 0.8 of what they do in batches of 16, SLO 50 ms; executions "
        "with 5 % of noise, with spikes of 2 to 8 ms on 2 of 100, and with both."
    )
    for spikes in records.numbers_of("spikes"):
        over(
            section,
            records.at(spikes=spikes),
            "exec_noise",
            first=f"attained, %, spikes on {spikes * 100:g} of 100, at noise",
            digits=2,
        )
    all_runs(section, records, ("exec_noise", "spikes"))


EXPERIMENT = Experiment(
    NUMBER,
    "Mixed sizes and SLOs, bursts, overload, a lost worker, noise",
    jobs,
    write,
    measure=measure,
)
