"""Who may import whom (docs/architecture.md), read from the source by `ast`, so that a slip shows
as a line of code and not as a slow start or a cycle months later.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("gateway", "gpuworker", "loadtest", "openapi", "scheduler")

# What each package may import of ours. Everybody may import itself.
MAY_IMPORT = {
    "scheduler": set[str](),
    "openapi": set[str](),
    "gateway": {"scheduler", "openapi"},
    "gpuworker": {"scheduler"},
    "loadtest": {"scheduler"},
}

# The core is a function of its events: nothing in it may know a clock, a socket or a file.
BANNED_IN_SCHEDULER = {
    "asyncio", "concurrent", "datetime", "io", "logging", "multiprocessing", "os", "pathlib",
    "queue", "select", "selectors", "signal", "socket", "ssl", "subprocess", "tempfile",
    "threading", "time",
}  # fmt: skip
ALLOWED_IN_SCHEDULER = {"msgspec"}  # besides the rest of the standard library

# Inside the scheduler, a module imports from earlier lines only.
SCHEDULER_ORDER = (
    ("priority",),
    ("build", "spec"),
    ("actions", "shards", "words"),
    ("events", "wire"),
    ("request", "profile", "work_tracker", "lane_shares", "timers", "simulated_worker", "scaling"),
    ("model_queue", "rate_meter", "slo_classes", "tenants"),
    ("device",),
    ("state",),
    ("ledger",),
    ("policies",),
    ("staging",),
    ("planner",),
    ("quotes",),
    ("results",),
    ("fleet",),
    ("scheduler",),
    ("invariants", "simulation", "states", "event_log"),
    ("recording", "situation"),
    ("hindsight", "story"),
    ("retelling",),
)

# The modules that need a GPU's libraries. Everybody else imports them when there is one, inside a
# function, so that everything else runs without.
GPU_MODULES = (
    "gpuworker/compile_plan.py",
    "gpuworker/devices/cuda.py",
    "gpuworker/devices/cuda_context.py",
    "gpuworker/devices/cuda_memory.py",
    "gpuworker/engines/cuda_graph.py",
    "gpuworker/engines/io_slots.py",
    "gpuworker/engines/tensorrt.py",
    "gpuworker/engines/tensorrt_memory.py",
    "gpuworker/engines/tensorrt_session.py",
    "gpuworker/gpu_check/bindings_only.py",
    "gpuworker/gpu_check/busy_kernel.py",
    "gpuworker/gpu_check/cycles.py",
    "gpuworker/gpu_check/engine.py",
    "gpuworker/gpu_check/engines.py",
    "gpuworker/gpu_check/exactness.py",
    "gpuworker/gpu_check/exec_times.py",
    "gpuworker/gpu_check/loads.py",
    "gpuworker/gpu_check/page_costs.py",
    "gpuworker/gpu_check/pages.py",
)
# Heavy or rare libraries have few homes each.
ONE_HOME = {
    "cuda": GPU_MODULES,
    "pycuda": GPU_MODULES,
    "tensorrt": (),  # tensorrt_api.py imports it by name, since tests have another
    "pynvml": (),  # as devices/nvml.py does it
    "pydantic": (),
}


class Import(NamedTuple):
    path: str
    line: int
    module: str
    text: str


def imports_of(source: str, path: str) -> Iterator[Import]:
    """Every import statement, wherever it stands; relative ones as absolute names."""
    lines = source.splitlines()
    package = path.split("/")[:-1]
    for node in ast.walk(ast.parse(source, path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            stem = ".".join([*start, *([node.module] if node.module else [])])
            names = [f"{stem}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and _is_random_module(node.value):
            names = [f"random.{node.attr}"]  # a use, as bad as importing the function
        else:
            continue
        for name in names:
            yield Import(path, node.lineno, name, lines[node.lineno - 1].strip())


def _is_random_module(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "random"


def violation(found: Import) -> str | None:
    """Why this import may not be, or None."""
    package = found.path.split("/")[0]
    target = found.module.split(".")[0]
    if target in PACKAGES and target != package and target not in MAY_IMPORT[package]:
        return f"{package} must not import {target}"
    if target in ONE_HOME and found.path not in ONE_HOME[target]:
        return f"{target} is imported in {' and '.join(ONE_HOME[target]) or 'no file'} only"
    if package == "scheduler":
        return _violation_in_scheduler(found, target)
    return None


def _violation_in_scheduler(found: Import, target: str) -> str | None:
    if target in BANNED_IN_SCHEDULER:
        return f"the scheduler is pure: no {target}"
    if target == "random" and found.module not in ("random", "random.Random"):
        return "chance in the scheduler is a seeded random.Random"
    if target != "scheduler":
        if target in sys.stdlib_module_names or target in ALLOWED_IN_SCHEDULER:
            return None
        return f"the scheduler imports the standard library and {ALLOWED_IN_SCHEDULER} only"
    here = _rank(found.path.removeprefix("scheduler/").removesuffix(".py").split("/")[0])
    parts = found.module.split(".")
    there = _rank(parts[1]) if len(parts) > 1 else None
    if here is None or there is None:  # the package's own front door: it may gather everything
        return None
    same_policies = "scheduler/policies/" in found.path and parts[1] == "policies"
    if there >= here and not same_policies:
        return f"inside the scheduler, {parts[1]} does not come before {found.path}"
    return None


def _rank(module: str) -> int | None:
    if module == "__init__":
        return None
    for rank, names in enumerate(SCHEDULER_ORDER):
        if module in names:
            return rank
    raise AssertionError(f"scheduler/{module} has no place in SCHEDULER_ORDER yet")


def test_every_import_respects_the_layers() -> None:
    slips = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            for found in imports_of(path.read_text("utf-8"), name):
                if why := violation(found):
                    slips.append(f"{found.path}:{found.line}: {found.text}  ({why})")
    assert not slips, "\n" + "\n".join(slips)


def test_modules_for_gpus_are_imported_where_there_is_one() -> None:
    names = {path.removesuffix(".py").replace("/", ".") for path in GPU_MODULES}
    slips = []
    for path in sorted((ROOT / "gpuworker").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name in GPU_MODULES:
            continue
        for node in ast.parse(path.read_text("utf-8"), name).body:  # not inside functions
            if isinstance(node, ast.ImportFrom) and node.module in names:
                slips.append(f"{name}:{node.lineno}: {node.module}")
    assert not slips, "\n" + "\n".join(slips)


@pytest.mark.parametrize(
    ("path", "source", "why"),
    [
        ("gateway/app.py", "import gpuworker.lane", "gateway must not import gpuworker"),
        ("gpuworker/lane.py", "from gateway import app", "gpuworker must not import gateway"),
        ("loadtest/run.py", "import gateway", "loadtest must not import gateway"),
        ("scheduler/spec.py", "import gateway.app", "scheduler must not import gateway"),
        ("scheduler/spec.py", "from time import monotonic_ns", "the scheduler is pure: no time"),
        ("scheduler/spec.py", "def f():\n    import socket", "the scheduler is pure: no socket"),
        ("scheduler/spec.py", "random.shuffle(x)", "chance in the scheduler is a seeded"),
        ("scheduler/spec.py", "from random import random", "chance in the scheduler is a seeded"),
        ("scheduler/spec.py", "import zmq", "standard library"),
        ("scheduler/spec.py", "from scheduler.wire import encode", "wire does not come before"),
        ("scheduler/spec.py", "from . import wire", "wire does not come before"),
        ("scheduler/events.py", "from .scheduler import Scheduler", "scheduler does not come"),
        ("gpuworker/lane.py", "import pycuda.driver", "pycuda is imported in gpuworker/compile"),
        ("gpuworker/lane.py", "import tensorrt", "tensorrt is imported in no file"),
        (
            "gateway/http/routes.py",
            "from pydantic import BaseModel",
            "pydantic is imported in no file",
        ),
    ],
)
def test_the_rules_see_a_slip(path: str, source: str, why: str) -> None:
    [found] = imports_of(source, path)
    assert why in (violation(found) or "no violation")


def test_every_test_module_defines_a_test() -> None:
    empty = [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if not _defines_a_test(ast.parse(path.read_text("utf-8"), str(path)))
    ]
    assert not empty, f"test modules without a test: {', '.join(empty)}"


def _defines_a_test(tree: ast.Module) -> bool:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith(
            "test"
        ):
            return True
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            return True
        # Hypothesis: TestName = Machine.TestCase
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id.startswith("Test") for target in node.targets
        ):
            return True
    return False
