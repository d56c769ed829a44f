"""A collector beside a real simulation: every outcome once, and no lane used twice at a time."""

import random
from collections.abc import Iterator

import numpy as np

from loadtest.results import Collector, Tables, summarise
from scheduler.events import Event, RequestArrived, Served
from scheduler.scheduler import Scheduler
from scheduler.simulation import SimulatedWorker, Simulation
from tests.loadtest.results_story import ms
from tests.scheduler.story import device_spec, model_spec

NUM_REQUESTS = 1500
SLO_MS = 40


def run() -> tuple[Tables, Simulation]:
    """Two devices with room for two of three models, at about their capacity; one is lost."""
    specs = [model_spec(name, exec_ms={1: 2, 2: 3, 4: 5, 8: 9}) for name in "abc"]
    scheduler = Scheduler(models=specs)
    collector = Collector(scheduler)
    workers = [
        SimulatedWorker(f"w{i}", device_spec(pages=8), specs, noise=0.02, seed=i) for i in (0, 1)
    ]
    simulation = Simulation(scheduler, workers, observer=collector)
    chance = random.Random(7)

    def arrivals() -> Iterator[tuple[int, Event]]:
        now = ms(1)
        for request_id in range(1, NUM_REQUESTS + 1):
            now += int(chance.expovariate(1500) * 1e9)
            model = chance.choice("aabc")
            collector.arrived(request_id, (now, model, ms(SLO_MS), "abc".index(model), "t"))
            yield now, RequestArrived(request_id, model, now, now + ms(SLO_MS))

    source = arrivals()
    simulation.crash("w1", at_ns=ms(700), detect_ns=ms(5))
    for at_ms in range(50, 2000, 50):
        simulation.run(source, until_ns=ms(at_ms))
        collector.sample(ms(at_ms), scheduler)
    simulation.run(source)
    return collector.tables(), simulation


def test_the_tables_agree_with_the_simulation_and_with_themselves() -> None:
    tables, simulation = run()
    requests, actions, devices = tables.requests, tables.actions, tables.devices

    outcomes = simulation.outcomes
    assert requests["request_id"].tolist() == list(range(1, NUM_REQUESTS + 1))
    assert requests.texts("outcome").tolist() == [
        type(outcomes[i][1]).__name__.lower() for i in range(1, NUM_REQUESTS + 1)
    ]
    assert requests["answered_ns"].tolist() == [outcomes[i][0] for i in range(1, NUM_REQUESTS + 1)]
    served = {i: outcome for i, (_, outcome) in outcomes.items() if isinstance(outcome, Served)}
    good = requests.rows(requests["is_good"])
    assert len(served) >= len(good) > 500
    assert good.texts("worker").tolist() == [
        served[i].worker_id for i in good["request_id"].tolist()
    ]

    assert int(np.sum(actions["num_good"])) == len(good)
    assert set(actions.texts("code")) >= {"OK", "LOST"}
    assert "OPEN" not in set(actions.texts("code"))
    for worker in ("w0", "w1"):
        ran = actions.rows(
            actions.has("worker", worker) & actions.has("kind", "infer") & actions.has("code", "OK")
        )
        order = np.argsort(ran["begin_ns"])
        assert np.all(ran["begin_ns"][order][1:] >= ran["end_ns"][order][:-1])
        assert np.all(ran["heard_ns"] > ran["end_ns"])
        assert np.all(ran["begin_ns"] > ran["sent_ns"])

    pages = devices["pages_free"] + devices["pages_loading"] + devices["pages_resident"]
    assert set(pages.tolist()) == {8}
    assert devices["at_ns"][devices.has("worker", "w1")].max() == ms(700)
    assert 0.5 < devices["exec_busy_share"][:20].mean() <= 1

    found = summarise(tables, (0, ms(2000)))
    assert found.run.requests == NUM_REQUESTS == sum(g.requests for g in found.streams.values())
    assert found.run.good == sum(group.good for group in found.models.values()) == len(good)
    assert found.run.prediction_error_p1_us < 0 < found.run.prediction_error_p99_us


def test_the_same_seed_gives_the_same_tables() -> None:
    once, again = run()[0], run()[0]
    for name, table in once.named().items():
        for column, values in table.columns.items():
            assert values.tolist() == again.named()[name].columns[column].tolist(), (name, column)
