"""What `serve` needs of the machine before anything runs: a port, a directory, limits, a log.

Owns the checks whose failure is the reader's to mend, each with its one line. It must never start
anything.
"""

import ctypes
import errno
import ipaddress
import logging
import os
import platform
import resource
import socket
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from gateway.config import GatewayConfig, LogFormat
from gateway.http.cors import Cors, OriginError, origins_of
from gateway.http.tls import Certificate, TlsError
from gateway.observability import logs
from gateway.tenants.tenants_file import Tenants, TenantsError, parse_tenants, read_tenants
from gateway.variants.groups_file import Groups, GroupsError, members_of, read_groups
from gateway.workers import curve_keys
from gateway.workers.curve_keys import GatewayKeys
from scheduler.policies import Policy, PolicyError, parse
from scheduler.shards import ReplicasError, Shards, parse_replicas

logger = logging.getLogger(__name__)

_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
_SHORTEST_SLICE_NS = 100_000  # that the kernel grants
BACKLOG = 2048  # connections that wait for accept: a burst, not a queue
OTHER_FILES = 512  # open ones that are no client's connection: workers', models', those turned away
# A client that takes nothing of an answer for so long, or vanished, is cut off by the kernel.
WRITE_TIMEOUT_MS = 60_000
MAX_DEVICES = 1024  # emulated ones: each is a process
# sun_path holds 108 bytes, of which "/workers" and a zero are ours.
MAX_SOCKET_DIRECTORY_BYTES = 96


class ServeError(Exception):
    """Why serving cannot start, or had to end: one line. Exit code 2 stands for a wrong setting."""

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Emulation(msgspec.Struct, frozen=True):
    name: str
    num_devices: int


def start_logging(level: str, form: LogFormat) -> None:
    """The log goes to stderr. Raises ServeError for a level or a form that there is not."""
    try:
        logs.start_logging(level, form)
    except logs.LogError as error:
        raise ServeError(str(error), exit_code=2) from error


def emulation_of(config: GatewayConfig) -> Emulation | None:
    """`NAME:N`, or `NAME` for as many devices as `workers`. Raises ServeError."""
    if config.emulate is None:
        return None
    name, colon, number = config.emulate.partition(":")
    if name and not colon:
        return Emulation(name, config.workers)
    if not (name and number.isascii() and number.isdigit() and 0 < int(number) <= MAX_DEVICES):
        raise ServeError(
            f"--emulate {config.emulate}: expected NAME:N with N from 1 to {MAX_DEVICES},"
            " for instance clockwork-v100:4",
            exit_code=2,
        )
    return Emulation(name, int(number))


def check_models_dir(config: GatewayConfig) -> None:
    """Raises ServeError where there is nothing to serve."""
    if config.emulate is not None:
        return
    if config.models_dir is None:
        raise ServeError(
            "which models? Give --models DIR (`remontoir fetch` makes one), or --emulate NAME:N",
            exit_code=2,
        )
    directory = Path(config.models_dir)
    if not directory.is_dir():
        why = "is not a directory" if directory.exists() else "no such directory"
        raise ServeError(f"--models {directory}: {why}", exit_code=2)
    if not any(path.is_dir() for path in directory.iterdir()):
        raise ServeError(
            f"--models {directory}: no model in it; expected <model>/<version>/model.onnx",
            exit_code=2,
        )


def policy_of(config: GatewayConfig) -> Policy:
    """Raises ServeError for a policy that there is not, or an option it does not have."""
    try:
        return parse(config.policy, schedule_ahead_ms=config.schedule_ahead_ms)
    except PolicyError as error:
        raise ServeError(str(error), exit_code=2) from error


def shards_of(config: GatewayConfig, groups: Groups) -> Shards | None:
    """Which replica has which models; None where this is the only one. Raises ServeError."""
    if config.replica is None and config.replicas is None:
        return None
    try:
        if config.replicas is None:
            raise ReplicasError(f"--replica {config.replica}: of which --replicas?")
        if config.replica is None:
            raise ReplicasError(f"--replicas {config.replicas}: which is this --replica?")
        return Shards(
            parse_replicas(config.replicas),
            config.replica,
            copies=config.replica_copies,
            groups=members_of(groups),
        )
    except ReplicasError as error:
        raise ServeError(str(error), exit_code=2) from error


def groups_of(config: GatewayConfig) -> Groups:
    """Of the file; none without one. Raises ServeError."""
    if config.groups_file is None:
        return {}
    try:
        return read_groups(Path(config.groups_file))
    except GroupsError as error:
        raise ServeError(str(error), exit_code=2) from error


def tenants_of(config: GatewayConfig) -> Tenants | None:
    """Of the file or the variable; None where nobody needs a key. Raises ServeError."""
    try:
        if config.tenants_file is not None and config.tenants is not None:
            raise TenantsError("tenants_file and tenants are both given: one is enough")
        if config.tenants_file is not None:
            return read_tenants(Path(config.tenants_file))
        if config.tenants is not None:
            return parse_tenants(config.tenants, source="setting tenants")
    except TenantsError as error:
        raise ServeError(str(error), exit_code=2) from error
    return None


