"""`python -m loadtest.analysis.regret`: what recommendations lose against measuring everything.

The truth is the simulator's: every configuration at every SLO is played once. Then parts of it are
hidden, the recommender sees the rest, and what its first choice would have served is compared with
the best there is.
"""

import argparse
import itertools
import random
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import msgspec
from rich.console import Console
from rich.progress import track

from loadtest.analysis.recommend import INTERVAL, Choice, Config, Sample, recommend
from loadtest.experiments.page import table_text
from loadtest.results.intervals import interval
from loadtest.scenario_setup import Setup

POLICIES = ("remontoir", "clockwork", "clipper", "triton")
WORKERS = (1, 2)
LARGEST = (1, 4, 8, 16)
SLOS_MS = (8.0, 12.0, 18.0, 27.0, 40.0, 60.0, 90.0)
# Beyond what any of them can do, so that no two serve all.
RATE_PER_S = 2000.0
DURATION_S, WARMUP_S = 2.0, 0.5
SHARES = (0.1, 0.25, 0.5, 1.0)
DEFAULT_REPEATS = 20
PAGE_COLUMNS = 120

Truth = dict[tuple[Config, float], float]


class Score(NamedTuple):
    """Of one recommendation: what is lost by its first choice and by the best of its first three,
    as shares of the best there is; whether the truth of the first lies in its interval; what the
    recommendation itself expected the first to lose.
    """

    first: float
    of_three: float
    is_inside: bool
    foreseen: float


def configs() -> list[Config]:
    return [
        (("largest_batch", str(largest)), ("policy", policy), ("workers", str(workers)))
        for policy, workers, largest in itertools.product(POLICIES, WORKERS, LARGEST)
    ]


def play(config: Config, slo_ms: float, seed: int = 1) -> float:
    """Goodput of a configuration in virtual time: ResNet-50 on V100s (Clockwork, table 1)."""
    from loadtest.scenario import Case
    from loadtest.simulate import run

    words = dict(config)
    setup = msgspec.convert(
        {
            "duration_s": DURATION_S,
            "warmup_s": WARMUP_S,
            "models": [
                {
                    "name": "resnet",
                    "count": 4,
                    "profile": "v100/resnet50_v2",
                    "max_batch": int(words["largest_batch"]),
                }
            ],
            "devices": [
                {
                    "count": int(words["workers"]), "pages": 256, "resident": "all",
                    "exec_noise": 0.01, "load_noise": 0.01, "delay_ms": 0.1, "jitter_ms": 0.02,
                }
            ],
            "workload": [
                {
                    "kind": "poisson", "name": "clients", "models": "resnet*", "slo_ms": slo_ms,
                    "rate_per_s": RATE_PER_S,
                }
            ],
        },
        Setup,
    )  # fmt: skip
    case = Case(
        scenario="regret",
        setup=setup,
        policy=words["policy"],
        seed=seed,
        values={},
        duration_s=DURATION_S,
    )
    summary = run(case).summary
    assert summary is not None  # figures were collected
    return summary.run.goodput_per_s


def score(truth: Truth, seen: Sequence[Sample], slo_ms: float) -> Score:
    """Of a recommendation out of what was seen. A configuration nobody has seen is not chosen."""
    return _score(truth, recommend(seen, slo_ms), slo_ms)


def _score(truth: Truth, choices: Sequence[Choice], slo_ms: float) -> Score:
    best = max(value for (_, slo), value in truth.items() if slo == slo_ms)
    served = [truth[choice.config, slo_ms] for choice in choices[:3]]
    first = choices[0]
    return Score(
        first=1 - served[0] / best,
        of_three=1 - max(served) / best,
        is_inside=first.low_per_s <= served[0] <= first.high_per_s,
        foreseen=first.loses,
    )


