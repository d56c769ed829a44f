"""The mirror of one device: weights states, pages, what is ready, measured delays."""

import pytest

from scheduler.device import (
    DOUBT_AFTER_NS,
    INITIAL_DELAY_NS,
    USE_HALF_LIFE_NS,
    WEIGHTS_MOVES,
    DeviceMirror,
    Weights,
    WeightsState,
)
from scheduler.events import RequestArrived
from scheduler.model_queue import ModelQueue
from scheduler.request import IllegalMove, Request
from tests.scheduler.story import device_spec, model_spec, ms

W = WeightsState
LEGAL = {
    (W.ABSENT, W.LOADING),
    (W.LOADING, W.RESIDENT),
    (W.LOADING, W.ABSENT),
    (W.RESIDENT, W.EVICTING),
    (W.RESIDENT, W.ABSENT),
    (W.EVICTING, W.ABSENT),
    (W.EVICTING, W.RESIDENT),
}


def mirror(*names: str, shared: bool = False) -> DeviceMirror:
    offered = {name: model_spec(name) for name in names or ("m", "n")}
    return DeviceMirror("w", device_spec(shared=shared), offered)


def hold(device: DeviceMirror, name: str) -> Weights:
    record = device.record(name)
    record.state = W.RESIDENT
    return record


def queue_of(model: str, latest_start_ns: int) -> ModelQueue:
    queue = ModelQueue(model, "", "", 4)
    queue.push(Request(RequestArrived(1, model, 0, 100)))
    queue.latest_start_ns = latest_start_ns
    return queue


@pytest.mark.parametrize("state", W, ids=lambda s: s.value)
@pytest.mark.parametrize("target", W, ids=lambda s: s.value)
def test_every_pair_of_weights_states_moves_or_raises(
    state: WeightsState, target: WeightsState
) -> None:
    weights = Weights(num_pages=1)
    weights.state = state
    if (state, target) in LEGAL:
        weights.move_to(target, "m")
        assert weights.state is target
    else:
        with pytest.raises(IllegalMove, match=f"weights of m: {state.value} → {target.value}"):
            weights.move_to(target, "m")
        assert weights.state is state


def test_the_table_names_every_weights_state() -> None:
    assert set(WEIGHTS_MOVES) == set(W)


def test_a_model_without_a_record_is_absent() -> None:
    device = mirror()
    assert device.weights_state("never heard of") is W.ABSENT
    assert not device.is_resident("m")


def test_use_fades_by_half_in_its_half_life() -> None:
    weights = Weights(num_pages=1)
    weights.use(8, now=0)
    assert weights.score(USE_HALF_LIFE_NS) == 4.0
    weights.use(1, now=USE_HALF_LIFE_NS)
    assert weights.use_score == 5.0


def test_used_weights_become_the_most_recently_used() -> None:
    device = mirror("a", "b", "c")
    for name in "abc":
        hold(device, name)
    device.touch("a", rows=2, now=5)
    assert list(device.weights) == ["b", "c", "a"]
    assert device.weights["a"].last_used_ns == 5


def test_pages_are_shown_by_state_and_never_below_zero() -> None:
    device = mirror("a", "b", "c", "d")
    for name, state in zip("abcd", W, strict=True):
        device.record(name).state = state
    device.pages_free = -3
    assert device.pages_by_state() == {"free": 0, "loading": 4, "resident": 4, "evicting": 4}


def test_a_shared_core_has_one_lane_for_both() -> None:
    shared, own = mirror(shared=True), mirror()
    assert shared.load_lane is shared.exec_lane
    assert own.load_lane is not own.exec_lane


def test_the_most_urgent_ready_queue_comes_first() -> None:
    device = mirror()
    hold(device, "m")
    hold(device, "n")
    late, early = queue_of("m", 90), queue_of("n", 40)
    device.push_ready(90, late)
    device.push_ready(40, early)
    assert device.peek_ready() is early
    entry = device.pop_ready()
    assert entry is not None
    assert entry[2] is early
    assert device.peek_ready() is late


def test_ready_entries_that_are_no_longer_true_are_dropped() -> None:
    device = mirror()
    hold(device, "m")
    moved, gone = queue_of("m", 40), queue_of("n", 50)
    device.push_ready(30, moved)  # stands under another key now
    device.push_ready(50, gone)  # "n" is not resident
    assert device.peek_ready() is None
    assert device.pop_ready() is None
    assert device.ready == []


def test_ready_entries_do_not_pile_up() -> None:
    device = mirror()
    hold(device, "m")
    queue = queue_of("m", 0)
    for key in range(3 * 4096):
        queue.latest_start_ns = key
        device.push_ready(key, queue)
    assert len(device.ready) <= 4096
    assert device.peek_ready() is queue


def test_delays_are_measured() -> None:
    device = mirror()
    assert device.start_at(1_000) == 1_000 + INITIAL_DELAY_NS
    device.observe_delays(command_ns=70, reply_ns=-5)
    assert (device.command_delay_ns, device.reply_delay_ns) == (70, 1)
    assert device.start_at(1_000) == 1_070
    assert device.load_start_at(1_000) == 1_070


def test_the_next_retry_is_the_earliest_that_is_still_to_come() -> None:
    device = mirror("a", "b", "c")
    for name, retry_at_ns in (("a", 5), ("b", 30), ("c", 20)):
        device.record(name).retry_at_ns = retry_at_ns
    assert device.next_retry_ns(10) == 20


# ---------------------------------------------------------------------- doubt


def slow(device: DeviceMirror, model: str, measured_ns: int) -> None:
    estimates = device.estimates(model)
    estimates.exec("", 4).observe(1, ms(1_000))
    estimates.measured_ns = measured_ns


def plan_ms(device: DeviceMirror, model: str) -> float:
    return device.estimates(model).exec("", 4).plan[1] / ms(1)


def test_old_figures_are_dropped_and_fresh_ones_are_not() -> None:
    device = mirror()
    slow(device, "m", measured_ns=ms(500))
    device.doubt("m", ms(500) + DOUBT_AFTER_NS - 1)
    assert plan_ms(device, "m") == 1_000
    device.doubt("m", ms(500) + DOUBT_AFTER_NS)
    assert plan_ms(device, "m") == 10


def test_figures_are_kept_while_the_model_is_measured_anyhow() -> None:
    device = mirror()
    slow(device, "m", measured_ns=0)
    device.record("m").num_infers = 1
    device.doubt("m", 2 * DOUBT_AFTER_NS)
    assert plan_ms(device, "m") == 1_000
    device.weights["m"].num_infers = 0
    device.weights["m"].state = W.LOADING
    device.doubt("m", 2 * DOUBT_AFTER_NS)
    assert plan_ms(device, "m") == 1_000
    device.weights["m"].state = W.RESIDENT
    device.doubt("m", 2 * DOUBT_AFTER_NS)
    assert plan_ms(device, "m") == 10


def test_delays_of_an_idle_device_are_dropped_too() -> None:
    device = mirror()
    device.observe_delays(command_ns=ms(70), reply_ns=ms(900))
    device.previous_done_ns = ms(500)
    device.doubt("m", ms(600))
    assert device.reply_delay_ns == ms(900)
    device.doubt("m", ms(500) + DOUBT_AFTER_NS)
    assert device.reply_delay_ns == device.command_delay_ns == INITIAL_DELAY_NS


def test_what_a_device_offers_can_be_asked() -> None:
    device = mirror("m")
    assert [device.offers(name) for name in ("m", "later")] == [True, False]
    device.offer(model_spec("later"))
    assert device.offers("later")
