"""Which configuration to buy: what was measured is believed, what was not is predicted."""

import math
from pathlib import Path

import pytest

from loadtest.analysis import prices, regret
from loadtest.analysis.cell import lines_of
from loadtest.analysis.recommend import (
    NothingKnown,
    Sample,
    recommend,
    samples_of,
    with_costs,
)
from tests.loadtest.analysis_cells import a_cell


def config(threads: int, policy: str = "remontoir"):
    return (("policy", policy), ("threads", str(threads)))


def goodput(threads: int, slo_ms: float, policy: str = "remontoir") -> float:
    """Grows with threads and saturates with the SLO."""
    factor = 1.0 if policy == "remontoir" else 0.6
    return 100 * factor * threads**0.8 * (1 - math.exp(-slo_ms / 40))


def grid(slos=(20.0, 40.0, 80.0, 160.0), threads=(1, 2, 4)) -> list[Sample]:
    return [
        Sample(config(n, policy), slo, goodput(n, slo, policy))
        for n in threads
        for policy in ("clipper", "remontoir")
        for slo in slos
    ]


def test_what_was_measured_is_believed():
    first, *_ = recommend(grid(), 80.0)
    assert first.config == config(4)
    assert first.is_measured
    assert first.goodput_per_s == pytest.approx(goodput(4, 80.0), rel=0.05)
    assert first.is_best > 0.95


def test_an_slo_between_two_is_predicted_with_an_interval_that_holds_it():
    for choice in recommend(grid(), 60.0):
        threads, policy = int(dict(choice.config)["threads"]), dict(choice.config)["policy"]
        truth = goodput(threads, 60.0, policy)
        assert not choice.is_measured
        assert choice.low_per_s <= truth <= choice.high_per_s
        assert choice.goodput_per_s == pytest.approx(truth, rel=0.1)
        assert choice.high_per_s < 1.5 * choice.low_per_s


def test_a_configuration_measured_elsewhere_is_predicted_from_its_neighbours():
    seen = [s for s in grid() if not (s.config == config(4) and s.slo_ms != 160.0)]
    first, *_ = recommend(seen, 80.0)
    assert first.config == config(4)
    assert first.high_per_s > first.low_per_s * 1.1  # less sure of what it never saw


def test_goodput_is_never_predicted_above_that_of_a_longer_slo():
    seen = [Sample(config(1), 50.0, 100.0), Sample(config(1), 60.0, 100.0)]
    [choice] = recommend([*seen, Sample(config(1), 20.0, 10.0)], 55.0)
    assert choice.goodput_per_s <= 100.0 * 1.04
    assert choice.low_per_s >= 96.0


def test_the_chances_of_being_the_best_add_up():
    choices = recommend(grid(), 60.0)
    assert sum(choice.is_best for choice in choices) == pytest.approx(1.0)
    assert choices == recommend(grid(), 60.0)  # drawn with a seed


def test_the_regret_that_is_expected_is_the_least_of_the_first():
    choices = recommend(grid(), 60.0)
    assert 0 <= choices[0].loses < 0.1
    for choice in choices:
        threads, policy = int(dict(choice.config)["threads"]), dict(choice.config)["policy"]
        truth = 1 - goodput(threads, 60.0, policy) / goodput(4, 60.0)
        assert choice.loses == pytest.approx(truth, abs=0.05)


def test_of_those_that_may_be_chosen_the_chances_add_up():
    cheap = {config(1), config(2)}
    whole = {choice.config: choice for choice in recommend(grid(), 60.0)}
    choices = recommend(grid(), 60.0, among=cheap)
    assert {choice.config for choice in choices} == cheap
    assert sum(choice.is_best for choice in choices) == pytest.approx(1.0)
    assert choices[0].config == config(2)
    assert choices[0].loses < 0.01 < whole[config(2)].loses
    assert choices[0].goodput_per_s == pytest.approx(whole[config(2)].goodput_per_s)


