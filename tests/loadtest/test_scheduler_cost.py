from loadtest.scheduler_cost import simulate


def test_every_request_of_the_simulation_is_answered_and_every_event_timed():
    run = simulate(20, 2, virtual_s=0.05, seed=1)
    num_requests = sum(run.outcomes.values())
    assert 100 < num_requests < 300
    assert run.num_events > num_requests
    assert 0 < run.p50_us <= run.p90_us <= run.p99_us <= run.max_us


def test_two_devices_carry_the_rate_without_refusals():
    assert set(simulate(20, 2, virtual_s=0.05, seed=1).outcomes) == {"Served"}
