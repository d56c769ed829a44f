"""Ceilings of closed loops, by hand."""

import pytest

from loadtest.bound.ceiling import Loop, ceiling

MS = 1_000_000
TABLE = tuple(round(t * MS) for t in (0, 4, 6, 8, 10))  # 250, 333, 375, 400 rows per second


def test_without_a_number_of_clients_it_is_the_best_batch() -> None:
    assert ceiling([Loop(table=TABLE, slo_ns=50 * MS)], num_devices=1) == pytest.approx(400)
    assert ceiling([Loop(table=TABLE, slo_ns=50 * MS)], num_devices=6) == pytest.approx(2400)


def test_an_slo_limits_the_batch_with_the_way_there_and_back() -> None:
    def best(slo_ms: int) -> float:
        loop = Loop(table=TABLE, slo_ns=slo_ms * MS, before_ns=MS, after_ns=MS)
        return ceiling([loop], num_devices=1)

    assert best(12) == pytest.approx(400)
    assert best(11) == pytest.approx(375)
    assert best(6) == pytest.approx(250)
    assert best(5) == 0.0


def test_few_clients_wait_more_than_they_are_served() -> None:
    # One client, served in 4 ms and 6 ms away: 100 a second, whatever the devices could do.
    one = Loop(table=TABLE, slo_ns=50 * MS, clients=1, before_ns=MS, after_ns=MS, think_ns=4 * MS)
    assert ceiling([one], num_devices=1) == pytest.approx(100)
    assert ceiling([one], num_devices=8) == pytest.approx(100)
    assert ceiling([one, one], num_devices=1) == pytest.approx(200)
    # Many of them are limited by the device.
    assert ceiling([one] * 100, num_devices=1) == pytest.approx(400)


def test_clients_that_cannot_fill_a_batch() -> None:
    pair = Loop(table=TABLE, slo_ns=50 * MS, clients=2, max_rows=2)
    # Two at a time take 6 ms, and there is one device.
    assert ceiling([pair] * 10, num_devices=1) == pytest.approx(1000 * 2 / 6)


def test_between_devices_and_clients_batches_are_mixed() -> None:
    # 3 clients that need 10 ms besides: alone in 4 ms 3 / 14 ms = 214/s would take 0.857 of a
    # device; no batch is better, as larger ones keep the clients longer.
    three = Loop(table=TABLE, slo_ns=50 * MS, clients=3, think_ns=10 * MS)
    assert ceiling([three], num_devices=1) == pytest.approx(3000 / 14)
    # Twice as many need 1.7 devices that way: part of them in pairs, which use 3 ms and keep
    # their clients 16 ms, so that both are used up: 4 x + 3 y = 1000, 14 x + 16 y = 6000.
    y = (6000 - 3500) / (16 - 10.5)
    x = (1000 - 3 * y) / 4
    assert x < 0 < y  # pairs alone are too few: threes (8 / 3 ms, 18 ms) come in
    z = (6000 - 16 * 1000 / 3) / (18 - 16 * 8 / 9)
    assert ceiling([three] * 2, num_devices=1) == pytest.approx(z + (1000 - 8 / 3 * z) / 3)


def test_nobody_asks_nothing_is_served() -> None:
    assert ceiling([], num_devices=3) == 0.0
