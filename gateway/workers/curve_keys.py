"""The CURVE keys of the workers' door: made as files, and read again by the gateway.

Owns where which key lies. A directory is what one side needs and no more: the gateway's has its
secret key and the public keys of those it lets in, a worker's has its own secret key and the
gateway's public key (gpuworker/curve_keys.py reads it). Files are those of pyzmq's zmq.auth. It
must never overwrite a key, and never let one show in a message.
"""

import logging
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

import msgspec
import zmq
import zmq.auth

logger = logging.getLogger(__name__)

GATEWAY = "gateway"
PUBLIC, SECRET = ".key", ".key_secret"
WORKERS = "workers"  # of the gateway's directory: a file for each that may join
WORKER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class KeysError(ValueError):
    """One line: which file, and what is wrong with it."""


class GatewayKeys(msgspec.Struct, frozen=True):
    """Z85 texts of 40 characters, as ZeroMQ takes them. `workers`: name by public key."""

    public: bytes
    secret: bytes
    workers: Mapping[bytes, str]


def make(directory: Path, workers: list[str]) -> list[Path]:
    """Makes a pair for the gateway, unless it has one, and one for each worker; returns the
    workers' directories. Raises KeysError, before anything is written if a worker has keys.
    """
    for name in workers:
        if not WORKER_NAME.fullmatch(name) or name == GATEWAY:
            raise KeysError(
                f"--worker {name!r}: a name is 1 to 64 letters, digits, '.', '_' and '-',"
                f" and not {GATEWAY!r}"
            )
        for existing in (directory / name, directory / GATEWAY / WORKERS / f"{name}{PUBLIC}"):
            if existing.exists():
                raise KeysError(
                    f"{existing} exists, and keys are never overwritten: give another name with"
                    " --worker, or remove it"
                )
    ours = directory / GATEWAY
    try:
        if (ours / f"{GATEWAY}{SECRET}").exists():
            gateway_public, _ = _read_pair(ours / f"{GATEWAY}{SECRET}")
        else:
            gateway_public, secret = zmq.curve_keypair()
            _write(ours / f"{GATEWAY}{SECRET}", gateway_public, secret)
        for name in workers:
            public, secret = zmq.curve_keypair()
            _write(directory / name / f"worker{SECRET}", public, secret)
            _write(directory / name / f"{GATEWAY}{PUBLIC}", gateway_public)
            _write(ours / WORKERS / f"{name}{PUBLIC}", public)
    except OSError as error:
        raise KeysError(f"{error.filename}: {error.strerror}") from error
    return [directory / name for name in workers]


def read(directory: Path) -> GatewayKeys:
    """What `--curve-keys` of the gateway names. Raises KeysError."""
    file = directory / f"{GATEWAY}{SECRET}"
    if not file.exists():
        raise KeysError(
            f"{file}: no such file; `remontoir keys curve --into DIR` makes DIR/{GATEWAY},"
            " the directory to give here"
        )
    public, secret = _read_pair(file)
    if os.stat(file).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        logger.warning("%s can be read by other users of this machine: chmod 600 it", file)
    files = sorted((directory / WORKERS).glob(f"*{PUBLIC}"))
    return GatewayKeys(public, secret, {_read_public(file): file.stem for file in files})


def _read_pair(file: Path) -> tuple[bytes, bytes]:
    public, secret = _load(file)
    try:
        is_pair = secret is not None and zmq.curve_public(secret) == public
    except (zmq.ZMQError, ValueError):
        is_pair = False
    if not is_pair or secret is None:
        raise KeysError(f"{file}: not a secret CURVE key with its public key")
    return public, secret


def _read_public(file: Path) -> bytes:
    public, _ = _load(file)
    if len(public) != 40:
        raise KeysError(f"{file}: a public key has 40 characters, this one {len(public)}")
    return public


def _load(file: Path) -> tuple[bytes, bytes | None]:
    try:
        return zmq.auth.load_certificate(file)
    except OSError as error:
        raise KeysError(f"{file}: {error.strerror or error}") from error
    except ValueError as error:
        raise KeysError(f"{file}: no CURVE key in it") from error


def _write(file: Path, public: bytes, secret: bytes | None = None) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lines = ["metadata", "curve", f'    public-key = "{public.decode()}"']
    if secret is not None:
        lines += [f'    secret-key = "{secret.decode()}"']
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write("\n".join(lines) + "\n")
