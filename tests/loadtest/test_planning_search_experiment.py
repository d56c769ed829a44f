"""The comparison of searches: a small table is played, a page is made of it."""

from loadtest.planning.region_search import RUNGS, STRATEGIES
from loadtest.planning.search_experiment import (
    HOST,
    SEARCHES,
    WORKS,
    page,
    searched,
    table_of,
)
from loadtest.planning.tuning import space_of


def test_every_strategy_walks_through_the_table_that_was_played() -> None:
    space = space_of(HOST, workers=(1, 4), threads=(1, 2), batches=(1, 16), policies=("remontoir",))
    scores = table_of(WORKS[0], space.configs, num_requests=90)
    assert len(scores) == len(space.configs) * len(RUNGS)
    found = searched(WORKS[0].name, space, scores, num_searches=3)
    assert found.best[0] == 4  # more workers are better: they are what the load needs
    assert found.best_score > found.median_score
    assert set(found.costs) == set(STRATEGIES)
    assert all(cost <= len(space.configs) for cost in found.costs["random"])
    text = page([found], "the command")
    assert f"| {WORKS[0].name} | 4, " in text
    assert f"{SEARCHES} searches" in text
