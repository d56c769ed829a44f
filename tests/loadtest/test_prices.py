"""What a thousand requests cost, by hand; and a table that says nonsense."""

from pathlib import Path

import pytest

from loadtest.analysis.prices import DevicePrice, Grid, PriceError, Prices, load

PRICES = Prices(
    grid=Grid(pue=1.5, grams_co2_per_kwh=400),
    devices={
        "cpu-big*": DevicePrice(usd_per_hour=3.6, idle_watts=10, busy_watts=30),
        "cpu*": DevicePrice(usd_per_hour=0.36, idle_watts=1, busy_watts=2),
    },
)


def test_a_thousand_requests_take_device_hours_and_watts():
    cost = PRICES.cost("cpu-big-1", devices=2, goodput_per_s=100, busy=0.5)
    assert cost is not None
    assert cost.usd == pytest.approx(2 * 3.6 / 3600 * 10)
    assert cost.energy_wh == pytest.approx(2 * 20 * 10 * 1.5 / 3600)
    assert cost.grams_co2 == pytest.approx(cost.energy_wh / 1000 * 400)
    assert not cost.is_measured


def test_measured_energy_goes_before_the_table():
    cost = PRICES.cost("cpu", devices=1, goodput_per_s=10, busy=1.0, energy_j_per_s=7.2)
    assert cost is not None
    assert cost.energy_wh == pytest.approx(7.2 * 100 * 1.5 / 3600)
    assert cost.is_measured


def test_no_price_for_an_unknown_device_or_for_nothing_served():
    assert PRICES.cost("tpu", devices=1, goodput_per_s=10, busy=1) is None
    assert PRICES.cost("cpu", devices=1, goodput_per_s=0, busy=1) is None


def test_the_table_that_comes_along_knows_a_cpu():
    price = load().of("cpu")
    assert price is not None
    assert price.busy_watts > price.idle_watts > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid: {grams_co2_per_kwh: 1}", "missing required field `devices`"),
        ("- 1", "it needs grid and devices"),
        ("grid: [", "while parsing"),
        (
            "{grid: {grams_co2_per_kwh: 1}, devices: {cpu: {usd_per_hour: 1, idle_watts: 9, "
            "busy_watts: 2}}}",
            r"idle_watts between 0 and busy_watts, not 1, 9 and 2 - at `\$.devices\[...\]`",
        ),
        ("{grid: {grams_co2_per_kwh: 1, pu: 2}, devices: {}}", "unknown field `pu`"),
    ],
)
def test_a_wrong_table_is_told_by_file_and_key(tmp_path: Path, text: str, message: str):
    file = tmp_path / "prices.yaml"
    file.write_text(text)
    with pytest.raises(
        PriceError, match=f"(?s)prices.yaml: .*{message.split('prices.yaml: ')[-1]}"
    ):
        load(file)


def test_a_missing_table_is_told(tmp_path: Path):
    with pytest.raises(PriceError, match=r"none\.yaml: No such file"):
        load(tmp_path / "none.yaml")


TABLE = "grid: {grams_co2_per_kwh: 1}\ndevices: {}\n"


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ("", "ours.yaml, which does not say of when it is"),
        ("about: {as_of: 2026-05-04}", "ours.yaml, as of 2026-05-04, not verified"),
        ("about: {as_of: 2026, verified: true}", "ours.yaml, as of 2026, verified"),
    ],
)
def test_a_table_says_of_when_it_is_and_who_stands_for_it(tmp_path: Path, about: str, words: str):
    file = tmp_path / "ours.yaml"
    file.write_text(TABLE + about)
    assert load(file).origin == words


def test_nobody_stands_for_the_table_that_comes_along():
    assert load().origin == "prices.yaml, as of 2024 to 2025, not verified"
