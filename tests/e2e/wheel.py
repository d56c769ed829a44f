"""Both wheels, from the source to an environment of their own: `make e2e-wheel`.

Builds the compiled wheel and the pure one as anybody would, installs each beside nothing else of
ours, and there runs the scheduler's tests and one long day (tests/e2e/day.py): its decisions must
be equal byte for byte. Ends with what a request costs in each. Needs a C compiler and an index of
packages; everything lives in a temporary directory and goes with it.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
KINDS = {"compiled": "compiled core", "pure": "pure Python core"}
# What the tests need, beside the product: their own files, without ours.
BESIDE = ("tests", "docs", "pyproject.toml", "hatch_build.py")
TESTS = ("tests/scheduler", "tests/scenarios")
DAY = "tests/e2e/day.py"


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="remontoir-wheels-") as scratch:
        home = Path(scratch)
        tree = home / "tree"
        _copy_tests(tree)
        python = _environment(home / "venv")
        days = {kind: _try(kind, python, home, tree) for kind in KINDS}
    compiled, pure = days["compiled"], days["pure"]
    if compiled["decisions"] != pure["decisions"]:
        print(f"e2e-wheel: the two decide differently: {compiled} and {pure}", file=sys.stderr)
        return 1
    print(
        f"e2e-wheel: both decide the same for {pure['requests']:,} requests; a request costs "
        f"{pure['us_per_request']:.1f} µs pure, {compiled['us_per_request']:.1f} µs compiled "
        f"({pure['us_per_request'] / compiled['us_per_request']:.1f} x)"
    )
    return 0


def _try(kind: str, python: Path, home: Path, tree: Path) -> dict[str, Any]:
    """Build, install, test; returns what the long day came to."""
    print(f"e2e-wheel: {kind}: build", flush=True)
    wheels = home / kind
    # Isolated: in an environment that has what pyproject.toml and hatch_build.py ask for.
    _run(python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", wheels, ROOT, build=kind)
    [wheel] = wheels.glob("remontoir-*.whl")
    is_any = wheel.name.endswith("-none-any.whl")
    assert is_any == (kind == "pure"), f"a {kind} wheel is called {wheel.name}"
    print(f"e2e-wheel: {kind}: install {wheel.name}", flush=True)
    _run(python, "-m", "pip", "uninstall", "-q", "-y", "remontoir")
    _run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel)
    said = _run(python.parent / "remontoir", "version", cwd=tree)
    assert said.strip().endswith(KINDS[kind]), f"`remontoir version` of the {kind} wheel: {said}"
    print(f"e2e-wheel: {kind}: {' '.join(TESTS)}", flush=True)
    subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS],
        cwd=tree,
        env=_settings(),
        check=True,
    )
    day: dict[str, Any] = json.loads(_run(python, "-m", "tests.e2e.day", cwd=tree))
    assert not Path(day["core"]).is_relative_to(ROOT), f"not the installed core: {day['core']}"
    return day


def _copy_tests(tree: Path) -> None:
    tree.mkdir()
    for name in BESIDE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, tree / name)


def _environment(home: Path) -> Path:
    """The locked libraries, and nothing of ours."""
    print("e2e-wheel: install the locked libraries", flush=True)
    venv.create(home, with_pip=True, symlinks=True)
    python = home / "bin" / "python"
    locked = ROOT / "requirements-dev.txt"
    _run(python, "-m", "pip", "install", "-q", "--require-hashes", "-r", locked)
    return python


def _settings(build: str = "") -> dict[str, str]:
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("REMONTOIR_", "PYTHON"))}
    return {**ours, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "REMONTOIR_BUILD": build}


def _run(*command: str | Path, cwd: Path | None = None, build: str = "") -> str:
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=_settings(build),
        stdout=subprocess.PIPE,
        text=True,
        timeout=1200,
    )
    if done.returncode != 0:
        sys.exit(f"e2e-wheel: {' '.join(map(str, command))} failed\n{done.stdout}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
