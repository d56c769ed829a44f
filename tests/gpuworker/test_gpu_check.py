"""The device's half of `remontoir gpu-check`, rehearsed on the stand-in for a GPU.

What is measured there is nothing; that it is measured, judged and written down is what is tested.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpuworker.config import ConfigError
from gpuworker.device_choice import Driver, Gpu, NoDriver
from gpuworker.gpu_check.lines import Line, Spread, at_most, spread
from gpuworker.gpu_check.needs import ordinal_for
from loadtest.gpu_check.models import write_references
from tests.standin import driver
from tests.standin.driver import ROOT, StandIn

PAGES = ("pages", "--quick", "--page-mb", "2", "--load-mb", "4", "8")
# Copies into pages that "pages" does before it compares: (warm + quick) x (2 + 4) of LOADs.
COPIES_BEFORE_CYCLES = 33 * 6


@pytest.fixture(scope="module")
def standins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    reason = driver.why_not()
    if reason is not None:
        pytest.skip(reason)
    return driver.environment(tmp_path_factory.mktemp("standin"))


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The step's command line for the smallest model."""
    directory = tmp_path_factory.mktemp("references")
    write_references(directory, ["mlp"])
    more = ("--references", str(directory), "--models", "mlp")
    return ("engines", "--quick", "--page-mb", "2", *more)


Ran = tuple["subprocess.CompletedProcess[str]", dict[str, Any]]


def check(out: Path, arguments: tuple[str, ...], before: str = "", **environ: str) -> Ran:
    """The process that has ended, and its document. `before` is Python that runs first."""
    code = f"import sys\n{before}\nfrom gpuworker.gpu_check.__main__ import main\nsys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    return done, json.loads(out.read_bytes()) if out.exists() else {}


def line_of(document: dict[str, Any], words: str) -> dict[str, Any]:
    [found] = [line for line in document["lines"] if words in line["what"]]
    assert isinstance(found, dict)
    return found


def test_pages_are_measured_and_every_byte_is_right(
    tmp_path: Path, standins: dict[str, str]
) -> None:
    done, document = check(tmp_path / "o.json", PAGES, **standins)
    assert done.returncode in (0, 1), done.stderr  # bars of time are no matter of a stand-in
    assert (document["step"], document["is_quick"]) == ("pages", True)
    assert document["device"]["name"] == "Stand-in"
    figures = document["figures"]
    assert [found["num_bytes"] for found in figures["loads"]] == [4_000_000, 8_000_000]
    assert [cost["is_busy"] for cost in figures["page_costs"]] == [False, True]
    assert figures["cycles"]["num_checked"] == figures["cycles"]["num_loads"] == 300
    assert line_of(document, "wrong bytes")["is_met"] is True
    assert line_of(document, "free memory")["is_met"] is True
    assert all(set(line) == {"what", "measured", "wanted", "is_met"} for line in document["lines"])


def test_pages_need_no_pycuda(tmp_path: Path, standins: dict[str, str]) -> None:
    hide = "sys.modules['pycuda'] = None"
    done, document = check(tmp_path / "o.json", PAGES, hide, **standins)
    assert done.returncode in (0, 1), done.stderr
    assert "cuda-bindings" in document["device"]["pycuda"]
    assert line_of(document, "wrong bytes")["is_met"] is True


def test_a_wrong_byte_is_found_and_fails_the_check(
    tmp_path: Path, standins: dict[str, str]
) -> None:
    corrupt = {**standins, "STANDIN_CORRUPT": str(COPIES_BEFORE_CYCLES + 50)}
    done, document = check(tmp_path / "o.json", PAGES, **corrupt)
    assert done.returncode == 1
    assert document["figures"]["cycles"]["wrong_bytes"] == 1
    assert line_of(document, "wrong bytes")["is_met"] is False
    assert "MISSED random LOADs: wrong bytes: 1" in done.stdout


def test_engines_are_exact_over_moving_pages(
    tmp_path: Path, standins: dict[str, str], engines: tuple[str, ...]
) -> None:
    done, document = check(tmp_path / "o.json", engines, **standins)
    assert done.returncode in (0, 1), done.stderr
    [exact] = document["figures"]["exactness"]
    assert exact["num_loads"] > 10
    assert exact["num_different"] == 0
    for words in ("error relative", "with zeros", "differ by a bit"):
        assert line_of(document, words)["is_met"] is True
    situations = [found["situation"] for found in document["figures"]["exec_times"]]
    assert situations == ["alone", "while LOADs run", "2 at once", "4 at once"]
    assert document["figures"]["exec_times"][1]["num_loads"] > 0


def test_an_engine_over_a_wrong_byte_answers_otherwise_and_fails_the_check(
    tmp_path: Path, standins: dict[str, str], engines: tuple[str, ...]
) -> None:
    hide = "sys.modules['pycuda'] = None"  # the rest of engines by cuda-bindings alone, as well
    done, document = check(tmp_path / "o.json", engines, hide, **standins, STANDIN_CORRUPT="60")
    assert done.returncode == 1, done.stderr
    assert line_of(document, "differ by a bit")["is_met"] is False


def test_without_a_gpu_one_line_says_so(tmp_path: Path, standins: dict[str, str]) -> None:
    done, document = check(tmp_path / "o.json", PAGES, **{**standins, "STANDIN_DEVICES": "0"})
    assert (done.returncode, document) == (2, {})
    assert done.stderr.count("\n") == 1
    assert "cannot run: --device cuda:0: the driver shows 0 GPUs" in done.stderr


