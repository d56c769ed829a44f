"""Which SLOs are asked for lately, and how long each can wait."""

import pytest

from scheduler.slo_classes import MEMORY_NS, SloClasses, class_of
from tests.scheduler.story import ms


@pytest.mark.parametrize("slo_ms", [0.5, 3, 7, 9.8, 100, 3_000])
def test_twice_as_long_is_four_classes_more(slo_ms: float) -> None:
    assert class_of(2 * ms(slo_ms)) - class_of(ms(slo_ms)) == 4
    assert class_of(ms(slo_ms) * 5 // 4) - class_of(ms(slo_ms)) in (1, 2)


def test_the_least_slack_of_a_class_and_of_all_tighter_ones() -> None:
    classes = SloClasses()
    classes.touch(ms(400), ms(300), 0)
    classes.touch(ms(15), ms(13), 1)
    classes.touch(ms(15), ms(12), 2)
    classes.touch(ms(50), ms(20), 3)
    assert classes.slacks(4) == [
        (class_of(ms(15)), ms(12)),
        (class_of(ms(50)), ms(12)),
        (class_of(ms(400)), ms(12)),
    ]


def test_a_class_is_kept_for_ten_seconds_after_its_last_request() -> None:
    classes = SloClasses()
    classes.touch(ms(15), ms(12), 0)
    classes.touch(ms(400), ms(300), ms(5_000))
    assert len(classes.slacks(MEMORY_NS)) == 2
    assert classes.slacks(MEMORY_NS + 1) == [(class_of(ms(400)), ms(300))]
    classes.touch(ms(15), ms(14), 3 * MEMORY_NS)
    assert classes.slacks(3 * MEMORY_NS) == [(class_of(ms(15)), ms(14))]


def test_a_slack_that_grew_is_believed_after_a_while() -> None:
    """The least of ten to twenty seconds: a class does not get looser by one fast model."""
    classes = SloClasses()
    for second in range(25):
        classes.touch(ms(15), ms(5 if second == 0 else 12), second * ms(1_000))
        slack_ns = classes.slacks(second * ms(1_000))[0][1]
        assert slack_ns == (ms(5) if second <= 21 else ms(12)), second


def test_a_class_that_comes_back_after_a_long_silence_starts_anew() -> None:
    classes = SloClasses()
    classes.touch(ms(15), ms(5), 0)
    classes.touch(ms(15), ms(12), MEMORY_NS + 1)
    assert classes.slacks(MEMORY_NS + 1) == [(class_of(ms(15)), ms(12))]


def test_rates_of_tighter_classes_add_up() -> None:
    """A hundred in ten seconds, of this period and of the one before; the lax ones do not count."""
    classes = SloClasses()
    for number in range(300):
        classes.touch(ms(15), ms(12), ms(100 * number))
        classes.touch(ms(400), ms(300), ms(100 * number))
    now = ms(29_900)
    assert classes.rate_below(class_of(ms(100)), now) * 1e9 == pytest.approx(10, rel=0.05)
    assert classes.rate_below(class_of(ms(15)), now) == 0
    assert classes.rate_below(class_of(ms(100)), now + MEMORY_NS + 1) == 0


def test_a_class_that_has_just_come_is_not_taken_for_a_flood() -> None:
    classes = SloClasses()
    classes.touch(ms(15), ms(12), 0)
    assert classes.rate_below(class_of(ms(100)), 1) * 1e9 == 1
