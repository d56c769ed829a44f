"""SIGHUP: files of keys and certificates are read again, while requests go on.

Owns which files those are. One that cannot be used changes nothing, and the log says why: a
gateway that serves must not end over a typing error.
"""

import contextlib
import logging

from rich.console import Console

from gateway.assembly import Assembly
from gateway.command import host_process
from gateway.command.host_process import ServeError
from gateway.config import GatewayConfig
from gateway.http.tls import TlsError

logger = logging.getLogger(__name__)


def has_files(config: GatewayConfig) -> bool:
    """Without any, SIGHUP means that the terminal is gone."""
    files = (config.tenants_file, config.curve_keys, config.tls_cert)
    return any(file is not None for file in files)


def read_again(config: GatewayConfig, parts: Assembly, console: Console) -> None:
    """Each on its own: what is wrong with one does not keep another."""
    if config.tenants_file is not None:
        try:
            tenants = host_process.tenants_of(config)
        except ServeError as error:
            logger.error("tenants stay as they were: %s", error)
        else:
            if tenants is not None:
                _say(console, config.tenants_file, parts.replace_tenants(tenants))
    if config.curve_keys is not None:
        try:
            keys = host_process.worker_keys_of(config)
        except ServeError as error:
            logger.error("workers' keys stay as they were: %s", error)
        else:
            if keys is not None:
                parts.replace_worker_keys(keys)
                num_workers = len(keys.workers)
                _say(console, config.curve_keys, f"{num_workers} worker{'s' * (num_workers != 1)}")
    if config.tls_cert is not None:
        try:
            parts.read_certificate_again()
        except TlsError as error:
            logger.error("the certificate stays as it was: %s", error)
        else:
            _say(console, config.tls_cert, "a certificate, for connections from now on")


def _say(console: Console, file: str, found: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be what went away
        console.print(f"Read {file} again: {found}.", soft_wrap=True)