# ------------------------------------------------------------------------------- what is missing


def test_a_driver_that_is_missing_is_named() -> None:
    def ask() -> Driver:
        raise NoDriver("no NVIDIA driver is installed (libcuda.so.1 is not found)")

    with pytest.raises(ConfigError, match="cuda:0: no NVIDIA driver is installed"):
        ordinal_for("cuda:0", with_tensorrt=False, ask=ask)


@pytest.mark.parametrize(
    ("device", "found", "words"),
    [
        ("cpu", Driver((13, 0), ()), "this step is about a GPU"),
        ("cuda:1", Driver((13, 0), (Gpu(0, "H200", (9, 0)),)), "shows 1 GPUs, and none of this"),
        ("cuda:0", Driver((10, 2), (Gpu(0, "H200", (9, 0)),)), "runs CUDA 10.2, 11.3 or newer"),
        ("cuda:0", Driver((12, 0), (Gpu(0, "P100", (6, 0)),)), "P100 has compute capability 6.0"),
    ],
)
def test_what_a_machine_lacks_is_named(device: str, found: Driver, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ordinal_for(device, with_tensorrt=False, ask=lambda: found)


# ------------------------------------------------------------------------------------------ bars


def steady(ms: float) -> Spread:
    return Spread(1000, ms, ms, ms, ms)


def test_a_bar_is_met_at_its_edge() -> None:
    assert at_most("LOAD", 2.2, 2.2, "ms", "1.1 x") == Line(
        "LOAD", "2.2 ms", "<= 2.2 ms (1.1 x)", True
    )
    assert at_most("LOAD", 2.201, 2.2, "ms").is_met is False


def test_a_spread_has_its_tail() -> None:
    assert spread([float(n) for n in range(1, 102)]) == Spread(101, 51.0, 100.0, 100.9, 101.0)


@pytest.mark.parametrize(
    ("load", "p99_ms", "is_met"),
    [(2.0, 2.1, [True, True]), (2.3, 2.4, [False, True]), (2.0, 2.3, [True, False])],
)
def test_loads_keep_close_to_a_copy_and_to_themselves(
    standin: StandIn, load: float, p99_ms: float, is_met: list[bool]
) -> None:
    from gpuworker.gpu_check.loads import Loads, lines_of

    found = Loads(
        num_bytes=100_000_000,
        num_pages=6,
        load=Spread(300, load, p99_ms, p99_ms, p99_ms),
        copy=steady(2.0),
        evict=steady(0.1),
    )
    assert [line.is_met for line in lines_of(found)] == [*is_met, None]


@pytest.mark.parametrize(
    ("wrong_bytes", "last", "num_loads", "is_met"),
    [
        (0, 7, 5000, [True, True, True]),
        (1, 7, 5000, [True, False, True]),
        (0, 6, 5000, [True, True, False]),
        (0, 7, 4999, [False, True, True]),
    ],
)
def test_cycles_must_be_many_right_and_leave_no_trace(
    standin: StandIn, wrong_bytes: int, last: int, num_loads: int, is_met: list[bool]
) -> None:
    from gpuworker.gpu_check.cycles import Cycles, lines_of

    found = Cycles(
        num_loads=num_loads,
        num_checked=num_loads,
        checked_bytes=1,
        wrong_bytes=wrong_bytes,
        num_placements=1,
        free_first_bytes=7,
        free_last_bytes=last,
        free_least_bytes=last,
    )
    assert [line.is_met for line in lines_of(found, wanted=5000)] == is_met


@pytest.mark.parametrize(
    ("error", "num_different", "depends", "is_met"),
    [
        (0.009, 0, True, [True, True, True]),
        (0.01, 0, True, [False, True, True]),
        (float("inf"), 1, True, [False, True, False]),
        (0.0, 0, False, [True, False, True]),
    ],
)
def test_engines_must_be_near_bit_equal_and_in_their_pages(
    standin: StandIn, error: float, num_different: int, depends: bool, is_met: list[bool]
) -> None:
    from gpuworker.gpu_check.exactness import Exactness, lines_of

    found = Exactness(
        name="m",
        weights_bytes=1,
        scratch_bytes=1,
        has_graph=True,
        relative_error=error,
        depends_on_pages=depends,
        num_loads=5,
        num_compared=9,
        num_different=num_different,
        first_exec=steady(1),
        load=steady(1),
    )
    bars = [line.is_met for line in lines_of(found) if line.is_met is not None]
    assert bars == is_met


@pytest.mark.parametrize(("p999_ms", "is_met"), [(1.01, True), (1.02, False)])
def test_the_tail_of_executions_is_within_a_hundredth(
    standin: StandIn, p999_ms: float, is_met: bool
) -> None:
    from gpuworker.gpu_check.exec_times import ExecTimes, lines_of

    times = Spread(10_000, 1.0, 1.0, p999_ms, p999_ms)
    found = ExecTimes(name="m", situation="alone", times=times, per_s=1000.0)
    assert [line.is_met for line in lines_of(found, has_bar=True)] == [None, is_met]
    assert [line.is_met for line in lines_of(found, has_bar=False)] == [None]
