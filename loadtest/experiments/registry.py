"""All experiments, in the order of the page."""

from loadtest.experiments import (
    ahead,
    azure,
    compared,
    how_low,
    isolation,
    mixes,
    scale,
    thousands,
)
from loadtest.experiments.jobs import Experiment

EXPERIMENTS: tuple[Experiment, ...] = (
    compared.EXPERIMENT,
    thousands.EXPERIMENT,
    how_low.EXPERIMENT,
    isolation.EXPERIMENT,
    azure.EXPERIMENT,
    scale.EXPERIMENT,
    ahead.EXPERIMENT,
    mixes.EXPERIMENT,
)


def find(number: str) -> Experiment:
    """Raises LookupError for a number that no experiment has."""
    for experiment in EXPERIMENTS:
        if experiment.number == number:
            return experiment
    raise LookupError(f"no experiment {number!r}")
