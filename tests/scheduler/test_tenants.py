"""What tenants are owed of the devices' time."""

import pytest

from scheduler.request import Request
from scheduler.tenants import OVERDRAWN_NS, SAVED_NS, TenantAccounts
from tests.scheduler.story import Story, ms


def requests(*tenants: str) -> list[Request]:
    story = Story()
    return [Request(story.arrival(index, tenant=tenant)) for index, tenant in enumerate(tenants)]


def test_half_of_the_time_is_divided_by_weight() -> None:
    """Weights 3 and 1 on two devices: 0.75 and 0.25 of a device are owed."""
    accounts = TenantAccounts({"a": 3, "b": 1})
    accounts.charge(requests("a", "b"), ms(400), 2, 0)
    assert accounts.owed(2, ms(1)) == []
    assert accounts.owed(2, ms(266)) == []
    assert accounts.owed(2, ms(267)) == ["a"]
    assert accounts.owed(2, ms(799)) == ["a"]
    assert accounts.owed(2, ms(801)) == ["a", "b"]


def test_a_batch_is_paid_for_by_rows() -> None:
    accounts = TenantAccounts({"a": 1, "b": 1})
    members = requests("a", "b", "b", "b")
    accounts.charge(members, ms(40), 1, 0)
    assert accounts.owed(1, ms(41)) == ["a"]
    assert accounts.owed(1, ms(121)) == ["a", "b"]


def test_idle_time_is_no_claim_on_the_future() -> None:
    accounts = TenantAccounts({"a": 1, "b": 1})
    accounts.charge(requests("a"), SAVED_NS // 4 + 1, 1, ms(60_000))
    assert not accounts.is_owed("a", 1, ms(60_000))
    assert accounts.is_owed("b", 1, ms(60_000))


def test_what_nobody_else_wanted_is_forgotten_after_a_second() -> None:
    accounts = TenantAccounts({"a": 1})
    accounts.charge(requests("a"), ms(60_000), 1, 0)
    assert not accounts.is_owed("a", 1, OVERDRAWN_NS)
    assert accounts.is_owed("a", 1, OVERDRAWN_NS + ms(1))


@pytest.mark.parametrize("weights", [{"a": 1.0}, {"a": 1.0, "c": 0.0}])
def test_without_a_weight_nothing_is_owed(weights: dict[str, float]) -> None:
    accounts = TenantAccounts(weights)
    accounts.charge(requests("c", "c"), ms(10), 1, ms(5))
    assert not accounts.is_owed("c", 1, ms(1_000))
    assert accounts.owed(1, ms(1_000)) == ["a"]
