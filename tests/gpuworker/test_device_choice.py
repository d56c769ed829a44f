"""What --device stands for, on machines with and without a driver, GPUs and their packages."""

import subprocess
import sys
from pathlib import Path

import pytest

from gpuworker import device_choice, tensorrt_package
from gpuworker.config import ConfigError
from gpuworker.device_choice import Driver, Gpu, NoDriver, devices_of, ordinal_of
from gpuworker.tensorrt_package import TensorRtPackage
from tests.standin.driver import StandIn

H200 = Gpu(0, "NVIDIA H200", (9, 0))


@pytest.fixture(autouse=True)
def complete(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All packages are there and work; the kernel knows of no GPU."""
    monkeypatch.setattr(device_choice, "_is_there", lambda _: True)
    monkeypatch.setattr(device_choice, "_broken", list)
    monkeypatch.setattr(device_choice, "_KERNEL_MODULE", tmp_path / "none")
    package = TensorRtPackage("11.4.0.106", 13)
    monkeypatch.setattr(tensorrt_package, "installed", lambda: package)


def driver(*gpus: Gpu) -> Driver:
    return Driver((13, 0), gpus)


def no_driver() -> Driver:
    raise NoDriver("no NVIDIA driver is installed (libcuda.so.1 is not found)")


def test_the_cpu_asks_no_driver() -> None:
    def ask() -> Driver:
        raise AssertionError("asked")

    assert devices_of("cpu", ask) == ("cpu",)


@pytest.mark.parametrize("wanted", ["auto", "all"])
def test_a_worker_for_each_gpu(wanted: str) -> None:
    both = driver(H200, H200._replace(ordinal=1))
    assert devices_of(wanted, lambda: both) == ("cuda:0", "cuda:1")


def test_one_of_them() -> None:
    both = driver(H200, H200._replace(ordinal=1))
    assert devices_of("cuda:1", lambda: both) == ("cuda:1",)


@pytest.mark.parametrize("ask", [no_driver, driver])
def test_auto_is_the_cpu_where_there_is_no_gpu_and_says_so(
    ask: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert devices_of("auto", ask) == ("cpu",)  # type: ignore[arg-type]
    assert "on the CPU" in capsys.readouterr().err


@pytest.mark.parametrize("wanted", ["all", "cuda:0"])
def test_who_asks_for_a_gpu_never_gets_the_cpu(wanted: str) -> None:
    with pytest.raises(ConfigError, match=r"--device .*: no NVIDIA driver is installed"):
        devices_of(wanted, no_driver)
    with pytest.raises(ConfigError, match="the driver shows no GPU"):
        devices_of(wanted, driver)


def test_nor_who_has_one_whose_driver_library_is_not_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "version").touch()
    monkeypatch.setattr(device_choice, "_KERNEL_MODULE", tmp_path / "version")
    with pytest.raises(ConfigError, match=r"has an NVIDIA GPU, but no .*--device cpu serves"):
        devices_of("auto", no_driver)


def test_a_gpu_that_is_not_there_is_counted() -> None:
    with pytest.raises(ConfigError, match="--device cuda:3: this machine has 1 CUDA devices"):
        devices_of("cuda:3", lambda: driver(H200))


def test_all_that_is_missing_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_choice, "_is_there", lambda module: module == "pycuda")
    old = Gpu(0, "Tesla P100", (6, 0))
    with pytest.raises(ConfigError) as raised:
        devices_of("auto", lambda: driver(old))
    message = str(raised.value)
    assert "Tesla P100 (cuda:0)" in message
    assert "compute capability 6.0 of cuda:0 is below 7.0" in message
    assert (
        "tensorrt and cuda-bindings not installed: pip install tensorrt-cu13;"
        " pip install cuda-bindings (the driver runs CUDA 13.0; make gpu-packages" in message
    )
    assert "--device cpu serves without it" in message


def test_a_tensorrt_that_is_too_new_for_driver_or_card_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = Driver((12, 4), (H200, Gpu(1, "Tesla V100", (7, 0))))
    with pytest.raises(ConfigError) as raised:
        devices_of("all", lambda: both)
    message = str(raised.value)
    assert "TensorRT 11.4.0.106 is built for CUDA 13, the driver runs 12.4: pip" in message
    assert "TensorRT 11.4.0.106 needs compute capability 7.5, cuda:1 has 7.0: pip" in message
    assert devices_of("all", lambda: driver(H200)) == ("cuda:0",)


def test_a_package_that_is_there_and_does_not_work_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(device_choice, "_PACKAGES", (("tests.gpuworker", "ours"),))
    with pytest.raises(ConfigError, match=r"ours cannot be used: ModuleNotFoundError: .*driver"):
        devices_of("cuda:0", lambda: driver(H200))


@pytest.mark.parametrize("text", ["gpu", "cuda", "cuda:", "cuda:-1", "cuda:x", "CPU", "cuda:99999"])
def test_what_is_no_device_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected cpu, cuda:N, all .* or auto"):
        devices_of(text, lambda: driver(H200))


def test_ordinals() -> None:
    assert ordinal_of("cpu") is None
    assert ordinal_of("cuda:12") == 12


def test_the_driver_is_asked_without_any_package_of_cuda(standin: StandIn) -> None:
    found = device_choice.ask_driver()
    assert found.cuda_version == (13, 0)
    assert [gpu.ordinal for gpu in found.gpus] == list(range(len(found.gpus)))
    assert found.gpus[0].name
    assert found.gpus[0].compute_capability >= (7, 0)


@pytest.mark.parametrize(
    ("call", "code", "message"),
    [
        ("cuInit", 803, "cuInit gives "),
        ("cuDeviceGetCount", 999, "cuDeviceGetCount gives "),
    ],
)
def test_a_driver_that_does_not_work_is_none(
    standin: StandIn, call: str, code: int, message: str
) -> None:
    standin.fail(call, code)
    with pytest.raises(NoDriver, match=f"the NVIDIA driver does not work: {message}"):
        device_choice.ask_driver()


def test_a_machine_without_its_library_has_no_driver() -> None:
    """In a process of its own: in this one the stand-in may be loaded."""
    code = (
        "from gpuworker.device_choice import *\n"
        "try: print(ask_driver())\n"
        "except NoDriver as error: print('none:', error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout.startswith(("Driver(", "none: "))
