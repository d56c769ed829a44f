import pytest

from gateway.errors import RequestError
from gateway.tenants.tenant import Tenant
from gateway.tenants.tenants_file import TenantSpec
from tests.gateway.http_doubles import START_NS, ms


def tenant(**settings: object) -> Tenant:
    return Tenant("shop", TenantSpec(**settings), START_NS)  # type: ignore[arg-type]


def refusal(error: "pytest.ExceptionInfo[RequestError]") -> tuple[str, int | None]:
    return error.value.reason, error.value.retry_after_ns


def test_without_limits_everything_goes() -> None:
    free = tenant()
    for _ in range(1000):
        free.enter(START_NS)
    assert free.hold(ms(10_000), START_NS) == 0
    free.check_model("anything at all")
    free.check_slo(1)
    assert free.default_slo(ms(7)) == ms(7)


def test_a_rate_lets_its_burst_in_and_then_says_exactly_when() -> None:
    limited = tenant(requests_per_s=4, requests_burst=2)
    limited.enter(START_NS)
    limited.enter(START_NS)
    with pytest.raises(RequestError) as error:
        limited.enter(START_NS + ms(50))
    assert refusal(error) == ("quota_exceeded", ms(200))
    assert error.value.detail == "tenant shop may send 4 requests/s; the next in 200.000 ms"
    with pytest.raises(RequestError):
        limited.enter(START_NS + ms(250) - 1)
    limited.enter(START_NS + ms(250))
    assert limited.num_open == 3  # those refused took no place


def test_the_burst_is_a_second_by_default_and_at_least_one_request() -> None:
    for rate, burst in ((5, 5), (0.25, 1)):
        limited = tenant(requests_per_s=rate)
        for _ in range(burst):
            limited.enter(START_NS)
        with pytest.raises(RequestError) as error:
            limited.enter(START_NS)
        assert refusal(error) == ("quota_exceeded", ms(1000 / rate))


def test_a_refused_request_gives_its_place_in_the_rate_back_and_a_served_one_does_not() -> None:
    limited = tenant(requests_per_s=1)
    limited.enter(START_NS)
    limited.leave(0, was_refused=True)
    limited.enter(START_NS)
    limited.leave(0, was_refused=False)
    with pytest.raises(RequestError):
        limited.enter(START_NS)


def test_concurrency_is_what_has_no_answer_yet() -> None:
    limited = tenant(max_concurrent=2)
    limited.enter(START_NS)
    limited.enter(START_NS)
    with pytest.raises(RequestError) as error:
        limited.enter(START_NS)
    assert refusal(error) == ("quota_exceeded", None)  # nobody knows when
    assert error.value.detail == "tenant shop has 2 requests open, the most it may have"
    limited.leave(0, was_refused=False)
    limited.enter(START_NS)


def test_device_time_is_held_as_predicted_and_charged_as_measured() -> None:
    limited = tenant(gpu_ms_per_s=100, gpu_ms_burst=50)
    assert limited.hold(ms(30), START_NS) == ms(30)
    with pytest.raises(RequestError) as error:
        limited.hold(ms(30), START_NS)
    assert refusal(error) == ("quota_exceeded", ms(100))  # 10 ms are missing, at a tenth
    assert "100 ms of device time per second, this request takes about 30.000 ms" in str(
        error.value
    )
    # it took 12 ms only: 38 are left
    limited.enter(START_NS)
    limited.charge(ms(12))
    limited.leave(ms(30), was_refused=False)
    assert limited.device_ns == ms(12)
    assert limited.hold(ms(38), START_NS) == ms(38)
    with pytest.raises(RequestError) as error:
        limited.hold(ms(1), START_NS)
    assert refusal(error) == ("quota_exceeded", ms(10))


def test_what_took_longer_than_predicted_is_a_debt() -> None:
    limited = tenant(gpu_ms_per_s=1000, gpu_ms_burst=10)
    held = limited.hold(ms(10), START_NS)
    limited.enter(START_NS)
    limited.charge(ms(40))
    limited.leave(held, was_refused=False)
    with pytest.raises(RequestError) as error:
        limited.hold(ms(5), START_NS)
    assert refusal(error) == ("quota_exceeded", ms(35))


def test_models_are_names_and_globs_and_case_counts() -> None:
    some = tenant(models=("resnet*", "magika", "v[12]"))
    for name in ("resnet50", "resnet", "magika", "v1"):
        assert some.may_use(name)
        some.check_model(name)
    for name in ("Magika", "magika2", "my-resnet", "v3", "", "magika\n"):
        assert not some.may_use(name)
    with pytest.raises(RequestError) as error:
        some.check_model("secret")
    assert refusal(error) == ("forbidden", None)
    assert error.value.detail == "tenant shop may not use the model 'secret'"
    assert not tenant(models=()).may_use("x")


def test_a_default_is_never_under_the_minimum_and_an_slo_may_not_be() -> None:
    strict = tenant(min_slo_ms=10)
    assert strict.default_slo(ms(3)) == ms(10)
    assert strict.default_slo(ms(30)) == ms(30)
    assert tenant(default_slo_ms=20, min_slo_ms=10).default_slo(ms(30)) == ms(20)
    strict.check_slo(ms(10))
    with pytest.raises(RequestError) as error:
        strict.check_slo(ms(9.5))
    assert error.value.reason == "slo_below_tenant_minimum"
    assert (error.value.slo_ns, error.value.min_slo_ns) == (ms(9.5), ms(10))
    assert error.value.detail == "the SLO is 9.5 ms, tenant shop may ask for 10 ms and more"


def test_new_settings_keep_what_was_used() -> None:
    limited = tenant(requests_per_s=2, gpu_ms_per_s=10)
    limited.enter(START_NS)
    limited.enter(START_NS)
    limited.configure(TenantSpec(requests_per_s=1, models=("a",)), START_NS)
    with pytest.raises(RequestError) as error:
        limited.enter(START_NS)
    assert refusal(error) == ("quota_exceeded", ms(1000))
    assert (limited.num_open, limited.has_device_quota, limited.may_use("b")) == (2, False, False)
    limited.leave(ms(5), was_refused=True)  # held before there was no quota any more
    limited.configure(TenantSpec(), START_NS)
    limited.enter(START_NS)
