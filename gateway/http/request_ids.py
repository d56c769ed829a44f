"""RequestIds: the textual id of each request, in headers, logs and error bodies.

It owns what a client may choose as an id. It must never be confused with the scheduler's request
ids, which are integers and never leave the process.
"""

import itertools
import os
import re

REQUEST_ID = b"x-request-id"

_SAFE = re.compile(rb"[!-~]{1,128}")  # can stand in a header and in a log line
_NUMBER = re.compile(r"[1-9a-f][0-9a-f]{0,15}")


class RequestIds:
    """Unique in the process by a counter, between processes by a random prefix."""

    def __init__(self) -> None:
        self._prefix = os.urandom(4).hex()
        self._numbers = itertools.count(1)

    def of(self, given: bytes | None) -> str:
        """The client's own, where it is safe; else a new one."""
        if given is not None and _SAFE.fullmatch(given):
            return given.decode("ascii")
        return f"{self._prefix}-{next(self._numbers):x}"

    def was_given(self, request_id: str) -> bool:
        """Whether it is one of those made here: of a client's own nobody can say."""
        prefix, _, number = request_id.partition("-")
        if prefix != self._prefix or not _NUMBER.fullmatch(number):
            return False
        return int(number, 16) < next(self._numbers)  # which uses one up, and harms nobody