def test_alike_configurations_share_the_chance():
    seen = [Sample(config(n), 50.0, 100.0) for n in (1, 2)]
    one, two = recommend(seen, 50.0)
    assert 0.2 < one.is_best < 0.8
    assert one.is_best + two.is_best == pytest.approx(1.0)


def test_of_what_serves_nothing_nothing_is_recommended():
    with pytest.raises(NothingKnown, match="nothing was served in time"):
        recommend([Sample(config(1), 50.0, 0.0)], 50.0)
    with pytest.raises(NothingKnown, match="above 0 ms, not -1"):
        recommend(grid(), -1.0)


def test_samples_are_the_most_over_the_rates():
    cells = [
        a_cell(rate_per_s=rate, sent=sent, good=good, repeat=repeat)
        for rate, sent, good in ((10.0, 100, 100), (20.0, 200, 150))
        for repeat in range(2)
    ]
    lines = lines_of(cells)
    [sample] = samples_of(lines, "resnet18")
    assert (sample.goodput_per_s, sample.noise) == (15.0, 0.0)
    [kept] = samples_of(lines, "resnet18", attainment=0.99)
    assert kept.goodput_per_s == 10.0
    [at] = samples_of(lines, "resnet18", rate_per_s=10.0)
    assert at.goodput_per_s == 10.0


def test_what_is_not_there_is_told_with_what_is():
    lines = lines_of([a_cell(), a_cell(model="magika")])
    with pytest.raises(
        NothingKnown, match=r"no results of model 'x'; there are .*magika, resnet18"
    ):
        samples_of(lines, "x")
    with pytest.raises(NothingKnown, match="not measured at 7 requests/s, but at 10"):
        samples_of(lines, "magika", rate_per_s=7.0)


def test_costs_are_those_of_the_devices_at_that_goodput():
    lines = lines_of([a_cell(config=config(2), devices=2)])
    [choice] = with_costs(recommend(samples_of(lines, "resnet18"), 100.0), lines, prices.load())
    usd = 2 * 0.045 / 3600 * 1000 / choice.goodput_per_s
    assert choice.usd_per_1000 == pytest.approx(usd)
    unknown = lines_of([a_cell(config=config(2), device="tpu")])
    [choice] = with_costs(recommend(samples_of(unknown, "resnet18"), 100.0), unknown, prices.load())
    assert choice.usd_per_1000 is None


def test_the_simulator_is_the_truth_of_the_experiment():
    [worst, *_] = [c for c in regret.configs() if dict(c)["largest_batch"] == "1"]
    [best, *_] = [
        c
        for c in regret.configs()
        if dict(c) == {"largest_batch": "16", "policy": "remontoir", "workers": "2"}
    ]
    assert regret.play(best, 60.0) > regret.play(worst, 60.0) > 0


def test_regret_is_what_the_choice_loses_against_the_best(tmp_path: Path):
    truth = {
        (config(n, policy), slo): goodput(n, slo, policy)
        for n in (1, 2, 4)
        for policy in ("clipper", "remontoir")
        for slo in (20.0, 40.0, 80.0)
    }
    seen = [Sample(config(1), 40.0, goodput(1, 40.0))]
    found = regret.score(truth, seen, 80.0)
    assert found.first == pytest.approx(1 - 4**-0.8)
    whole = [Sample(*key, value) for key, value in truth.items() if key[1] != 40.0]
    assert regret.score(truth, whole, 40.0).first == 0.0

    out = tmp_path / "page.md"
    arguments = ["--repeats", "1", "--out", str(out), "--truth", str(tmp_path / "truth.json")]
    assert regret.main(arguments, truth_of=lambda _jobs, _console: truth) == 0
    assert regret.read_truth(tmp_path / "truth.json") == truth
    text = out.read_text()
    assert "| 100 % | 0.0 ± 0.0 % |" in text
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
