"""The wheel: what is in it, and that it serves from an environment of its own.

The environment sees the libraries of the one that runs the tests, so that nothing is fetched; of
ours it has the wheel alone. The wheel is the pure one; `make e2e-wheel` looks at the compiled one.
"""

import ast
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import httpx
import pytest

import hatch_build
from scheduler import __version__
from tests.gateway.running import ROOT, doubling_model, environment, running_gateway, write_model

# Files that code reads at run time, and what says whose they are: without them the wheel would
# install and then fail.
DATA = (
    "gateway/data/demo_models.yaml",
    "gateway/data/magika_standard_v3_3.json",
    *(path.relative_to(ROOT).as_posix() for path in ROOT.glob("gateway/ui/*")),
    "gpuworker/data/clockwork_osdi20_table1_v100.csv",
    "loadtest/data/SOURCES.md",
    "loadtest/data/azure2019_1000fn_day_A.csv.gz",
    "loadtest/data/azure2019_100fn_min480_959.csv.gz",
    "loadtest/data/azure2019_500fn_min480_959.csv.gz",
    "loadtest/data/azure_llm2023_code.csv.gz",
    "loadtest/data/clockwork_osdi20_table1_v100.csv",
    "loadtest/data/servegen_deepseek_r1_client_windows.csv.gz",
    "loadtest/data/servegen_mm_image_client_windows.csv.gz",
    "openapi/openapi.yaml",
    *(path.relative_to(ROOT).as_posix() for path in ROOT.glob("loadtest/scenarios/*.yaml")),
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(tmp_path_factory.mktemp("wheel"), REMONTOIR_BUILD="pure")[0]


def test_the_wheel_holds_the_packages_their_data_and_the_licences(wheel: Path) -> None:
    assert wheel.name == f"remontoir-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = f"remontoir-{__version__}.dist-info"
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
        metadata = archive.read(f"{info}/METADATA").decode()
    assert set(DATA) <= names
    assert {f"{info}/licenses/LICENSE", f"{info}/licenses/NOTICE"} <= names
    assert "remontoir = gateway.command.cli:main" in entry_points
    assert "License-Expression: Apache-2.0" in metadata
    packages = {name.split("/")[0] for name in names} - {info}
    assert packages <= {"gateway", "gpuworker", "loadtest", "openapi", "scheduler"}
    assert not [name for name in names if "__pycache__" in name or "test" in Path(name).parts]


def test_every_module_of_the_product_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.endswith(".py")}
    for package in ("gateway", "gpuworker", "loadtest", "openapi", "scheduler"):
        modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / package).rglob("*.py")}
        assert modules <= packed


def test_an_installed_wheel_serves(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    _run(
        sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel
    )
    _lend_libraries(home, tmp_path / "libraries")
    write_model(tmp_path / "models" / "double", doubling_model())

    flags = ("--models", str(tmp_path / "models"), "--drain-s", "0")
    command = (str(home / "bin" / "remontoir"),)
    with running_gateway(*flags, scratch=tmp_path, command=command, cwd=tmp_path) as gateway:
        [worker] = gateway.child_pids()
        # The worker's code is the wheel's too.
        assert Path(f"/proc/{worker}/cmdline").read_text().startswith(str(home / "bin"))
        x = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4.5]}
        body = {"model": "double", "slo_ms": 5000, "inputs": [x]}
        answer = httpx.post(f"{gateway.url}/infer", json=body, timeout=30).json()
        assert answer["outputs"][0]["data"] == [2.0, 4.0, 6.0, 9.0]
    found = _run(python, "-c", "import gateway; print(gateway.__file__)", cwd=tmp_path).strip()
    assert found.startswith(str(home))


def test_without_a_compiler_the_wheel_is_pure_and_one_line_says_why(tmp_path: Path) -> None:
    wheel, said = _build(tmp_path, CC="/no/such/cc")
    assert wheel.name == f"remontoir-{__version__}-py3-none-any.whl"
    [line] = said.splitlines()[:-1]  # the last one is the wheel's path
    assert line == "remontoir: a pure Python wheel: there is no C compiler (/no/such/cc)"


def test_a_compiled_wheel_that_was_asked_for_is_not_silently_pure(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="there is no C compiler"):
        _build(tmp_path, CC="/no/such/cc", REMONTOIR_BUILD="compiled")
    assert not list(tmp_path.iterdir())


def test_every_module_of_the_core_is_compiled_or_named_as_interpreted() -> None:
    compiled = set(hatch_build.compiled_modules(ROOT))
    assert {"scheduler/build.py", "scheduler/scheduler.py", "scheduler/planner.py"} <= compiled
    for name in hatch_build.INTERPRETED:
        assert (ROOT / "scheduler" / name).exists(), f"{name} is gone: off hatch_build's list"
        assert f"scheduler/{name}" not in compiled


def test_no_compiled_module_has_a_struct() -> None:
    """Compiling takes a class's annotations away, and msgspec reads them."""
    for path in hatch_build.compiled_modules(ROOT):
        assert "msgspec.Struct" not in (ROOT / path).read_text("utf-8"), path


def test_no_compiled_module_makes_functions_while_it_runs() -> None:
    """A closure or a lambda is a new object at every look, which compiled code calls as any."""
    for path in hatch_build.compiled_modules(ROOT):
        for function in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))):
            if isinstance(function, ast.FunctionDef):
                inner = [node for node in ast.walk(function) if node is not function]
                made = [n for n in inner if isinstance(n, ast.Lambda | ast.FunctionDef)]
                assert not made, f"{path}:{made[0].lineno}"


def _build(directory: Path, **settings: str) -> tuple[Path, str]:
    """The wheel, and what the build said."""
    command = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory)
    said = _run(*command, cwd=ROOT, **settings)
    [path] = directory.glob("*.whl")
    return path, said


def _lend_libraries(home: Path, links: Path) -> None:
    """Has the environment see our libraries, but not our own packages, through a .pth file."""
    links.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "remontoir" not in entry.name.lower() and entry.suffix != ".pth":
            (links / entry.name).symlink_to(entry)
    [site_packages] = home.glob("lib/python*/site-packages")
    (site_packages / "lent.pth").write_text(f"{links}\n")


def _run(*command: str | Path, cwd: Path | None = None, **settings: str) -> str:
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment(**settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
