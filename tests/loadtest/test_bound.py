"""The clairvoyant bound: by hand, against the true optimum, and where textbook proofs stop."""

import random

import pytest

from loadtest.bound.exact import NotSolved, most_served
from loadtest.bound.instance import Asked, Instance, Outage, Weights, instance_of
from loadtest.bound.shortest_path import upper_bound

MS = 1_000_000


def ms(*times: float) -> list[int]:
    return [round(time * MS) for time in times]


def asked(*at_ms: float, slo_ms: float, model: str = "m") -> list[Asked]:
    return [Asked(at_ns, model, round(slo_ms * MS)) for at_ns in ms(*at_ms)]


def line(first_ms: int, each_ms: int, max_rows: int) -> list[int]:
    return [0, *ms(*(first_ms + each_ms * n for n in range(max_rows)))]


def padded(first_ms: int, each_ms: int, max_rows: int) -> list[int]:
    sizes = [size for size in (1, 2, 4, 8) if size <= max_rows]
    exact = line(first_ms, each_ms, max_rows)
    return [0, *(exact[min(s for s in sizes if s >= n)] for n in range(1, sizes[-1] + 1))]


def drawn(seed: int, *, num_devices: int, slos_ms: list[int], is_padded: bool) -> Instance:
    """A small instance in whole milliseconds, at one and a half times what can be served."""
    chance = random.Random(seed)
    names = [f"m{i}" for i in range(chance.choice([1, 2, 3]))]
    make = padded if is_padded else line
    tables = {name: make(chance.randint(1, 4), chance.choice([1, 2]), 4) for name in names}
    requests = [
        Asked(chance.randrange(16) * MS, chance.choice(names), chance.choice(slos_ms) * MS)
        for _ in range(4 + 6 * num_devices)
    ]
    return instance_of(requests, tables, num_devices=num_devices)


# ------------------------------------------------------------------ by hand


def test_one_request_at_a_time_where_batches_hold_one() -> None:
    requests = asked(0, 0, 0, 0, slo_ms=10)
    # 4 ms each, all within [0, 10): two.
    assert upper_bound(instance_of(requests, {"m": [0, 4 * MS]}, num_devices=1)).most == 2
    assert upper_bound(instance_of(requests, {"m": [0, 4 * MS]}, num_devices=2)).most == 4


def test_a_batch_serves_more_than_its_rows_would_alone() -> None:
    requests = asked(0, 0, 0, 0, slo_ms=10)
    # 4, 5, 6, 7 ms: four in one batch.
    proven = upper_bound(instance_of(requests, {"m": line(4, 1, 4)}, num_devices=1))
    assert (proven.most, proven.found) == (4, 4)


def test_a_batch_waits_for_its_last_and_ends_before_its_first_is_due() -> None:
    requests = asked(0, 6, slo_ms=10)
    # Both in one batch of 4 ms: from 6 to 10, just in time; with 5 ms no longer, and each alone
    # takes 5: 0-5 and 6-11 is two again. With 9 ms alone, 0-9 and 9-18 is one too late.
    assert upper_bound(instance_of(requests, {"m": ms(0, 4, 4)}, num_devices=1)).most == 2
    assert upper_bound(instance_of(requests, {"m": ms(0, 9, 9)}, num_devices=1)).most == 1


def test_a_deadline_that_no_batch_can_meet_leaves_nothing() -> None:
    requests = asked(0, 1, 2, slo_ms=3)
    assert upper_bound(instance_of(requests, {"m": ms(0, 4)}, num_devices=9)).most == 0


def test_the_way_there_and_back_is_not_there_for_execution() -> None:
    table = {"m": ms(0, 4)}
    requests = asked(0, slo_ms=6)
    fits = instance_of(requests, table, num_devices=1, before_ns=MS, after_ns=MS)
    assert upper_bound(fits).most == 1
    misses = instance_of(requests, table, num_devices=1, before_ns=MS, after_ns=MS + 1)
    assert upper_bound(misses).most == 0


