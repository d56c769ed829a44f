"""Other people's programs, each in an environment of its own."""

import os
import subprocess
import venv
from pathlib import Path


class LeftOut(Exception):
    """This machine cannot run the tool; the text says why."""


def environment_with(home: Path, *packages: str) -> Path:
    """Its Python. Raises LeftOut where the packages cannot be had here."""
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    try:
        run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages)
    except subprocess.CalledProcessError as error:
        last = error.stdout.strip().splitlines()[-1]
        raise LeftOut(f"{', '.join(packages)} cannot be installed: {last}") from error
    return python


def run(*command: object, on_path: Path | None = None) -> str:
    """What it said. Raises CalledProcessError. `on_path` is searched for programs first."""
    path = os.environ.get("PATH", "")
    done = subprocess.run(
        [str(part) for part in command],
        check=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PATH": f"{on_path}{os.pathsep}{path}" if on_path else path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    return done.stdout
