"""The certificate of the HTTP side: read, checked, and read again while it serves.

Owns what is said of files that do not work. It must never ask at the terminal, and never replace a
certificate that works by one that does not.
"""

import logging
import os
import ssl
import stat
from pathlib import Path

logger = logging.getLogger(__name__)


# What OpenSSL says of a key that is another certificate's, of the same kind or another.
_MISMATCHES = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")


class TlsError(ValueError):
    """One line: which file, and what is wrong with it."""


class Certificate:
    """`cert` is PEM, with the chain up to the authority; `key` may be in the same file.

    `context` is what the server listens with. Raises TlsError.
    """

    def __init__(self, cert: Path, key: Path | None = None) -> None:
        self._cert = cert
        self._key = key or cert
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # TLS 1.2 or later
        self.context.set_alpn_protocols(["http/1.1"])
        self._load(self.context)

    def read_again(self) -> None:
        """For connections from now on; those that are open keep theirs. Raises TlsError."""
        self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))  # a half loaded one would serve nobody
        self._load(self.context)

    def _load(self, context: ssl.SSLContext) -> None:
        _check_pem("--tls-cert", self._cert, "-----BEGIN CERTIFICATE-----", "certificate")
        _check_pem("--tls-key", self._key, "PRIVATE KEY-----", "private key")
        if os.stat(self._key).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            logger.warning("%s can be read by other users of this machine: chmod 600 it", self._key)
        is_encrypted = False

        def password() -> str:
            nonlocal is_encrypted
            is_encrypted = True
            return ""

        try:
            context.load_cert_chain(self._cert, self._key, password=password)
        except (ssl.SSLError, OSError, ValueError) as error:
            if is_encrypted:
                why = f"--tls-key {self._key} is encrypted, and nobody is there to give a password"
            elif getattr(error, "reason", "") in _MISMATCHES:
                why = f"--tls-key {self._key} is not the key of --tls-cert {self._cert}"
            else:
                why = f"--tls-cert {self._cert}, --tls-key {self._key}: {error}"
            raise TlsError(why) from error


def _check_pem(flag: str, file: Path, mark: str, name: str) -> None:
    try:
        content = file.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise TlsError(f"{flag} {file}: {error.strerror}") from error
    if mark not in content:
        raise TlsError(f"{flag} {file}: no {name} in PEM form in it")
