"""Whether Exp3 finds the best arm, and leaves it when it is the best no more."""

import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from gateway.variants.exp3 import EXPLORATION, MAX_LOG_GAP, Exp3

ALL = (0, 1, 2)


def play(
    policy: Exp3,
    num_rounds: int,
    loss_of: Callable[[int], float],
    *,
    arms: Sequence[int] = ALL,
    feedback: float = 1.0,
) -> Counter[int]:
    """How often each was chosen. `feedback` is the share of the choices that are judged."""
    chance = random.Random(11)
    chosen: Counter[int] = Counter()
    for _ in range(num_rounds):
        arm, probability = policy.choose(arms)
        chosen[arm] += 1
        if chance.random() < feedback:
            policy.learn(arm, loss_of(arm), probability, arms)
    return chosen


def coin(*rates: float, seed: int = 5) -> Callable[[int], float]:
    """Losses of 1 at these rates, else 0; by another chance than the policy's."""
    chance = random.Random(f"losses {seed}")
    return lambda arm: float(chance.random() < rates[arm])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("best", ALL)
def test_it_converges_to_the_best_arm(seed: int, best: int) -> None:
    rates = [0.5, 0.5, 0.5]
    rates[best] = 0.1
    policy = Exp3(3, eta=0.1, seed=seed)
    play(policy, 2000, coin(*rates, seed=seed))
    chosen = play(policy, 1000, coin(*rates, seed=seed))
    assert chosen[best] > 850
    assert policy.probabilities(ALL)[best] > 0.85


@pytest.mark.parametrize("seed", range(5))
def test_it_recovers_when_the_best_arm_degrades_and_when_it_is_mended(seed: int) -> None:
    policy = Exp3(3, eta=0.1, seed=seed)
    for best, second in ((0, 1), (1, 0), (0, 1)):
        rates = [0.9, 0.9, 0.9]
        rates[best], rates[second] = 0.1, 0.4
        if (best, second) == (1, 0):
            rates[0] = 0.9  # the former best has become bad
        play(policy, 3000, coin(*rates, seed=seed))
        assert policy.probabilities(ALL)[best] > 0.8


def test_feedback_for_a_tenth_is_enough() -> None:
    policy = Exp3(3, eta=0.1, seed=1)
    play(policy, 20_000, coin(0.5, 0.1, 0.5), feedback=0.1)
    assert policy.probabilities(ALL)[1] > 0.85


def test_regret_is_a_small_part_of_what_choosing_at_random_would_have_lost() -> None:
    policy = Exp3(3, eta=0.1, seed=3)
    rates = (0.2, 0.4, 0.6)
    chosen = play(policy, 5000, coin(*rates))
    lost = sum(count * rates[arm] for arm, count in chosen.items())
    at_random, best = 5000 * 0.4, 5000 * 0.2
    assert lost - best < 0.25 * (at_random - best)


def test_rarely_chosen_arms_are_judged_as_strongly_as_they_are_rare() -> None:
    """The importance weighting: two arms with equal losses stay level, whatever their shares."""
    policy = Exp3(2, eta=0.001, seed=2)
    policy.learn(0, 1.0, 0.001, (0, 1))  # a head start: exp(-1) of the weight
    before = policy.probabilities((0, 1))
    assert before[0] == pytest.approx(0.95 / (1 + 2.718281828) + 0.025)
    for _ in range(20_000):
        arm, probability = policy.choose((0, 1))
        policy.learn(arm, 0.5, probability, (0, 1))
    assert policy.probabilities((0, 1))[0] == pytest.approx(before[0], abs=0.1)


def test_among_those_that_are_in_time_probabilities_are_of_them_alone() -> None:
    policy = Exp3(3, eta=0.1, seed=4)
    play(policy, 2000, coin(0.1, 0.5, 0.9))
    one, two = policy.probabilities((1, 2))
    assert one + two == pytest.approx(1.0)
    assert one > two
    assert policy.choose((2,)) == (2, 1.0)
    chosen = play(policy, 200, coin(0.1, 0.5, 0.9), arms=(1, 2))
    assert chosen[0] == 0


def test_what_is_learnt_while_the_best_is_never_in_time_still_counts() -> None:
    policy = Exp3(3, eta=0.1, seed=4)
    play(policy, 2000, coin(0.1, 0.5, 0.9), arms=(1, 2))
    assert policy.probabilities((1, 2))[0] > 0.85


def test_what_some_lose_says_nothing_of_the_others() -> None:
    policy = Exp3(3, eta=0.1, seed=4)
    play(policy, 2000, coin(0.1, 0.5, 0.9), arms=(1, 2))
    assert policy.probabilities(ALL)[0] == pytest.approx(1 / 3)
    policy.learn(2, 1.0, 1.0, (2,))  # alone: nothing to compare it with
    assert policy.probabilities(ALL)[0] == pytest.approx(1 / 3)


def test_every_arm_is_looked_at_now_and_then_and_no_weight_is_lost() -> None:
    policy = Exp3(3, eta=10, seed=6)
    for _ in range(100):
        policy.learn(0, 1.0, 0.02, ALL)
    probabilities = policy.probabilities(ALL)
    assert sum(probabilities) == pytest.approx(1.0)
    assert min(probabilities) >= EXPLORATION / 3
    assert max(policy._log_weights) - min(policy._log_weights) == pytest.approx(MAX_LOG_GAP)


def test_the_same_seed_makes_the_same_choices() -> None:
    def choices(seed: int) -> list[int]:
        policy = Exp3(3, eta=0.1, seed=seed)
        return [policy.choose(ALL)[0] for _ in range(50)]

    assert choices(1) == choices(1)
    assert choices(1) != choices(2)
