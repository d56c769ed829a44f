"""Compiles the scheduler's hot modules with mypyc while a wheel is built.

It owns what is compiled and how a build does without: where a compiler, mypyc or Python's headers
are missing, one line says so and the wheel is pure Python, with the same decisions, only slower. It
must never change a source file, nor touch an editable install, which is always pure.

REMONTOIR_BUILD=pure does not even try; REMONTOIR_BUILD=compiled fails rather than fall back.
docs/compiled-core.md has the rules that keep the source compilable.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# What the messages are made of, msgspec's structs, is C already, and mypyc would only wrap it;
# shells and tools around the core are subclassed and replaced freely, or run once.
INTERPRETED = frozenset(
    {
        "actions.py",
        "event_log.py",
        "events.py",
        "hindsight.py",
        "invariants.py",
        "recording.py",
        "retelling.py",
        "scaling.py",
        "simulated_worker.py",
        "simulation.py",
        "situation.py",
        "spec.py",
        "states.py",
        "story.py",
        "wire.py",
        "words.py",
    }
)
# What the compiling needs: the compiler's own version decides what it makes of the source.
TOOLS = ("mypy>=2.4,<2.5", "setuptools>=65.5", "msgspec>=0.19")
SETTING = "REMONTOIR_BUILD"
TIMEOUT_S = 900


class CompiledCore(BuildHookInterface[Any]):
    """Hatchling's hook; `version` is "standard" for a wheel and "editable" for `pip install -e`."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        return [] if _setting() == "pure" else list(TOOLS)

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        setting = _setting()
        if version != "standard" or setting == "pure":
            return
        self._scratch = tempfile.TemporaryDirectory(prefix="remontoir-build-")
        out = Path(self._scratch.name)
        done = subprocess.run(
            [sys.executable, __file__, str(out)],
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
        )
        if done.returncode != 0:
            if setting == "compiled":
                raise RuntimeError(f"the core did not compile:\n{done.stdout}")
            self.app.display_warning(f"remontoir: a pure Python wheel: {_why(done.stdout)}")
            return
        for path in (out / "lib").rglob("*"):
            if path.is_file():
                build_data["force_include"][str(path)] = path.relative_to(out / "lib").as_posix()
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if hasattr(self, "_scratch"):
            self._scratch.cleanup()


def compiled_modules(root: Path) -> list[str]:
    """Paths of the modules that are compiled: one group, so that they call each other in C.

    Of the policies that is the strategies, in the folders: a named set is read from a text once,
    by msgspec, from annotations that compiling would take away.
    """
    package = root / "scheduler"
    return sorted(
        path.relative_to(root).as_posix()
        for path in package.rglob("*.py")
        if path.name != "__init__.py"
        and path.parent != package / "policies"
        and path.relative_to(package).as_posix() not in INTERPRETED
    )


def compile_into(out: Path) -> None:
    """Extension modules under `out`/lib, from the sources in the current directory."""
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        sys.exit(f"there is no C compiler ({compiler})")
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        sys.exit(f"Python's headers are missing ({header})")
    # Imported first: without it, distutils of Python 3.12 and newer would be missing.
    from setuptools import Distribution  # type: ignore[import-untyped]
    from setuptools.command.build_ext import build_ext  # type: ignore[import-untyped]

    from mypyc.build import mypycify  # isort: skip

    extensions = mypycify(
        [f"--cache-dir={out / 'mypy'}", *compiled_modules(Path.cwd())],
        opt_level="3",
        debug_level="0",
        target_dir=str(out / "c"),
        group_name="remontoir_core",
    )
    command = build_ext(Distribution({"name": "remontoir", "ext_modules": extensions}))
    command.build_lib, command.build_temp = str(out / "lib"), str(out / "temp")
    command.ensure_finalized()
    command.run()


def _setting() -> str:
    setting = os.environ.get(SETTING, "")
    if setting not in ("", "pure", "compiled"):
        raise ValueError(f"{SETTING}={setting}: it is pure or compiled, or not set")
    return setting


def _why(output: str) -> str:
    """The line of the compiler's output that says what was wrong: the first error, or the last."""
    lines = [line for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line.lower()]
    return (errors or lines[-1:] or ["mypyc ended without a word"])[0].strip()


if __name__ == "__main__":
    compile_into(Path(sys.argv[1]).resolve())
