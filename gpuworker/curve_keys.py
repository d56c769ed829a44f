"""The CURVE keys of one worker: its own, and the one public key of the gateway that it trusts.

Owns what `--curve-keys` names: a directory that `remontoir keys curve` makes. It never writes, and
never lets the secret show in a message.
"""

import logging
import os
import stat
from pathlib import Path

import msgspec
import zmq
import zmq.auth

from gpuworker.config import ConfigError

_log = logging.getLogger("gpuworker")

OWN_FILE, GATEWAY_FILE = "worker.key_secret", "gateway.key"
FLAG = "--curve-keys"


class CurveKeys(msgspec.Struct, frozen=True):
    """Z85 texts of 40 characters, as ZeroMQ takes them."""

    public: bytes
    secret: bytes
    gateway_public: bytes


def read(directory: Path) -> CurveKeys:
    """Raises ConfigError naming the file and what is wrong with it."""
    public, secret = _load(directory / OWN_FILE)
    try:
        is_pair = secret is not None and zmq.curve_public(secret) == public
    except (zmq.ZMQError, ValueError):
        is_pair = False
    if not is_pair or secret is None:
        raise ConfigError(f"{FLAG}: {directory / OWN_FILE} is no secret key with its public key")
    if os.stat(directory / OWN_FILE).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        # a warning only: what mounts secrets into a container may leave us no choice
        _log.warning("%s can be read by other users: chmod 600 it", directory / OWN_FILE)
    gateway_public, _ = _load(directory / GATEWAY_FILE)
    if len(gateway_public) != 40:
        raise ConfigError(f"{FLAG}: {directory / GATEWAY_FILE} is no public key of 40 characters")
    return CurveKeys(public, secret, gateway_public)


def _load(file: Path) -> tuple[bytes, bytes | None]:
    if not file.exists():
        raise ConfigError(
            f"{FLAG}: {file}: no such file; give the directory that `remontoir keys curve` made"
            f" for this worker, with {OWN_FILE} and {GATEWAY_FILE} in it"
        )
    try:
        return zmq.auth.load_certificate(file)
    except OSError as error:
        raise ConfigError(f"{FLAG}: {file}: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{FLAG}: {file}: no CURVE key in it") from error
