import pytest

from gateway.errors import RequestError
from gateway.inference.body import InferBody, RequestParameters
from gateway.inference.slo import find_slo_ns
from tests.gateway.http_doubles import ms

DEFAULT_NS = ms(1000)


def found(
    headers: dict[bytes, bytes] | None = None,
    *,
    slo_ms: object = None,
    parameters: RequestParameters | None = None,
) -> int:
    body = InferBody(inputs=[], slo_ms=slo_ms, parameters=parameters)
    return find_slo_ns(body, headers or {}, default_ns=DEFAULT_NS)


def test_sources_count_in_their_order() -> None:
    header = {b"x-slo-ms": b"40"}
    assert found(header, slo_ms=10, parameters=RequestParameters(slo_ms=20)) == ms(10)
    assert found(header, parameters=RequestParameters(slo_ms=20, timeout=30_000)) == ms(20)
    assert found(header, parameters=RequestParameters(timeout=30_000)) == ms(30)
    assert found(header, parameters=RequestParameters(timeout=0)) == ms(40)
    assert found(header, parameters=RequestParameters()) == ms(40)
    assert found() == DEFAULT_NS


@pytest.mark.parametrize("value", [1e-9, 0.5, 1, 86_400_000, 86_400_000.0])
def test_bounds_belong_to_the_range(value: float) -> None:
    assert found(slo_ms=value) == max(1, int(value * 1_000_000))


@pytest.mark.parametrize(
    "value",
    [
        0,
        0.0,
        -0.0,
        -1,
        -1e-9,
        86_400_000.001,
        1e18,
        float("inf"),
        float("nan"),
        True,
        "50",
        [50],
        {},
    ],
)
def test_what_is_no_positive_finite_duration_is_refused_with_its_value(value: object) -> None:
    with pytest.raises(RequestError) as raised:
        found(slo_ms=value)
    assert raised.value.reason == "bad_request"
    assert f"slo_ms is {value!r}: expected a number of milliseconds" in raised.value.detail
    with pytest.raises(RequestError, match=r"parameters\.slo_ms is"):
        found(parameters=RequestParameters(slo_ms=value))


@pytest.mark.parametrize("value", [-1, 86_400_000_001, 10**18, 50.0, True, "50"])
def test_a_timeout_is_an_integer_of_microseconds(value: object) -> None:
    with pytest.raises(RequestError, match=r"parameters\.timeout is .*: expected an integer"):
        found(parameters=RequestParameters(timeout=value))


@pytest.mark.parametrize(
    "value", [b"nan", b"-1", b"0", b"inf", b"1e18", b"1_0", b"", b"50ms", b"\xff"]
)
def test_a_header_is_checked_like_a_body(value: bytes) -> None:
    with pytest.raises(RequestError, match="header x-slo-ms is"):
        found({b"x-slo-ms": value})


def test_a_long_value_is_cut_in_the_answer() -> None:
    with pytest.raises(RequestError) as raised:
        found(slo_ms="9" * 5000)
    assert "(5002 characters)" in raised.value.detail
    assert len(raised.value.detail) < 200


@pytest.mark.parametrize(
    ("headers", "expected_ns"),
    [
        ({b"x-envoy-expected-rq-timeout-ms": b"30"}, ms(30)),
        ({b"x-envoy-expected-rq-timeout-ms": b"70"}, ms(50)),
        ({b"x-envoy-expected-rq-timeout-ms": b"0"}, ms(50)),
        ({b"grpc-timeout": b"1H"}, ms(50)),
        ({b"grpc-timeout": b"1M"}, ms(50)),
        ({b"grpc-timeout": b"1S"}, ms(50)),
        ({b"grpc-timeout": b"20m"}, ms(20)),
        ({b"grpc-timeout": b"20000u"}, ms(20)),
        ({b"grpc-timeout": b"99999999n"}, ms(50)),
        ({b"grpc-timeout": b"9999999n"}, 9_999_999),
        ({b"grpc-timeout": b"20m", b"x-envoy-expected-rq-timeout-ms": b"10"}, ms(10)),
    ],
)
def test_a_proxys_timeout_caps(headers: dict[bytes, bytes], expected_ns: int) -> None:
    assert found(headers, slo_ms=50) == expected_ns


@pytest.mark.parametrize(
    "headers",
    [
        {b"x-envoy-expected-rq-timeout-ms": b"-5"},
        {b"x-envoy-expected-rq-timeout-ms": b"nan"},
        {b"grpc-timeout": b"0m"},
        {b"grpc-timeout": b"-1m"},
        {b"grpc-timeout": b"123456789m"},
        {b"grpc-timeout": b"20"},
        {b"grpc-timeout": b"20x"},
    ],
)
def test_a_cap_that_is_no_duration_is_refused(headers: dict[bytes, bytes]) -> None:
    with pytest.raises(RequestError, match=f"header {next(iter(headers)).decode()} is"):
        found(headers, slo_ms=50)


def test_a_malformed_slo_is_refused_also_where_another_would_have_won() -> None:
    for headers, slo_ms, parameters, source in (
        ({b"x-slo-ms": b"soon"}, 50, None, "header x-slo-ms is 'soon'"),
        ({}, 50, RequestParameters(slo_ms=-1), "parameters.slo_ms is -1"),
        ({}, 50, RequestParameters(timeout=0.5), "parameters.timeout is 0.5"),
        ({}, None, RequestParameters(slo_ms=50, timeout="x"), "parameters.timeout is 'x'"),
    ):
        with pytest.raises(RequestError) as raised:
            found(headers, slo_ms=slo_ms, parameters=parameters)
        assert raised.value.detail.startswith(source)