def test_padded_batches_take_what_the_next_compiled_size_takes() -> None:
    # Three in one batch would take 8 ms padded to 4 rows: too long; 1 ms and 4 ms for 1 and 2 fit.
    requests = asked(0, 0, 0, slo_ms=5)
    assert upper_bound(instance_of(requests, {"m": ms(0, 1, 4, 8, 8)}, num_devices=1)).most == 3
    assert upper_bound(instance_of(requests, {"m": ms(0, 4, 4, 8, 8)}, num_devices=1)).most == 2


def test_no_requests_and_none_that_fits_are_zero() -> None:
    assert upper_bound(instance_of([], {"m": ms(0, 4)}, num_devices=1)).most == 0


def test_a_device_that_is_away_serves_nobody() -> None:
    requests = asked(*range(0, 100, 5), slo_ms=5)
    table = {"m": ms(0, 5)}
    away = [Outage(20 * MS, 60 * MS)]
    assert upper_bound(instance_of(requests, table, num_devices=1)).most == 20
    assert upper_bound(instance_of(requests, table, num_devices=1, outages=away)).most == 12
    assert upper_bound(instance_of(requests, table, num_devices=2, outages=away)).most == 20


def test_overload_is_bounded_near_what_full_batches_can_do() -> None:
    # 1000/s of one model for 2 s; a full batch of 4 takes 8 ms: 500/s, and 20 ms more at the end.
    requests = asked(*range(2000), slo_ms=20)
    proven = upper_bound(instance_of(requests, {"m": line(5, 1, 4)}, num_devices=1))
    assert 1000 <= proven.most <= 1010
    assert proven.found <= proven.most


# ------------------------------------------------------------------ where proofs are delicate


def test_a_batch_split_around_a_longer_one_is_not_overlooked() -> None:
    # n rows take 20 + 10 n ms. {b, c, d} runs from 1 to 51, {a, e} from 5 to 45 inside it: all
    # five. Runs of consecutive requests alone serve four.
    requests = asked(0, 1, 1, 1, 2, slo_ms=50)
    instance = instance_of(requests, {"m": line(30, 10, 3)}, num_devices=2)
    assert most_served(instance, grid_ns=MS) == 5
    assert upper_bound(instance, bucket_ns=MS, iterations=300).most == 5


def test_requests_of_different_slos_share_a_batch() -> None:
    requests = asked(0, slo_ms=10) + asked(0, slo_ms=11) + asked(0, slo_ms=30)
    # One batch of three takes 10 ms; each on its own 8 ms, so that two would be too late.
    instance = instance_of(requests, {"m": ms(0, 8, 9, 10)}, num_devices=1)
    assert most_served(instance, grid_ns=MS) == 3
    assert upper_bound(instance).most == 3


@pytest.mark.parametrize("num_devices", [1, 2, 3])
@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("slos_ms", [[9], [5, 8, 14]])
def test_never_below_the_true_optimum(
    num_devices: int, is_padded: bool, slos_ms: list[int]
) -> None:
    for seed in range(3):
        instance = drawn(seed, num_devices=num_devices, slos_ms=slos_ms, is_padded=is_padded)
        optimum = most_served(instance, grid_ns=MS)
        proven = upper_bound(instance, iterations=30)
        assert proven.found <= optimum <= proven.most <= instance.num_requests
        assert proven.most <= 1.25 * optimum + 1  # and not by being no bound at all


