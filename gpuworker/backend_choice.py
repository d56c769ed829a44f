"""What a worker serves with: its models' specs, and the backend of its device.

Owns which engine goes with which device, and what a failure to start means: settings that are wrong
for good, or a device that may be there again. An engine is imported only when it is the one.
"""

from collections.abc import Callable
from pathlib import Path

from gpuworker.additions import Provide
from gpuworker.backend import Backend, DeviceLost
from gpuworker.config import CPU_CACHE_BYTES, MEBIBYTE, ConfigError, WorkerConfig
from gpuworker.device_choice import CPU, ordinal_of
from gpuworker.devices.emulated import EmulatedBackend
from scheduler.spec import ModelSpec


def backend_of(config: WorkerConfig) -> Backend:
    """Raises ConfigError for what no restart mends, DeviceLost for what one may."""
    if config.emulate is not None:
        return EmulatedBackend(
            config.emulate,
            cache_bytes=config.cache_bytes or CPU_CACHE_BYTES,
            page_bytes=config.page_bytes,
            is_ours=config.is_ours,
        )
    assert config.models_dir is not None  # validate() says so
    specs = specs_of(
        config.models_dir,
        config.cache_dir,
        page_bytes=config.page_bytes,
        device=config.device,
        threads=config.intra_op_threads,
        is_ours=config.is_ours,
    )
    if config.device != CPU:
        return _gpu_backend(config, specs)
    from gpuworker.devices.host import DeviceError
    from gpuworker.engines.onnxruntime import OnnxRuntimeBackend

    cache_bytes = config.cache_bytes or CPU_CACHE_BYTES
    try:
        return OnnxRuntimeBackend(
            specs=specs,
            cache_dir=config.cache_dir,
            cache_bytes=cache_bytes,
            page_bytes=config.page_bytes,
            threads=config.intra_op_threads,
        )
    except DeviceError as error:
        raise ConfigError(f"--cache-mb {cache_bytes // MEBIBYTE}: {error}") from error


def provider_of(config: WorkerConfig) -> Provide:
    """How a model that comes while it serves gets its artifact; an emulated one needs none."""
    models_dir = config.models_dir
    if config.emulate is not None or models_dir is None:
        return lambda _: None
    from gpuworker.compile import Provider

    return Provider(
        models_dir,
        config.cache_dir,
        page_bytes=config.page_bytes,
        device=config.device,
        threads=config.intra_op_threads,
    )


def specs_of(
    models_dir: Path,
    cache_dir: Path,
    *,
    page_bytes: int,
    device: str,
    threads: int = 1,
    is_ours: Callable[[str], bool] = lambda _: True,
) -> list[ModelSpec]:
    """What was compiled before, and what could not be: a worker tries only what nobody has."""
    from gpuworker.compile import compile_repository

    return compile_repository(
        models_dir,
        cache_dir,
        page_bytes=page_bytes,
        device=device,
        threads=threads,
        quiet=True,
        tries_again=False,
        is_ours=is_ours,
    )


def _gpu_backend(config: WorkerConfig, specs: list[ModelSpec]) -> Backend:
    # Imported here alone: there is none of it on a machine without a GPU.
    from gpuworker.devices.cuda_context import CudaContext
    from gpuworker.devices.cuda_memory import fault
    from gpuworker.devices.host import DeviceError
    from gpuworker.devices.nvml import open_telemetry
    from gpuworker.engines.tensorrt import TensorRtBackend
    from gpuworker.engines.tensorrt_api import TensorRt

    ordinal = ordinal_of(config.device)
    assert ordinal is not None
    context = CudaContext(ordinal)
    try:
        return TensorRtBackend(
            specs=specs,
            cache_dir=config.cache_dir,
            cache_bytes=config.cache_bytes,
            page_bytes=config.page_bytes,
            context=context,
            telemetry=open_telemetry(context.pci_bus_id),
            api=TensorRt(),
            shared_store=config.host_store,
        )
    except DeviceLost:
        raise
    except Exception as error:
        lost = fault()
        if lost is not None:
            raise DeviceLost(f"{context.name} broke while it was made ready: {lost}") from error
        if isinstance(error, DeviceError | MemoryError):
            raise ConfigError(f"--device {config.device}: {error}") from error
        raise
