"""Which replica owns which model: always the same, spread by weight, and few move."""

from collections import Counter

import pytest

from scheduler.shards import (
    Replica,
    ReplicasError,
    Shards,
    names_drawn_for,
    parse_replicas,
    parse_together,
    rendezvous_order,
    told_together,
)

MODELS = [f"model-{number}" for number in range(4000)]


def replicas(number: int, **weights: float) -> tuple[Replica, ...]:
    names = [f"gateway-{index}" for index in range(number)]
    return tuple(
        Replica(name, f"http://{name}:8000", weights.get(name.replace("-", "_"), 1.0))
        for name in names
    )


def owners(of: tuple[Replica, ...]) -> dict[str, str]:
    return {model: rendezvous_order(of, model)[0] for model in MODELS}


def test_the_order_is_the_same_in_every_process_and_whoever_lists_them() -> None:
    three = replicas(3)
    # Written down: another order would move models between replicas of two versions.
    assert rendezvous_order(three, "resnet50") == ("gateway-0", "gateway-1", "gateway-2")
    assert rendezvous_order(three[::-1], "resnet50") == ("gateway-0", "gateway-1", "gateway-2")


def test_models_are_spread_evenly() -> None:
    counts = Counter(owners(replicas(10)).values())
    assert len(counts) == 10
    assert max(counts.values()) < 1.2 * 400  # four standard deviations are 76
    assert min(counts.values()) > 0.8 * 400


def test_twice_the_weight_is_twice_the_models() -> None:
    counts = Counter(owners(replicas(4, gateway_0=2.0)).values())
    assert 0.36 < counts["gateway-0"] / len(MODELS) < 0.44


def test_one_more_replica_takes_its_share_and_moves_nothing_else() -> None:
    before, after = owners(replicas(4)), owners(replicas(5))
    moved = [model for model in MODELS if before[model] != after[model]]
    assert {after[model] for model in moved} == {"gateway-4"}
    assert 0.17 < len(moved) / len(MODELS) < 0.23  # a fifth


def test_who_owned_a_model_before_stands_in_for_the_new_owner() -> None:
    before = owners(replicas(4))
    for model in MODELS[:200]:
        first, second, *_ = rendezvous_order(replicas(5), model)
        assert before[model] == (second if first == "gateway-4" else first)


def test_a_replica_has_the_models_that_it_owns_and_those_it_stands_in_for() -> None:
    shards = Shards(replicas(3), "gateway-2", copies=2)
    assert shards.holders("resnet50") == ("gateway-0", "gateway-1")
    assert not shards.has("resnet50")
    assert Shards(replicas(3), "gateway-1", copies=2).has("resnet50")
    assert not Shards(replicas(3), "gateway-1", copies=1).has("resnet50")
    assert Shards(replicas(1), "gateway-0", copies=2).holders("resnet50") == ("gateway-0",)


def test_replicas_are_told_in_one_line() -> None:
    text = " a=http://10.0.0.1:8000, b=https://b.gateways.svc:8443/;weight=2.5,"
    assert parse_replicas(text) == (
        Replica("a", "http://10.0.0.1:8000", 1.0),
        Replica("b", "https://b.gateways.svc:8443", 2.5),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no replica in it: expected NAME=URL,..."),
        ("a", "'a' is not NAME=http://HOST:PORT, or https"),
        ("a=host:8000", "'a=host:8000' is not NAME=http://HOST:PORT"),
        ("a=http://h/path", "is not NAME=http://HOST:PORT"),
        ("a=http://h:99999", "'a=http://h:99999' is not NAME=http://HOST:PORT"),
        ("a=http://h:x", "is not NAME=http://HOST:PORT"),
        ("a=http://h:0", "is not NAME=http://HOST:PORT"),
        ("a=http://:8000", "is not NAME=http://HOST:PORT"),
        ("a=http://[::1", "is not NAME=http://HOST:PORT"),
        ("-a=http://h", "'-a=http://h' is not NAME="),
        ("a=http://h,a=http://i", "replica a is there twice"),
        ("a=http://h;weight=0", "expected ;weight=W with a positive number"),
        ("a=http://h;weight=nan", "expected ;weight=W with a positive number"),
        ("a=http://h;weight=x", "expected ;weight=W with a positive number"),
        ("a=http://h;weigth=1", "expected ;weight=W with a positive number"),
    ],
)
def test_a_list_that_cannot_be_used_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ReplicasError) as raised:
        parse_replicas(text)
    assert message in str(raised.value)


def test_a_replica_must_be_among_the_replicas() -> None:
    with pytest.raises(ReplicasError, match="replica 'gateway-9' is not among the replicas: g"):
        Shards(replicas(2), "gateway-9", copies=2)


def test_models_of_a_group_are_where_its_name_is() -> None:
    groups = {"classify": ["big", "small"]}
    for number in range(20):
        groups |= {f"g{number}": [f"big-{number}", f"small-{number}"]}
    shards = Shards(replicas(5), "gateway-0", copies=2, groups=groups)
    for group, models in groups.items():
        assert shards.holders(group) == rendezvous_order(replicas(5), group)[:2]
        assert {shards.holders(model) for model in models} == {shards.holders(group)}
    assert shards.holders("alone") == rendezvous_order(replicas(5), "alone")[:2]
    assert len({shards.holders(group) for group in groups}) > 5


def test_groups_that_share_models_are_one() -> None:
    groups = {"b": ["m1", "m2"], "d": ["m3", "m4"], "c": ["m2", "m3"], "e": ["m5"], "f": ["e"]}
    drawn = names_drawn_for(groups)
    assert {name for name, of in drawn.items() if of == "b"} == {*"bcd", "m1", "m2", "m3", "m4"}
    assert {name for name, of in drawn.items() if of == "e"} == {"e", "f", "m5"}
    assert names_drawn_for(dict(reversed(groups.items()))) == drawn
    assert names_drawn_for({}) == {}


def test_groups_are_told_in_one_text_each() -> None:
    groups = {"classify": ("resnet 50", "a,b"), "speech": ("x=1",)}
    assert told_together(groups) == ["classify/resnet 50/a,b", "speech/x=1"]
    assert parse_together(told_together(groups)) == groups
    for text in ("", "classify", "classify/", "/m", "g/m//n"):
        with pytest.raises(ReplicasError, match="is not GROUP/MODEL/MODEL/"):
            parse_together([text])
