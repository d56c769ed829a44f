"""Which model a request asks and which SLO it has.

Owns the globs over model names, Zipf's law over models, and the mix of SLOs. It knows no time.
"""

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from itertools import accumulate

from loadtest.workloads.entries import Entry
from scheduler.spec import MILLISECOND_NS


def matching_models(entry: Entry, models: Sequence[str] | None) -> list[str]:
    """The models that an entry names, in the order of `models`.

    Without `models` the entry's text is taken for a name. Raises ValueError if nothing matches.
    """
    if models is None or entry.models in models:
        return [entry.models]
    matching = [model for model in models if fnmatchcase(model, entry.models)]
    if not matching:
        some = ", ".join(models[:3]) + (", ..." if len(models) > 3 else "")
        entry.refuse("models", f"{entry.models!r} matches none of {len(models)}: {some}")
    return matching


def zipf_shares(num_models: int, skew: float) -> list[float]:
    """Share of the i-th model, like (i + 1) ** -skew; they add up to 1."""
    weights = [(index + 1) ** -skew for index in range(num_models)]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def model_chooser(
    models: Sequence[str], skew: float, chance: random.Random
) -> Callable[[], str] | None:
    """A draw of one of several models; None where there is nothing to draw."""
    if len(models) == 1:
        return None
    uniform = chance.random
    if skew == 0:
        num_models = len(models)
        return lambda: models[int(uniform() * num_models)]
    bounds = list(accumulate(zipf_shares(len(models), skew)))[:-1]
    return lambda: models[bisect_right(bounds, uniform())]


def slo_chooser(entry: Entry, chance: random.Random) -> Callable[[], int] | int:
    """The SLO of every request in nanoseconds, or a draw from the mix."""
    if isinstance(entry.slo_ms, float | int):
        return _ns(entry.slo_ms)
    slos_ns = [_ns(share.slo_ms) for share in entry.slo_ms]
    if len(slos_ns) == 1:
        return slos_ns[0]
    total = math.fsum(share.weight for share in entry.slo_ms)
    bounds = list(accumulate(share.weight / total for share in entry.slo_ms))[:-1]
    uniform = chance.random
    return lambda: slos_ns[bisect_right(bounds, uniform())]


def _ns(slo_ms: float) -> int:
    return round(slo_ms * MILLISECOND_NS)
