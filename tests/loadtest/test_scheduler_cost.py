from loadtest.scheduler_cost import BUSY, Size, simulate


def test_every_request_of_the_simulation_is_answered_and_every_event_timed():
    run = simulate(Size(20, 2), virtual_s=0.05, seed=1)
    assert 100 < run.num_requests < 300
    assert run.num_events > run.num_requests
    assert 0 < run.p50_us <= run.p90_us <= run.p99_us <= run.max_us


def test_the_cost_of_a_request_is_that_of_all_its_events():
    run = simulate(Size(20, 2), virtual_s=0.05, seed=1)
    assert abs(run.request_us * run.num_requests - run.mean_us * run.num_events) < 1


def test_two_devices_carry_the_rate_without_refusals():
    assert set(simulate(Size(20, 2), virtual_s=0.05, seed=1).outcomes) == {"Served"}


def test_busy_devices_run_batches_and_refuse_nobody():
    run = simulate(BUSY[0], virtual_s=0.05, seed=1)
    assert run.mean_batch > 1.2
    assert set(run.outcomes) == {"Served"}


def test_what_a_warm_up_costs_is_left_out():
    all_of_it = simulate(Size(20, 2), virtual_s=0.05, seed=1)
    warm = simulate(Size(20, 2), virtual_s=0.05, seed=1, warmup_s=0.025)
    assert 0.3 < warm.num_events / all_of_it.num_events < 0.7
    assert warm.outcomes == all_of_it.outcomes
    assert abs(warm.request_us / warm.mean_us - all_of_it.request_us / all_of_it.mean_us) < 0.3
