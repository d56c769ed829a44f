import hashlib

import pytest

from gateway.tenants.api_keys import (
    CredentialError,
    matches,
    new_key,
    parse_line,
    presented_key,
)


def test_a_new_key_is_long_is_new_and_leaves_only_its_hash() -> None:
    one, other = new_key(), new_key()
    assert one.text != other.text
    prefix, key_id, secret = one.text.split("_", 2)
    assert (prefix, len(secret)) == ("rmt", 43)  # 256 bits in base64url
    assert one.line == f"{key_id}:{hashlib.sha256(one.text.encode()).hexdigest()}"
    assert secret not in one.line


def test_a_key_matches_its_own_line_only() -> None:
    one, other = new_key(), new_key()
    stored = parse_line(one.line)
    assert stored is not None
    presented = presented_key({b"x-api-key": one.text.encode()})
    assert presented.key_id == stored.key_id
    assert matches(presented, stored.digest)
    forged = f"{one.text[:18]}{other.text[18:]}".encode()
    assert presented_key({b"x-api-key": forged}).key_id == stored.key_id
    assert not matches(presented_key({b"x-api-key": forged}), stored.digest)


@pytest.mark.parametrize("line", ["", "k1:ff", "k0123456789ab:" + "F" * 64, new_key().text])
def test_what_is_no_line_is_none(line: str) -> None:
    assert parse_line(line) is None


def test_both_headers_hold_a_key_and_the_scheme_is_in_any_case() -> None:
    text = new_key().text.encode()
    for headers in (
        {b"authorization": b"Bearer " + text},
        {b"authorization": b"bearer  " + text},
        {b"x-api-key": text},
        {b"authorization": b"Bearer " + text, b"x-api-key": text},
        {b"authorization": b"Basic dTpw", b"x-api-key": text},  # a proxy's own
    ):
        assert presented_key(headers).text == text


@pytest.mark.parametrize(
    ("headers", "kind", "message"),
    [
        ({}, "missing", "an API key is needed: `Authorization: Bearer KEY` or `x-api-key: KEY`"),
        ({b"authorization": b"Basic dTpw"}, "malformed", "is not `Bearer KEY`"),
        ({b"authorization": b"Bearer"}, "malformed", "is not `Bearer KEY`"),
        ({b"authorization": b"Bearer \xff\xfe"}, "malformed", "those begin with rmt_"),
        ({b"x-api-key": b""}, "malformed", "those begin with rmt_"),
        ({b"x-api-key": new_key().text.encode() + b"x"}, "malformed", "those begin with rmt_"),
        (
            {b"authorization": b"Bearer " + new_key().text.encode(), b"x-api-key": b"other"},
            "conflicting",
            "hold different keys",
        ),
    ],
)
def test_what_cannot_be_read_is_told_without_the_key(
    headers: dict[bytes, bytes], kind: str, message: str
) -> None:
    with pytest.raises(CredentialError) as raised:
        presented_key(headers)
    assert raised.value.kind == kind
    assert message in str(raised.value)
    assert not any(value and value.decode("latin-1") in str(raised.value)
                   for value in headers.values() if value != b"Bearer")  # fmt: skip
