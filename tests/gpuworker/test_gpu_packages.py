"""Which packages are installed for which driver and cards; nothing is installed here."""

import pytest

from gpuworker import gpu_packages
from gpuworker.device_choice import Driver, Gpu
from gpuworker.gpu_packages import CannotInstall, Plan, plan_for
from tests.standin import driver
from tests.standin.driver import StandIn

H200 = Gpu(0, "NVIDIA H200", (9, 0))
V100 = Gpu(1, "Tesla V100", (7, 0))
P100 = Gpu(2, "Tesla P100", (6, 0))
PROFILER = "nvidia-cuda-profiler-api>=13.0,<14"
NVML = "nvidia-ml-py>=12.560"
HEADERS_13_0 = ("nvidia-cuda-runtime>=13.0,<13.1", "nvidia-cuda-crt>=13.0,<13.1", PROFILER)


@pytest.mark.parametrize(
    ("cuda", "gpus", "plan"),
    [
        (
            (13, 0),
            (H200,),
            Plan(("tensorrt-cu13", "cuda-bindings==13.*", NVML), HEADERS_13_0),
        ),
        (
            (12, 4),
            (H200, P100),  # whichever is served on, it is not that one
            Plan(
                ("tensorrt-cu12", "cuda-bindings==12.*", NVML),
                (
                    "nvidia-cuda-runtime-cu12>=12.0,<12.5",
                    "nvidia-cuda-nvcc-cu12>=12.0,<12.5",
                    PROFILER,
                ),
            ),
        ),
        (
            (14, 2),
            (H200,),
            Plan(
                ("tensorrt-cu13", "cuda-bindings==13.*", NVML),
                ("nvidia-cuda-runtime>=13.0,<14", "nvidia-cuda-crt>=13.0,<14", PROFILER),
            ),
        ),
        (
            (13, 0),
            (V100,),
            Plan(("tensorrt-cu12<10.5", "cuda-bindings==13.*", NVML), HEADERS_13_0),
        ),
    ],
    ids=["CUDA 13", "CUDA 12", "a driver of the future", "Volta"],
)
def test_packages_suit_driver_and_cards(
    cuda: tuple[int, int], gpus: tuple[Gpu, ...], plan: Plan
) -> None:
    assert plan_for(Driver(cuda, gpus)) == plan


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (Driver((13, 0), ()), "compute capability 7.0 or newer: the driver shows none"),
        (Driver((12, 4), (P100,)), "compute capability 7.0 or newer: Tesla P100 6.0"),
        (Driver((11, 8), (V100,)), r"a newer driver first: 11\.8 is older than CUDA 12 \(525"),
    ],
)
def test_what_cannot_be_served_on_gets_no_packages(found: Driver, message: str) -> None:
    with pytest.raises(CannotInstall, match=message):
        plan_for(found)


def test_print_says_what_it_would_install(
    standin: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_packages.main(["--print"]) == 0
    said = capsys.readouterr().out
    assert "Stand-in" in said
    assert "the driver runs CUDA 13.0" in said
    assert "tensorrt-cu13, cuda-bindings==13.*, nvidia-ml-py" in said


def test_a_driver_that_does_not_work_is_said(
    standin: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    standin.fail("cuInit", driver.LAUNCH_FAILED)
    assert gpu_packages.main([]) == 1
    assert "make gpu-packages: the NVIDIA driver does not work: cuInit" in capsys.readouterr().err
