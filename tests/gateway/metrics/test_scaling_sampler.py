"""The sampler of advice for an autoscaler, on a hand-driven clock."""

from gateway.metrics.metrics import Metrics
from gateway.metrics.page import page_parts
from gateway.metrics.scaling_sampler import ScalingSampler
from scheduler.scaling import Scaling
from scheduler.spec import SECOND_NS
from tests.gateway.http_doubles import Clock, PuppetScheduler, Timers, model_spec, ms, served


def test_a_sampler_looks_once_a_second_at_sums_that_are_there_anyway() -> None:
    clock, timers = Clock(), Timers()
    metrics = Metrics(version="0", page_bytes=1)
    scheduler = PuppetScheduler({"mlp": model_spec()})
    scaling = Scaling(horizon_ns=60 * SECOND_NS, target_utilisation=0.7)
    sampler = ScalingSampler(scaling, scheduler, metrics.totals, clock=clock, call_later=timers)
    metrics.watch_scaling(scaling)
    assert "remontoir_recommended_devices " not in "".join(page_parts(metrics))
    tallies = metrics.of_model("mlp")
    sampler.start()
    for _ in range(12):
        tallies.observe_served(served(), latency_ns=ms(4), slo_ns=ms(50))
        tallies.observe_hit(latency_ns=ms(4), slo_ns=ms(50))
        tallies.observe_refused("rejected", "slo_infeasible_now", latency_ns=ms(1))
        tallies.observe_refused("expired", "deadline_exceeded_queued", latency_ns=ms(50))
        tallies.observe_refused("rejected", "would_queue", latency_ns=ms(1))  # asked for
        tallies.observe_refused("invalid", "bad_request", latency_ns=ms(1))
        timer = timers.armed.pop()
        assert timer.delay_s == 1
        clock.advance(SECOND_NS)
        timer.fire()
    page = "".join(page_parts(metrics))
    assert "remontoir_offered_load_devices 1.5\n" in page
    assert "remontoir_load_forecast_devices 1.5\n" in page
    # no forecast has come due yet
    assert "remontoir_load_forecast_absolute_error_devices" not in page
    assert "remontoir_load_forecast_bias_devices" not in page
    assert "remontoir_utilisation_ratio 0.75\n" in page
    assert "remontoir_predicted_utilisation_ratio 0.75\n" in page
    assert "remontoir_refused_slo_ratio 0.25\n" in page
    assert "remontoir_recommended_devices 3\n" in page
    sampler.close()
    sampler.close()
    assert timers.armed == []