def test_every_number_of_steps_and_every_bucket_gives_a_bound() -> None:
    instance = drawn(5, num_devices=1, slos_ms=[9], is_padded=False)
    optimum = most_served(instance, grid_ns=MS)
    for iterations in (1, 2, 6, 17, 40):
        for bucket_ns in (MS // 3, MS, 7 * MS, 100 * MS):
            proven = upper_bound(instance, iterations=iterations, bucket_ns=bucket_ns)
            assert proven.most >= optimum
            assert proven.iterations <= iterations


def test_more_devices_never_lower_the_optimum_nor_the_bound_below_it() -> None:
    requests = asked(*range(0, 40, 2), slo_ms=9) + asked(*range(0, 40, 3), slo_ms=14, model="n")
    tables = {"m": line(3, 1, 4), "n": line(5, 2, 4)}
    most = [upper_bound(instance_of(requests, tables, num_devices=n)).most for n in (1, 2, 3, 4)]
    assert most == sorted(most)
    assert most[0] < most[-1] == len(requests)


def test_the_same_instance_has_the_same_bound() -> None:
    instance = drawn(7, num_devices=2, slos_ms=[5, 9, 20], is_padded=True)
    assert upper_bound(instance) == upper_bound(instance)


# ------------------------------------------------------------------ weights


def test_with_room_for_one_model_a_load_lies_between_two() -> None:
    requests = asked(0, slo_ms=5) + asked(0, slo_ms=20, model="n")
    weights = {"m": Weights(3, 10 * MS), "n": Weights(3, 10 * MS)}
    tables = {"m": ms(0, 2), "n": ms(0, 2)}

    def most(pages: int, load_ms: int) -> int:
        kinds = {name: Weights(3, load_ms * MS) for name in weights}
        return upper_bound(
            instance_of(requests, tables, num_devices=1, weights=kinds, pages_per_device=pages),
            bucket_ns=MS,
        ).most

    assert most(pages=6, load_ms=30) == 2  # both are there from the beginning
    assert most(pages=3, load_ms=10) == 2  # one is, and the other is loaded in time
    assert most(pages=3, load_ms=30) == 1  # or is not


def test_one_load_at_a_time_limits_models_that_are_asked_once() -> None:
    # 60 models, one request each, 10 ms apart; a device keeps 2 and loads one in 30 ms.
    names = [f"m{i}" for i in range(60)]
    requests = [Asked(i * 10 * MS, name, 20 * MS) for i, name in enumerate(names)]
    instance = instance_of(
        requests,
        {name: ms(0, 1) for name in names},
        num_devices=1,
        weights={name: Weights(1, 30 * MS) for name in names},
        pages_per_device=2,
    )
    # 610 ms of LOADs are 20, and 2 were there.
    assert 20 <= upper_bound(instance, bucket_ns=5 * MS, iterations=200).most <= 27


def test_with_weights_never_below_the_true_optimum() -> None:
    below = 0
    for seed in range(8):
        chance = random.Random(seed)
        names = ["a", "b", "c"][: chance.choice([2, 3])]
        requests = [
            Asked(chance.randrange(12) * MS, chance.choice(names), chance.choice([5, 8]) * MS)
            for _ in range(6)
        ]
        tables = {name: line(2, 1, 3) for name in names}
        instance = instance_of(
            requests,
            tables,
            num_devices=1,
            weights={name: Weights(1, chance.choice([3, 6]) * MS) for name in names},
            pages_per_device=1,
        )
        try:
            optimum = most_served(instance, grid_ns=MS, limit_s=2)
        except NotSolved:
            continue
        most = upper_bound(instance).most
        assert optimum <= most <= len(requests)
        below += most < upper_bound(instance_of(requests, tables, num_devices=1)).most
    assert below > 0  # the weights are not for nothing


# ------------------------------------------------------------------ what cannot be


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tables": {"n": [0, 1]}, "num_devices": 1}, "m, of which no batch times"),
        ({"tables": {"m": [0, 1]}, "num_devices": 0}, "at least one device, not 0"),
        ({"tables": {"m": [0, 2, 1]}, "num_devices": 1}, "never fall"),
        ({"tables": {"m": [0]}, "num_devices": 1}, "must be positive"),
        ({"tables": {"m": [0, 1]}, "num_devices": 1, "weights": {}}, "needs pages"),
    ],
)
def test_an_instance_that_makes_no_sense_is_refused(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        instance_of(asked(0, slo_ms=5), **options)  # type: ignore[arg-type]


def test_the_exact_programme_says_what_it_cannot_do() -> None:
    table = {"m": ms(0, 4)}
    with pytest.raises(ValueError, match="no multiple of 3000000"):
        most_served(instance_of(asked(0, slo_ms=6), table, num_devices=1), grid_ns=3 * MS)
    with pytest.raises(ValueError, match="no outages"):
        most_served(
            instance_of(asked(0, slo_ms=6), table, num_devices=1, outages=[Outage(0, 1)]),
            grid_ns=MS,
        )
    with pytest.raises(ValueError, match="one device only"):
        most_served(
            instance_of(asked(0, slo_ms=6), table, num_devices=2, weights={"m": Weights(1, MS)}),
            grid_ns=MS,
        )
