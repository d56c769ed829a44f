import pytest

from gateway.lifecycle import Lifecycle


def test_a_gateway_starts_unready_and_refusing() -> None:
    lifecycle = Lifecycle()
    assert (lifecycle.refusal_reason, lifecycle.unready_reason) == ("starting", "starting")


def test_draining_is_unready_and_still_serves() -> None:
    lifecycle = Lifecycle()
    lifecycle.serve()
    assert (lifecycle.refusal_reason, lifecycle.unready_reason) == (None, None)
    lifecycle.drain()
    assert (lifecycle.refusal_reason, lifecycle.unready_reason) == (None, "draining")
    lifecycle.refuse()
    assert (lifecycle.refusal_reason, lifecycle.unready_reason) == ("draining", "draining")


def test_draining_before_serving_does_not_begin_to_serve() -> None:
    lifecycle = Lifecycle()
    lifecycle.drain()
    assert (lifecycle.refusal_reason, lifecycle.unready_reason) == ("starting", "draining")


def test_there_is_no_way_back() -> None:
    lifecycle = Lifecycle()
    lifecycle.refuse()
    with pytest.raises(ValueError, match="from refusing to serving"):
        lifecycle.serve()
    with pytest.raises(ValueError, match="from refusing to draining"):
        lifecycle.drain()