def nearest(seen: Sequence[Sample], slo_ms: float) -> list[Choice]:
    """What one does without a model: of the nearest SLO that was measured, the best."""
    at = min((s.slo_ms for s in seen), key=lambda slo: abs(slo - slo_ms))
    ordered = sorted(
        (s for s in seen if s.slo_ms == at), key=lambda s: (-s.goodput_per_s, s.config)
    )
    return [
        Choice(
            config=s.config, goodput_per_s=s.goodput_per_s, low_per_s=s.goodput_per_s,
            high_per_s=s.goodput_per_s, is_best=1.0, is_measured=True,
        )
        for s in ordered
    ]  # fmt: skip


def experiment(truth: Truth, share: float, repeats: int) -> dict[str, list[Score]]:
    """By way of choosing: a score per repeat and hidden SLO. Of the other SLOs, a share of the
    (configuration, SLO) pairs is seen.
    """
    scores: dict[str, list[Score]] = {"recommend": [], "nearest SLO": [], "any of them": []}
    slos = sorted({slo for _, slo in truth})
    for repeat, slo_ms in itertools.product(range(repeats), slos):
        chance = random.Random(f"{share} {repeat} {slo_ms}")
        others = [key for key in sorted(truth) if key[1] != slo_ms]
        seen = [
            Sample(*key, truth[key])
            for key in chance.sample(others, max(3, round(share * len(others))))
        ]
        if not any(sample.goodput_per_s > 0 for sample in seen):
            continue
        scores["recommend"].append(score(truth, seen, slo_ms))
        scores["nearest SLO"].append(_score(truth, nearest(seen, slo_ms), slo_ms))
        guessed = sorted({sample.config for sample in seen})
        chance.shuffle(guessed)
        any_of = [
            Choice(
                config=config, goodput_per_s=0, low_per_s=0, high_per_s=0, is_best=0,
                is_measured=False,
            )
            for config in guessed
        ]  # fmt: skip
        scores["any of them"].append(_score(truth, any_of, slo_ms))
    return scores


def page(truth: Truth, repeats: int, command: str, picture: str) -> str:
    num_configs = len({config for config, _ in truth})
    rows = []
    inside = {}
    for share in SHARES:
        scores = experiment(truth, share, repeats)
        inside[share] = fmean(one.is_inside for one in scores["recommend"])
        rows.append(
            (
                f"{share * 100:g} %",
                *(_percent([one.first for one in found]) for found in scores.values()),
                *(
                    _percent([one.of_three for one in found])
                    for name, found in scores.items()
                    if name != "any of them"
                ),
                f"{fmean(one.foreseen for one in scores['recommend']) * 100:.1f} %",
                f"{inside[share] * 100:.0f} %",
            )
        )
    blocks = [
        "# What a recommendation loses against measuring everything",
        f"`{command}`: virtual time, seed 1; no figure is typed by hand. ResNet-50 on "
        f"V100s, four copies, {RATE_PER_S:g} requests/s: {num_configs} configurations (policy, "
        f"workers, largest batch) at {len(SLOS_MS)} SLOs from {SLOS_MS[0]:g} to {SLOS_MS[-1]:g} ms "
        "were all played. Then one SLO is hidden; of the others a share of all (configuration, "
        "SLO) pairs is shown. Regret is the goodput that the choice loses against the best "
        "configuration at the hidden SLO, by exhaustive search; "
        f"{repeats} draws for each SLO, ± is half of a 95 % interval.",
        table_text(
            (
                "measured",
                "regret of the first: recommend",
                "… best at the nearest SLO",
                "… any configuration",
                "regret of the best of three: recommend",
                "… nearest SLO",
                "regret it expected of the first",
                f"truth inside the {INTERVAL * 100:g} % interval",
            ),
            rows,
        ),
        _said(inside),
        f"![Regret by the share that was measured]({picture})",
    ]
    wrapped = [b if b[0] in "|!" else textwrap.fill(b, PAGE_COLUMNS) for b in blocks]
    return "\n\n".join(wrapped) + "\n"


