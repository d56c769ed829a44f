"""API keys: how one is made, what is kept of it, and how one is found in a request's headers.

It owns the text of keys. It must never keep, log or show a key: only `new_key` ever returns one,
and what the tenants file holds, and this process, is the hash.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from typing import NamedTuple

AUTHORIZATION = b"authorization"
API_KEY = b"x-api-key"

# rmt_<id>_<secret>. The prefix is for scanners of leaked secrets.
_PREFIX = "rmt"
_ID_BYTES = 6  # told apart among all keys of an installation; no secret
_SECRET_BYTES = 32
_KEY_BYTES = 61
_ID = slice(4, 17)
_LINE = re.compile(r"(k[0-9a-f]{12}):([0-9a-f]{64})")
_BEARER = b"bearer "


class NewKey(NamedTuple):
    """`text` is the key, shown once; `line` is what the tenants file keeps of it."""

    text: str
    line: str


class StoredKey(NamedTuple):
    key_id: bytes
    digest: bytes


class Presented(NamedTuple):
    """A key as a client sent it: it has a key's beginning and length."""

    key_id: bytes
    text: bytes


class CredentialError(Exception):
    """No key can be read from the headers. `kind` is a label; the message never has the key."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def new_key() -> NewKey:
    """A key of 256 random bits, from the system's generator."""
    key_id = f"k{secrets.token_hex(_ID_BYTES)}"
    text = f"{_PREFIX}_{key_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    return NewKey(text, f"{key_id}:{digest_of(text.encode()).hex()}")


def digest_of(text: bytes) -> bytes:
    """What is stored of a key.

    One round of SHA-256, without salt: slow and salted hashes protect secrets that people chose and
    that can be guessed. Of 256 random bits nobody guesses one, whatever a guess costs, and a slow
    hash would be a way to keep this thread busy with false keys.
    """
    return hashlib.sha256(text).digest()


def parse_line(line: str) -> StoredKey | None:
    """A key's line of the tenants file. None where it is none."""
    match = _LINE.fullmatch(line)
    return StoredKey(match[1].encode(), bytes.fromhex(match[2])) if match else None


def matches(presented: Presented, digest: bytes) -> bool:
    """In a time that does not depend on how much of it is right."""
    return hmac.compare_digest(digest_of(presented.text), digest)


def presented_key(headers: Mapping[bytes, bytes]) -> Presented:
    """`Authorization: Bearer KEY` or `x-api-key: KEY`; both are fine where they are the same.

    Another scheme of Authorization, of a proxy perhaps, is passed over where there is an x-api-key.
    Raises CredentialError.
    """
    text = headers.get(API_KEY)
    authorization = headers.get(AUTHORIZATION)
    if authorization is not None:
        if authorization[:7].lower() == _BEARER:
            token = authorization[7:].strip()
            if text is not None and text != token:
                raise CredentialError(
                    "conflicting", "Authorization and x-api-key hold different keys: send one"
                )
            text = token
        elif text is None:
            raise CredentialError(
                "malformed", "the Authorization header is not `Bearer KEY`, and x-api-key is absent"
            )
    if text is None:
        raise CredentialError(
            "missing", "an API key is needed: `Authorization: Bearer KEY` or `x-api-key: KEY`"
        )
    if len(text) != _KEY_BYTES or not text.startswith(b"rmt_"):
        raise CredentialError(
            "malformed", f"what was sent is no API key of Remontoir: those begin with {_PREFIX}_"
        )
    return Presented(text[_ID], text)
