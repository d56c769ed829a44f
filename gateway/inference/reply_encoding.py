"""Whether a reply is compressed, and how.

It owns what `Accept-Encoding` means here. It must never hold the event loop for long: what is large
is sent as it is, which a client must always take.
"""

import zlib

ACCEPT_ENCODING = b"accept-encoding"
# Two milliseconds of zlib at its fastest. Beyond, everybody's deadlines would pay for one client's
# bandwidth, and tensors of floats shrink by a tenth.
LARGEST_COMPRESSED = 1 << 18

_LEVEL = 1
# zlib's window bits; +16 writes a gzip wrapper, without it a zlib one (RFC 9110, 8.4.1).
_WINDOW_BITS = {b"gzip": zlib.MAX_WBITS + 16, b"deflate": zlib.MAX_WBITS}


def encoding_of(accepted: bytes) -> bytes | None:
    """gzip or deflate for a client that names just that one, as tritonclient does when told to.

    A list ("gzip, deflate, br") is what HTTP libraries send unasked: nobody wished to wait for it.
    """
    name = accepted.strip().lower()
    return name if name in _WINDOW_BITS else None


def compressed(body: bytes, encoding: bytes) -> bytes | None:
    """None where it is too large to be compressed here."""
    if len(body) > LARGEST_COMPRESSED:
        return None
    deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS[encoding])
    return deflate.compress(body) + deflate.flush()
