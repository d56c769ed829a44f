"""A job's server that is one of `remontoir bench peers`': found, given its settings, started.

Owns what a peer needs beyond other servers: an environment that is installed, a model that can be
sent to it, and the bare loop's durations, of which its settings are made.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from loadtest.driver.bare_loop import BareLoop
from loadtest.driver.inputs import InputError, inputs_of_file
from loadtest.driver.job_target import PeerServer, Spoken
from loadtest.driver.model_files import ModelFile
from loadtest.peers import environments
from loadtest.peers.launch import launched
from loadtest.peers.peer import tuning
from loadtest.peers.registry import by_name
from loadtest.peers.wires import target_of
from loadtest.reference import Loop, session_of
from loadtest.servers import Server


class Started(NamedTuple):
    """A server that the job has started: what it speaks, and processes that left its family."""

    server: Server
    target: Spoken
    more_pids: Callable[[], Iterable[int]] = tuple


@contextlib.contextmanager
def started(
    target: PeerServer,
    files: Mapping[str, ModelFile],
    loops: Mapping[str, BareLoop],
    *,
    log_dir: Path,
) -> Iterator[Started]:
    """Ready. Raises MissingPeer, InputError, ServerError."""
    check(target, files)
    peer = by_name(target.peer)
    python = environments.python_of(peer, environments.default_root())
    settings = tuning(
        {name: file.path for name, file in files.items()},
        {name: _as_peers_have_it(loop) for name, loop in loops.items()},
        slo_executions=target.tuned_for or 1.0,
        is_tuned=target.tuned_for is not None,
    )
    with (
        tempfile.TemporaryDirectory(prefix="peer-", ignore_cleanup_errors=True) as scratch,
        launched(
            peer, python, settings, scratch=Path(scratch), log_dir=log_dir, cpus=target.cpus
        ) as running,
    ):
        port = running.server.port
        yield Started(running.server, target_of(peer.wire, peer.path, port=port), running.pids)


def check(target: PeerServer, files: Mapping[str, ModelFile]) -> None:
    """Before anything is measured for it. Raises MissingPeer, InputError."""
    environments.python_of(by_name(target.peer), environments.default_root())
    for file in files.values():
        _check_file(file)


def _check_file(file: ModelFile) -> None:
    """Peers' programs take a row of one tensor, and answer with one. Raises InputError."""
    inputs = inputs_of_file(file.path, file.name)
    outputs = session_of(file.path).get_outputs()
    is_plain = (
        len(inputs) == len(outputs) == 1
        and inputs[0].datatype in ("FP32", "UINT8")
        and None not in inputs[0].shape
        and outputs[0].type == "tensor(float)"
    )
    if not is_plain:
        has = ", ".join(f"{each.name} {each.datatype} {list(each.shape)}" for each in inputs)
        raise InputError(
            f"model {file.name!r}: a peer is sent one FP32 or UINT8 input of a fixed shape, and "
            f"answers one FP32 output; this has {has}, and {len(outputs)} output(s)"
        )


def _as_peers_have_it(loop: BareLoop) -> dict[int, Loop]:
    return {size: Loop(size, size / ms * 1000, ms, ms) for size, ms in loop.exec_ms.items()}
