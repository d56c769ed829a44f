"""Exp3: which of several arms to pull, learnt from losses, whatever those will do next.

It owns the weights. Clipper (NSDI '17, section 5) selects models so: an arm's weight falls by
exp(-eta * loss / probability), so that rarely chosen arms are not judged less often, only more
strongly (Auer et al., 2002). It must never know a clock, nor what an arm is; chance is seeded.

Two bounds let it recover when the best arm becomes bad: a share of the choices is uniform, and no
weight falls so far below the best one's that it could not come back. Often only some arms can be
chosen. What those lose says nothing of the others: they share what weight they had together anew
(as "specialists" do; Freund et al., 1997), or else an arm that is never chosen would win.
"""

import math
import random
from collections.abc import Sequence

# Of all choices, at random: how soon a change for the better is seen, and what looking costs.
EXPLORATION = 0.05
# A loss of 1 at the default eta of 0.1 takes about 70 tells to make up for this.
MAX_LOG_GAP = 7.0


class Exp3:
    """`eta` > 0 is how much one loss counts. Arms are 0 to `num_arms` - 1."""

    def __init__(self, num_arms: int, *, eta: float, seed: int) -> None:
        self._eta = eta
        self._chance = random.Random(seed)
        # Logarithms of the weights, whose sum stays what it was.
        self._log_weights = [0.0] * num_arms

    def probabilities(self, arms: Sequence[int]) -> list[float]:
        """Of each of these, if it is one of them."""
        best = max(self._log_weights[arm] for arm in arms)
        weights = [math.exp(self._log_weights[arm] - best) for arm in arms]
        scale = (1.0 - EXPLORATION) / sum(weights)
        uniform = EXPLORATION / len(arms)
        return [weight * scale + uniform for weight in weights]

    def choose(self, arms: Sequence[int]) -> tuple[int, float]:
        """One of these, and the probability that it had, which `learn` needs."""
        probabilities = self.probabilities(arms)
        (position,) = self._chance.choices(range(len(arms)), probabilities)
        return arms[position], probabilities[position]

    def learn(self, arm: int, loss: float, probability: float, arms: Sequence[int]) -> None:
        """It was chosen of these with this probability, and gave a loss in [0, 1]."""
        weights = self._log_weights
        before = self._log_sum(arms)
        weights[arm] -= self._eta * loss / probability
        least = max(weights[each] for each in arms) - MAX_LOG_GAP
        for each in arms:
            weights[each] = max(weights[each], least)
        shift = before - self._log_sum(arms)
        for each in arms:
            weights[each] += shift

    def _log_sum(self, arms: Sequence[int]) -> float:
        best = max(self._log_weights[arm] for arm in arms)
        return best + math.log(sum(math.exp(self._log_weights[arm] - best) for arm in arms))