def _said(inside: Mapping[float, float]) -> str:
    worst = min(inside.values())
    word = "holds what it says" if worst >= INTERVAL - 0.05 else "is too sure of itself"
    return (
        f"The {INTERVAL * 100:g} % interval of the first choice {word}: the truth was inside in "
        f"{worst * 100:.0f} % to {max(inside.values()) * 100:.0f} % of the cases."
    )


def draw(truth: Truth, repeats: int, path: Path) -> None:
    """Regret of the first choice over the share that was measured."""
    from loadtest.plots.style import colour, dash, drawing, legend_below, marker, new_figure, png_of

    with drawing():
        figure, (axis,) = new_figure(4.2)
        found = {share: experiment(truth, share, repeats) for share in SHARES}
        for index, name in enumerate(next(iter(found.values()))):
            values = [[one.first * 100 for one in found[share][name]] for share in SHARES]
            axis.errorbar(
                [share * 100 for share in SHARES], [fmean(v) for v in values],
                yerr=[interval(v).half_width for v in values], label=name, capsize=3,
                color=colour(index), marker=marker(index), linestyle=dash(index),
            )  # fmt: skip
        axis.set_ylim(bottom=0)
        axis.set(
            title="Regret of the first choice",
            xlabel="of all (configuration, SLO) pairs measured (%)",
            ylabel="goodput lost against the best (%)",
        )
        legend_below(figure, *axis.get_legend_handles_labels())
    path.write_bytes(png_of(figure))


def _percent(values: Sequence[float]) -> str:
    found = interval(values)
    return f"{found.mean * 100:.1f} ± {found.half_width * 100:.1f} %"


def exhaustive(jobs: int, console: Console) -> Truth:
    """Every configuration at every SLO."""
    keys = list(itertools.product(configs(), SLOS_MS))
    with ProcessPoolExecutor(jobs) as pool:
        results = pool.map(_play_key, keys, chunksize=4)
        found = track(results, "playing", total=len(keys), console=console, transient=True)
        return dict(zip(keys, found, strict=True))


def write_truth(path: Path, truth: Truth) -> None:
    rows = [(dict(config), slo_ms, goodput) for (config, slo_ms), goodput in truth.items()]
    path.write_bytes(msgspec.json.encode(rows))


def read_truth(path: Path) -> Truth:
    rows = msgspec.json.decode(path.read_bytes(), type=list[tuple[dict[str, str], float, float]])
    return {(tuple(config.items()), slo_ms): goodput for config, slo_ms, goodput in rows}


def _play_key(key: tuple[Config, float]) -> float:
    return play(*key)


def main(
    argv: Sequence[str] | None = None, *, truth_of: Callable[[int, Console], Truth] = exhaustive
) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.analysis.regret",
        description="Measures what `remontoir bench recommend` loses; a few minutes.",
    )
    parser.add_argument("--repeats", type=int, default=DEFAULT_REPEATS, metavar="N")
    parser.add_argument(
        "--truth",
        type=Path,
        metavar="FILE.json",
        help="what every configuration serves: read if it is there, else played and written",
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="runs at a time (2)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.md",
        default=Path("bench-results/recommend.md"),
        help="the page; its picture lies beside it (default: bench-results/recommend.md)",
    )
    options = parser.parse_args(argv)
    console = Console(stderr=True, highlight=False)
    if options.truth is not None and options.truth.exists():
        truth = read_truth(options.truth)
    else:
        truth = truth_of(options.jobs, console)
        if options.truth is not None:
            write_truth(options.truth, truth)
    picture = options.out.with_suffix(".png")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    draw(truth, options.repeats, picture)
    command = " ".join(["python -m loadtest.analysis.regret", *(argv or sys.argv[1:])])
    text = page(truth, options.repeats, command, picture.name)
    options.out.write_text(text, encoding="utf-8")
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
