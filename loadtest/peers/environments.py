"""Environments of the peers: each its own, with the versions that its lock file says.

Owns where they lie and when one is stale. Nothing is ever installed into our own environment.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from loadtest.peers.peer import Peer

SYSTEM_PYTHON = "/usr/bin/python3"
STAMP = "installed-from"
PYTHON = (3, 11)  # the locks are made for it: `make lock-peers`


class MissingPeer(Exception):
    """A peer cannot run on this machine. The message says what it lacks, and what to do."""


def default_root() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "remontoir" / "peers"


def python_of(peer: Peer, root: Path) -> Path:
    """Of an environment that is installed and not stale. Raises MissingPeer."""
    home = root / peer.name
    if not is_installed(peer, root):
        raise MissingPeer(
            f"{peer.title} is not installed: remontoir bench peers install --peer {peer.name}"
        )
    if peer.needs and shutil.which(peer.needs) is None:
        raise MissingPeer(f"{peer.title} needs {peer.needs} (Debian: apt install default-jre)")
    return home / "bin" / "python"


def is_installed(peer: Peer, root: Path) -> bool:
    stamp = root / peer.name / STAMP
    return stamp.exists() and stamp.read_text() == wanted(peer)


def install(peer: Peer, root: Path) -> bool:
    """True where there was something to do. Raises MissingPeer; a half-made one is made again."""
    if is_installed(peer, root):
        return False
    base = _base_python(peer)
    home = root / peer.name
    shutil.rmtree(home, ignore_errors=True)
    home.parent.mkdir(parents=True, exist_ok=True)
    python = home / "bin" / "python"
    uv = shutil.which("uv")
    if uv:
        _run([uv, "venv", "--quiet", "--python", base, str(home)], peer)
        command = [uv, "pip", "install", "--quiet", "--python", str(python)]
    else:
        _run([base, "-m", "venv", str(home)], peer)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*command, "--require-hashes", "-r", str(peer.requirements)], peer)
    (home / STAMP).write_text(wanted(peer))
    return True


def wanted(peer: Peer) -> str:
    """What an environment that is not stale was installed from. Raises MissingPeer."""
    lock = hashlib.sha256(peer.requirements.read_bytes()).hexdigest()
    return f"{_base_python(peer)} {lock}\n"


def _base_python(peer: Peer) -> str:
    """Raises MissingPeer."""
    base = SYSTEM_PYTHON if peer.needs_system_python else sys.base_prefix + "/bin/python3"
    why = " of the system, with a shared libpython beside it," if peer.needs_system_python else ""
    asked = "import sys; print(*sys.version_info[:2])"
    try:
        done = subprocess.run([base, "-c", asked], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise MissingPeer(f"{peer.title} needs {base}{why} which is not there") from error
    found = tuple(map(int, done.stdout.split()))
    if found != PYTHON:
        raise MissingPeer(
            f"{peer.title} needs Python {PYTHON[0]}.{PYTHON[1]}{why} its lock file is for that; "
            f"{base} is {found[0]}.{found[1]}"
        )
    return base


def _run(command: list[str], peer: Peer) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-8:])
        raise MissingPeer(f"{peer.title} cannot be installed:\n{tail}")
