"""How right a quote is: what was predicted against what then happened, in virtual time.

A quote promises what admission promises and knows what it knows: nothing of who comes later, and of
other models' work only what is executed already. So it is close where a model has a device for
itself, and hopeful where models compete.
"""

import pytest

from scheduler.events import Quote, RequestArrived, Served
from scheduler.spec import MILLISECOND_NS
from tests.scenarios.test_stories import CAPACITY, worker
from tests.scenarios.world import World, merged, poisson
from tests.scheduler.story import model_spec

Quoted = list[tuple[Quote, RequestArrived]]


def quoted_day(load: float, *, share_of_others: float) -> tuple[World, Quoted]:
    """A noisy device for half a minute; each request of "n" is quoted just before it arrives."""
    specs = [model_spec("m"), model_spec("n")]
    world = World(specs, [worker("w", specs, noise=0.05)])
    rate = load * CAPACITY
    others = poisson(rate * share_of_others, 30) if share_of_others else iter(())
    own_rate = rate * (1 - share_of_others)
    asked = list(poisson(own_rate, 30, models=["n"], first_id=1_000_000, seed=2))
    told: Quoted = []

    def quote(arrived: RequestArrived) -> None:
        told.append((world.scheduler.quote(arrived, world.simulation.now), arrived))

    for arrived in asked:
        world.simulation.call_at(arrived.arrival_ns, lambda arrived=arrived: quote(arrived))  # type: ignore[misc]
    world.run(merged(others, asked))
    assert len(told) == len(asked)
    return world, told


def errors_ms(world: World, told: Quoted) -> list[float]:
    """Measured minus predicted end of the execution, of those that were served; sorted."""
    errors = []
    for quote, arrived in told:
        served = world.outcome(arrived.request_id)
        if isinstance(served, Served) and quote.finish_ns is not None:
            took_ns = served.queue_ns + served.load_ns + served.input_ns
            took_ns += served.exec_ns + served.output_ns
            errors.append((arrived.arrival_ns + took_ns - quote.finish_ns) / MILLISECOND_NS)
    return sorted(errors)


def share_kept(world: World, told: Quoted) -> float:
    """Of those that were quoted a yes, the share that was served."""
    outcomes = [world.outcome(arrived.request_id) for quote, arrived in told if quote.num_met]
    return sum(isinstance(outcome, Served) for outcome in outcomes) / len(outcomes)


def test_alone_at_low_load_the_finish_is_right_to_a_millisecond() -> None:
    """Executions of 10 ms that vary by 5 %. Who comes later may share the batch, and enlarge it."""
    world, told = quoted_day(0.3, share_of_others=0)
    errors = errors_ms(world, told)
    assert abs(errors[len(errors) // 2]) < 0.2
    assert sum(abs(error) < 1 for error in errors) / len(errors) > 0.75
    assert errors[len(errors) * 95 // 100] < 8
    assert share_kept(world, told) == 1


@pytest.mark.parametrize("load", [0.9, 1.5])
def test_a_yes_comes_true_and_a_no_is_the_no_that_was_got(load: float) -> None:
    world, told = quoted_day(load, share_of_others=0)
    assert share_kept(world, told) > 0.98
    refused = [(quote, arrived) for quote, arrived in told if not quote.num_met]
    assert refused
    for quote, arrived in refused:
        assert world.outcome(arrived.request_id) == quote.refusal


@pytest.mark.parametrize(("load", "kept", "median_ms"), [(0.6, 0.99, 4), (0.9, 0.9, 30)])
def test_where_models_compete_a_quote_is_hopeful(
    load: float, kept: float, median_ms: float
) -> None:
    """Three quarters of the work are another model's, which admission does not count."""
    world, told = quoted_day(load, share_of_others=0.75)
    errors = errors_ms(world, told)
    assert 0 < errors[len(errors) // 2] < median_ms
    assert share_kept(world, told) > kept
