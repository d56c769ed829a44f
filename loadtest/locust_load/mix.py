"""What is asked for: models by weight, and the SLO of each request.

Owns how --models and --slo-ms are written. It knows no HTTP.
"""

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

DEFAULT_SLO_MS = "100"  # a person does not notice a tenth of a second


class MixError(ValueError):
    """A mix that cannot be read; the text has the wrong part and the form it should have."""


class Slo(NamedTuple):
    slo_ms: float
    weight: float


class Mix(NamedTuple):
    """Weights are relative. An empty `models` means all that the server has, equally."""

    models: Mapping[str, float]
    slos: Mapping[str, Sequence[Slo]]  # "" has those of models without their own

    def slos_of(self, model: str) -> Sequence[Slo]:
        return self.slos.get(model) or self.slos[""]


def read_mix(models: str, slo_ms: str) -> Mix:
    """Raises MixError."""
    return Mix(read_models(models), read_slos(slo_ms))


def read_models(text: str) -> dict[str, float]:
    """`magika:3,ppocr_cls:1`; a weight that is left out is 1. Raises MixError."""
    models: dict[str, float] = {}
    for part in _parts(text):
        name, has_weight, weight = part.rpartition(":")
        name = name if has_weight else part
        if not name or name in models:
            raise MixError(f"--models: {part!r} names no model, or one a second time")
        models[name] = _positive(weight, "--models", part, "NAME:WEIGHT") if has_weight else 1.0
    return models


def read_slos(text: str) -> dict[str, list[Slo]]:
    """`50`, `25:1,250:4`, or with models `magika=20,50:3,100:1`. Raises MixError."""
    slos: dict[str, list[Slo]] = {"": []}
    form = "[MODEL=]MILLISECONDS[:WEIGHT]"
    for part in _parts(text):
        model, has_model, rest = part.rpartition("=")
        slo_ms, has_weight, weight = (rest if has_model else part).partition(":")
        slos.setdefault(model, []).append(
            Slo(
                _positive(slo_ms, "--slo-ms", part, form),
                _positive(weight, "--slo-ms", part, form) if has_weight else 1.0,
            )
        )
    if not slos[""]:
        slos[""] = read_slos(DEFAULT_SLO_MS)[""]
    return slos


def choose(chance: random.Random, weights: Mapping[str, float]) -> str:
    return chance.choices(list(weights), list(weights.values()))[0]


def choose_slo_ms(chance: random.Random, slos: Sequence[Slo]) -> float:
    return chance.choices(slos, [slo.weight for slo in slos])[0].slo_ms


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _positive(text: str, option: str, part: str, form: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.0 < number < float("inf"):
        raise MixError(f"{option}: {part!r} is not of the form {form} with positive numbers")
    return number
