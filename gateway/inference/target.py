"""Which inference route a request came by, and what its path says: model and version.

It owns the paths of inference, native and of the Open Inference Protocol, and of the question
before it, which takes the same way. It must never look for a
model: whether there is one of that name, its endpoint knows.
"""

import functools
import re
from typing import NamedTuple

INFER_PATH = "/infer"
INFER_URL = INFER_PATH.encode()
QUOTE_PATH = "/quote"
V2_INFER_PATHS = (
    "/v2/models/{name}/infer",
    "/v2/models/{name}/versions/{version}/infer",
)

_V2_MODELS = "/v2/models/"
_V2_MODELS_URL = _V2_MODELS.encode()
_V2_INFER = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
# Longer ones take the long way through the server, so that no client fills the cache with them.
_LONGEST_KNOWN_URL = 256
_NUM_KNOWN_URLS = 1024


class Target(NamedTuple):
    """`model` is None where the body names it; `version` is None where any will do."""

    model: str | None
    version: str | None
    is_quote: bool = False


NATIVE = Target(None, None)
QUOTE = Target(None, None, is_quote=True)


def target_of(path: str) -> Target | None:
    """Of a path without percent-encoding. None where it is no route of inference."""
    if path == INFER_PATH:
        return NATIVE
    if not path.startswith(_V2_MODELS):
        return QUOTE if path == QUOTE_PATH else None
    found = _V2_INFER.fullmatch(path)
    return Target(found[1], found[2]) if found else None


def target_of_url(url: bytes) -> Target | None:
    """The same as it stands in a request line, and remembered: this runs for every request.

    None also for what needs a closer look first: a query, percent-encoding.
    """
    if url == INFER_URL:
        return NATIVE
    if not url.startswith(_V2_MODELS_URL) or len(url) > _LONGEST_KNOWN_URL:
        return None
    return _parsed(url)


def is_v2(path: str) -> bool:
    """Whether a path is of the Open Inference Protocol, whether or not there is such a route."""
    return path == "/v2" or path.startswith("/v2/")


@functools.lru_cache(maxsize=_NUM_KNOWN_URLS)
def _parsed(url: bytes) -> Target | None:
    if not url.isascii() or b"%" in url or b"?" in url:
        return None
    return target_of(url.decode())
