import pytest

from gateway.errors import RequestError
from gateway.tenants.api_keys import new_key
from gateway.tenants.keyring import Keyring
from gateway.tenants.tenants_file import TenantSpec, weights_of
from tests.gateway.http_doubles import Clock

ONE, TWO, THREE = new_key(), new_key(), new_key()


def with_key(text: str) -> dict[bytes, bytes]:
    return {b"authorization": f"Bearer {text}".encode()}


def test_each_key_is_of_its_tenant_and_no_other_is_of_any() -> None:
    keyring = Keyring(
        {"a": TenantSpec(keys=(ONE.line, TWO.line)), "b": TenantSpec(keys=(THREE.line,))},
        clock=Clock(),
    )
    assert keyring.num_keys == 3
    assert [keyring.tenant_of(with_key(key.text)).name for key in (ONE, TWO, THREE)] == [
        "a", "a", "b",
    ]  # fmt: skip
    for text in (new_key().text, ONE.text[:18] + TWO.text[18:]):
        with pytest.raises(RequestError) as error:
            keyring.tenant_of(with_key(text))
        assert error.value.reason == "unauthenticated"
        # nobody learns which half was wrong
        assert error.value.detail == "this API key is not valid here"
        assert error.value.challenge == 'Bearer realm="remontoir", error="invalid_token"'
        assert keyring.find(with_key(text)) is None
    assert keyring.refused == {"unknown": 2}


def test_what_is_missing_is_asked_for_and_counted_by_kind() -> None:
    keyring = Keyring({"a": TenantSpec(keys=(ONE.line,))}, clock=Clock())
    with pytest.raises(RequestError) as error:
        keyring.tenant_of({})
    assert error.value.challenge == 'Bearer realm="remontoir"'
    for headers in ({b"x-api-key": b"?"}, {**with_key(ONE.text), b"x-api-key": b"other"}):
        with pytest.raises(RequestError):
            keyring.tenant_of(headers)
        assert keyring.find(headers) is None
    assert keyring.find(with_key(ONE.text)) is keyring.tenants["a"]
    assert keyring.refused == {"missing": 1, "malformed": 1, "conflicting": 1}


def test_a_new_file_replaces_keys_and_keeps_what_tenants_have_used() -> None:
    clock = Clock()
    keyring = Keyring(
        {"a": TenantSpec(keys=(ONE.line,)), "b": TenantSpec(keys=(TWO.line,))}, clock=clock
    )
    a, b = keyring.tenants.values()
    a.enter(clock())
    b.enter(clock())
    keyring.replace({"a": TenantSpec(keys=(THREE.line,)), "c": TenantSpec(keys=(TWO.line,))})
    assert keyring.find(with_key(ONE.text)) is None  # revoked
    assert keyring.tenant_of(with_key(THREE.text)) is a
    assert a.num_open == 1
    assert keyring.tenant_of(with_key(TWO.text)).name == "c"
    assert list(keyring.tenants) == ["a", "c"]
    b.leave(0, was_refused=False)  # what it had open is still answered


def test_weights_are_the_schedulers_where_somebody_has_one() -> None:
    assert weights_of({"a": TenantSpec(), "b": TenantSpec()}) == {}
    assert weights_of({"a": TenantSpec(weight=0)}) == {}
    assert weights_of({"a": TenantSpec(weight=3), "b": TenantSpec()}) == {"a": 3.0, "b": 1.0}