def certificate_of(config: GatewayConfig) -> Certificate | None:
    """None where HTTP goes without TLS. Raises ServeError."""
    if config.tls_cert is None:
        if config.tls_key is not None:
            raise ServeError(f"--tls-key {config.tls_key}: of which --tls-cert?", exit_code=2)
        return None
    try:
        return Certificate(Path(config.tls_cert), Path(config.tls_key) if config.tls_key else None)
    except TlsError as error:
        raise ServeError(str(error), exit_code=2) from error


def cors_of(config: GatewayConfig) -> Cors | None:
    """None where no other site's pages may read answers. Raises ServeError."""
    if config.cors_origins is None:
        return None
    try:
        return Cors(origins_of(config.cors_origins))
    except OriginError as error:
        raise ServeError(f"--cors-origins: {error}", exit_code=2) from error


def worker_keys_of(config: GatewayConfig) -> GatewayKeys | None:
    """The keys of the workers' door, None where it has none. Raises ServeError where it needs some:
    who reaches an open one can join, be sent requests, and answer them.
    """
    if config.curve_keys is not None:
        try:
            return curve_keys.read(Path(config.curve_keys))
        except curve_keys.KeysError as error:
            raise ServeError(f"--curve-keys: {error}", exit_code=2) from error
    address = config.worker_bind
    if address is not None and not config.insecure and not is_of_this_machine(address):
        raise ServeError(
            f"--worker-bind {address}: whoever reaches it could join as a worker. Make keys with"
            " `remontoir keys curve --into keys` and give --curve-keys keys/gateway here, and"
            " --curve-keys keys/worker there; or say --insecure",
            exit_code=2,
        )
    return None


def is_of_this_machine(endpoint: str) -> bool:
    """Whether only processes of this machine reach a ZeroMQ endpoint."""
    scheme, _, rest = endpoint.partition("://")
    if scheme != "tcp":
        return scheme in ("ipc", "inproc")
    host = rest.rpartition(":")[0].strip("[]")
    return host == "localhost" or is_loopback(host)  # of an interface, or a name, who knows


def cache_dir(config: GatewayConfig) -> Path:
    """Where compiled models are kept. REMONTOIR_CACHE_DIR is the setting `cache_dir` itself."""
    if config.cache_dir is not None:
        return Path(config.cache_dir)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "remontoir"


def raise_open_files_limit() -> None:
    """A connection is an open file, and the usual soft limit is 1,024 of them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def max_connections(config: GatewayConfig) -> int:
    """The setting, or what the open files of this process allow: each connection is one."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = max(1, limit - OTHER_FILES)
    if limit != resource.RLIM_INFINITY and allowed < config.max_connections:
        logger.warning(
            "at most %d connections instead of %d: this process may have %d open files (ulimit -n)",
            allowed,
            config.max_connections,
            limit,
        )
        return allowed
    return config.max_connections


def answer_first() -> bool:
    """Short turns on the CPU for this thread and those it starts (Linux, EEVDF since 6.12).

    A thread that wakes interrupts one with longer turns at once. With equal turns, a gateway that
    shares its core with a worker was woken up to 4 ms late; so, 0.1 ms (p99, one busy core).
    False where the kernel does not do that.
    """
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    # struct sched_attr: size, policy (0: SCHED_OTHER), flags, nice, priority, runtime (the slice),
    # deadline, period
    attributes = struct.pack("=IIQiIQQQ", 48, 0, 0, nice, 0, _SHORTEST_SLICE_NS, 0, 0)
    return bool(ctypes.CDLL(None).syscall(ctypes.c_long(number), 0, attributes, 0) == 0)


def listen(host: str, port: int, *, for_anybody: bool = False) -> socket.socket:
    """A listening TCP socket. Raises ServeError; also where other machines could reach it, unless
    it is `for_anybody`.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise ServeError(f"--host {host}: {error.strerror}", exit_code=2) from error
    family, kind, protocol, _, address = addresses[0]
    if not for_anybody and not is_loopback(address[0]):
        raise ServeError(
            f"--host {host}: other machines could use this gateway without a key. Give --tenants "
            "FILE (`remontoir keys api --tenant NAME` makes the first key), or --insecure if "
            "something else keeps strangers away",
            exit_code=2,
        )
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # those that it accepts have it, too
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, WRITE_TIMEOUT_MS)
        listener.bind(address)
        listener.listen(BACKLOG)  # at once: until then another process may bind the same port
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ServeError(
                f"port {port} of {host} is in use: give another with --port, or 0 for a free one"
            ) from error
        raise ServeError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return listener


def is_loopback(address: str | int) -> bool:
    """Whether only this machine can reach what listens there."""
    try:
        return ipaddress.ip_address(str(address).partition("%")[0]).is_loopback
    except ValueError:
        return False


@contextmanager
def private_directory() -> Iterator[Path]:
    """A directory of this process alone, gone afterwards; short enough for a socket's path."""
    with tempfile.TemporaryDirectory(prefix="remontoir-", dir=_short_temporary_place()) as path:
        yield Path(path)


def _short_temporary_place() -> str:
    place = tempfile.gettempdir()
    is_short = len(os.fsencode(place)) + len("/remontoir-12345678") <= MAX_SOCKET_DIRECTORY_BYTES
    return place if is_short else "/tmp"
