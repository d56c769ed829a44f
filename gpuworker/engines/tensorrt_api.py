"""One face for TensorRT 8.5 to 11: what differs between its versions, and nothing else.

Owns the import of TensorRT. What all versions have under one name (deserialising, execute_async_v3,
tensor addresses, optimisation profiles) is used directly, through `TensorRt.module`.

What changed, in short: 8 wants EXPLICIT_BATCH networks and calls contexts without memory by a name
of their own; 10 asks for USER_MANAGED contexts and sizes by `device_memory_size_v2`, lets several
contexts use one profile, and gives scratch memory by `set_device_memory` from 10.1 on; 11 has no
FP16 flag and no tactic sources of cuBLAS and cuDNN. An FP16 ONNX file is the way to FP16: networks
are strongly typed in 11, in 10 if they ask for it, and 8 has the flag instead.
"""

import importlib
import logging
from collections.abc import Callable
from typing import Any

from gpuworker.config import ConfigError

_log = logging.getLogger("gpuworker.tensorrt")

# Tactics from libraries that allocate memory by themselves, where a version still has them.
_FOREIGN_TACTICS = ("CUBLAS", "CUBLAS_LT", "CUDNN")
OLDEST = (8, 5)


class TensorRt:
    """Raises ConfigError where TensorRT is missing or too old.

    `module` is for tests: what stands in for the `tensorrt` package.
    """

    def __init__(self, module: Any = None) -> None:
        self.module = _import() if module is None else module
        self.version: str = self.module.__version__
        if version_of(self.version) < OLDEST:
            raise ConfigError(
                f"TensorRT {self.version} is installed, {OLDEST[0]}.{OLDEST[1]} or newer is needed"
            )
        self.logger = _logger(self.module)
        # Operators that are plugins of TensorRT's own, in plans and in ONNX files.
        if hasattr(self.module, "init_libnvinfer_plugins"):  # not so in TensorRT-RTX
            self.module.init_libnvinfer_plugins(self.logger, "")

    def builder(self) -> Any:
        """Raises ConfigError where TensorRT does not work with this driver or card."""
        return self._made("Builder")

    def runtime(self) -> Any:
        """Raises ConfigError where TensorRT does not work with this driver or card."""
        return self._made("Runtime")

    @property
    def shares_profiles(self) -> bool:
        """Whether several contexts can use one optimisation profile at once."""
        return version_of(self.version) >= (10, 0)

    def network(self, builder: Any, *, is_fp16: bool) -> Any:
        """An empty network whose batch axis is an axis like any other.

        `is_fp16`: its layers have the types that its file says, where the version knows how.
        """
        flags = self.module.NetworkDefinitionCreationFlag
        wanted = [flags.EXPLICIT_BATCH] if hasattr(flags, "EXPLICIT_BATCH") else []
        if is_fp16 and self._is_typed_if_asked:
            wanted.append(flags.STRONGLY_TYPED)
        return builder.create_network(sum(1 << int(flag) for flag in wanted))

    def allow_fp16(self, config: Any) -> None:
        """For a network with FP16 weights: in 8 its layers may run so, and others, only if told."""
        if hasattr(self.module.BuilderFlag, "FP16") and not self._is_typed_if_asked:
            config.set_flag(self.module.BuilderFlag.FP16)

    @property
    def _is_typed_if_asked(self) -> bool:
        return hasattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")

    def _made(self, name: str) -> Any:
        self.logger.last_error = ""
        try:
            made = getattr(self.module, name)(self.logger)
        except TypeError as error:  # pybind11's word for a constructor that returned nothing
            why = self.logger.last_error or error
            raise ConfigError(f"TensorRT {self.version} does not start: {why}") from error
        return made

    def refuse_foreign_tactics(self, config: Any) -> None:
        """All memory of an engine must come from where we say."""
        sources = getattr(self.module, "TacticSource", None)
        foreign = [getattr(sources, name) for name in _FOREIGN_TACTICS if hasattr(sources, name)]
        if foreign:
            mask = sum(1 << int(source) for source in foreign)
            config.set_tactic_sources(config.get_tactic_sources() & ~mask)

    def scratch_bytes(self, engine: Any) -> int:
        """Device memory that one context needs while it executes."""
        if hasattr(engine, "device_memory_size_v2"):
            return int(engine.device_memory_size_v2)
        return int(engine.device_memory_size)

    def context(self, engine: Any, scratch: tuple[int, int] | None = None) -> Any:
        """A context over memory that is ours, (address, bytes): all contexts share it, since one
        executes at a time. Without, it can be asked for shapes and not be executed.

        Raises MemoryError where TensorRT has no memory for it.
        """
        strategy = getattr(self.module, "ExecutionContextAllocationStrategy", None)
        if strategy is not None:
            context = engine.create_execution_context(strategy.USER_MANAGED)
        else:
            context = engine.create_execution_context_without_device_memory()
        if context is None:
            raise MemoryError("TensorRT could not make an execution context")
        if scratch is None:
            return context
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(*scratch)
        else:
            context.device_memory = scratch[0]
        return context

    def allocator(
        self, allocate: Callable[[int, int], int], deallocate: Callable[[int], bool]
    ) -> Any:
        """An IGpuAllocator that asks these. They must never raise, and may be called by any thread.

        `allocate(num_bytes, alignment)` returns an address, 0 where there is no memory. TensorRT
        calls with positional arguments only; `free` is what 8 calls `deallocate`.
        """
        base: Any = self.module.IGpuAllocator

        class Allocator(base):  # type: ignore[misc]  # a class of a library without types
            def __init__(self) -> None:
                base.__init__(self)

            def allocate(self, size: int, alignment: int, _flags: int) -> int:
                return allocate(size, alignment)

            def reallocate(self, _address: int, _alignment: int, _size: int) -> int:
                return 0  # not done: TensorRT then allocates anew and copies

            def deallocate(self, memory: int) -> bool:
                return deallocate(memory)

            free = deallocate

        return Allocator()


def version_of(text: str) -> tuple[int, ...]:
    """The first two numbers: 10.13.3.9.post1 is (10, 13)."""
    return tuple(int(part) for part in text.split(".")[:2])


def _import() -> Any:
    try:
        return importlib.import_module("tensorrt")
    except ImportError as error:
        raise ConfigError(
            f"TensorRT's Python package cannot be imported ({error}); "
            "pip install tensorrt brings it"
        ) from error


def _logger(module: Any) -> Any:
    """What TensorRT has to say goes where the worker's log goes."""
    base: Any = module.ILogger
    severity = base.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.WARNING,
        severity.INFO: logging.DEBUG,
        severity.VERBOSE: logging.NOTSET,
    }

    class Logger(base):  # type: ignore[misc]  # a class of a library without types
        def __init__(self) -> None:
            base.__init__(self)
            self.last_error = ""

        def log(self, level: Any, text: str) -> None:
            number = levels.get(level, logging.DEBUG)
            if number >= logging.ERROR:
                self.last_error = text.strip()
            if number > logging.NOTSET:
                _log.log(number, "%s", text.strip())

    return Logger()
