"""What stands in for the `tensorrt` package in tests: its names and rules, with numpy behind them.

An engine takes its weights from the allocator it is given, copies them there, and reads them from
there at every execution, through the stand-in driver: what is evicted is missed, and what lies in
the wrong pages gives wrong answers. Executions are enqueued on a stream and happen when that is
waited for. ONNX graphs are evaluated by onnx's reference, so any operator it knows will do.

`module(version)` has the attributes that this version of the real one has, as far as the product
cares: names that came and went are there or are not.
"""

import ctypes
import enum
import sys
import weakref
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

MAGIC = b"plan of the stand-in\n"
_HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Weight(msgspec.Struct):
    name: str
    dtype: str
    shape: list[int]
    content: bytes


class Plan(msgspec.Struct):
    """`profiles`: input name → (min, opt, max) shape."""

    version: str
    compute_capability: str
    graph: bytes
    weights: list[Weight]
    profiles: list[dict[str, list[list[int]]]]
    scratch: int


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(enum.Enum):
    DEVICE = 0
    HOST = 1


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    Severity = Severity
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def __init__(self) -> None: ...


class IGpuAllocator:
    def __init__(self) -> None: ...


class IProgressMonitor:
    def __init__(self) -> None: ...


class DataType(enum.Enum):
    FLOAT = "float32"
    HALF = "float16"
    INT8 = "int8"
    INT32 = "int32"
    BOOL = "bool"
    UINT8 = "uint8"
    INT64 = "int64"
    BF16 = "bfloat16"


def nptype(datatype: DataType) -> type:
    if datatype is DataType.BF16:
        raise TypeError("numpy has no bfloat16")
    return np.dtype(datatype.value).type


def module(
    version: str = "10.13.3", *, compute_capability: str = "9.0", scratch: int = 1 << 16
) -> Any:
    major, minor = (int(part) for part in version.split(".")[:2])
    flags = {"EXPLICIT_BATCH": 0} if major < 11 else {}
    if major >= 10:
        flags["STRONGLY_TYPED"] = 1
    builder_flags = {"FP16": 0} if major < 11 else {"TF32": 7}
    trt = SimpleNamespace(
        __name__="tensorrt",
        __version__=version,
        ILogger=ILogger,
        IGpuAllocator=IGpuAllocator,
        TensorIOMode=TensorIOMode,
        TensorLocation=TensorLocation,
        DataType=DataType,
        nptype=nptype,
        NetworkDefinitionCreationFlag=SimpleNamespace(**flags),
        BuilderFlag=SimpleNamespace(**builder_flags),
        MemoryPoolType=SimpleNamespace(WORKSPACE="workspace"),
        compute_capability=compute_capability,
        scratch=scratch,
    )
    if major >= 10:
        trt.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")
        trt.IProgressMonitor = IProgressMonitor
    if major < 10:
        trt.TacticSource = SimpleNamespace(CUBLAS=0, CUBLAS_LT=1, CUDNN=2)
    trt.major = major
    trt.is_8, trt.has_set_device_memory = major < 10, (major, minor) >= (10, 1)
    trt.init_libnvinfer_plugins = lambda logger, namespace: trt.plugins.append(namespace)
    trt.plugins = []
    trt.Runtime = lambda logger: Runtime(trt, logger)
    trt.Builder = lambda logger: Builder(trt, logger)
    trt.OnnxParser = lambda network, logger: OnnxParser(trt, network)
    return trt


# --- building -------------------------------------------------------------------------------------


class Network:
    def __init__(self, *, is_typed: bool) -> None:
        self.model: onnx.ModelProto | None = None
        self.is_typed = is_typed

    @property
    def num_inputs(self) -> int:
        return len(_inputs_of(self._graph))

    @property
    def num_outputs(self) -> int:
        return len(self._graph.output)

    def get_input(self, i: int) -> Any:
        return _tensor(_inputs_of(self._graph)[i])

    def get_output(self, i: int) -> Any:
        return _tensor(self._graph.output[i])

    @property
    def _graph(self) -> onnx.GraphProto:
        assert self.model is not None
        return self.model.graph


def _tensor(value: onnx.ValueInfoProto) -> Any:
    dims = value.type.tensor_type.shape.dim
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)
    return SimpleNamespace(name=value.name, shape=shape, dtype=DataType(str(dtype)))


def _inputs_of(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    known = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in known]


class OnnxParser:
    UNSUPPORTED = ("NonZero", "Unique", "SequenceConstruct")

    def __init__(self, trt: Any, network: Network) -> None:
        self._network = network
        self._is_8 = trt.is_8
        self._errors: list[tuple[str, int, str]] = []  # text, number of the node, its operator

    def parse_from_file(self, path: str) -> bool:
        try:
            model = onnx.load(path)
        except Exception as error:
            self._errors.append((f"Failed to parse the ONNX model: {error}", -1, ""))
            return False
        for number, node in enumerate(model.graph.node):
            if node.op_type in self.UNSUPPORTED:
                text = 'creator && "Plugin not found, are the plugin name and version correct?"'
                self._errors.append((text, number, node.op_type))
        self._network.model = model
        return not self._errors

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, i: int) -> Any:
        text, number, operator = self._errors[i]
        error = SimpleNamespace(desc=lambda: text, node=lambda: number)
        if not self._is_8:
            error.node_operator, error.node_name = (lambda: operator), (lambda: "")
        return error


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, name: str, least: Any, best: Any, most: Any) -> None:
        self.shapes[name] = [list(least), list(best), list(most)]


class Config:
    def __init__(self) -> None:
        self.profiles: list[Profile] = []
        self.flags: list[Any] = []
        self.progress_monitor: Any = None
        self._tactics = 0b111

    def set_memory_pool_limit(self, kind: Any, num_bytes: int) -> None: ...
    def create_timing_cache(self, content: bytes) -> Any:
        return SimpleNamespace(serialize=lambda: content or b"timings")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.cache

    def set_flag(self, flag: Any) -> None:
        self.flags.append(flag)

    def get_tactic_sources(self) -> int:
        return self._tactics

    def set_tactic_sources(self, sources: int) -> bool:
        self._tactics = sources
        return True

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1


class Builder:
    def __init__(self, trt: Any, logger: Any) -> None:
        self._trt, self._logger = trt, logger

    def create_network(self, flags: int) -> Network:
        if self._trt.is_8 and not flags & 1:
            raise RuntimeError("TensorRT 8 parses ONNX into networks with explicit batch only")
        return Network(is_typed=self._trt.major >= 11 or bool(flags & 2))

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        model = network.model
        assert model is not None
        is_half = any(t.data_type == onnx.TensorProto.FLOAT16 for t in model.graph.initializer)
        if network.is_typed and config.flags:
            self._logger.log(Severity.ERROR, "a strongly typed network takes no flags of types")
            return None
        if is_half and not network.is_typed and 0 not in config.flags:
            self._logger.log(Severity.ERROR, "FP16 weights in a network without the FP16 flag")
            return None
        weights = [
            Weight(
                t.name,
                str(numpy_helper.to_array(t).dtype),
                list(t.dims),
                numpy_helper.to_array(t).tobytes(),
            )
            for t in model.graph.initializer
        ]
        bare = onnx.ModelProto()
        bare.CopyFrom(model)
        del bare.graph.initializer[:]
        named = {value.name for value in bare.graph.input}
        for tensor in model.graph.initializer:
            if tensor.name not in named:
                bare.graph.input.append(
                    onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                )
        plan = Plan(
            self._trt.__version__,
            self._trt.compute_capability,
            bare.SerializeToString(),
            weights,
            [profile.shapes for profile in config.profiles] or [{}],
            self._trt.scratch,
        )
        return MAGIC + msgspec.msgpack.encode(plan)


# --- executing ------------------------------------------------------------------------------------


class Runtime:
    gpu_allocator: Any = None

    def __init__(self, trt: Any, logger: Any) -> None:
        self._trt, self._logger = trt, logger

    def deserialize_cuda_engine(self, content: bytes) -> "Engine | None":
        content = bytes(content)
        try:
            if not content.startswith(MAGIC):
                raise ValueError("magic tag does not match")
            plan = msgspec.msgpack.decode(content[len(MAGIC) :], type=Plan)
            if plan.version != self._trt.__version__:
                raise ValueError(
                    f"The engine plan file is of version {plan.version}, "
                    f"this is {self._trt.__version__}"
                )
            if plan.compute_capability != self._trt.compute_capability:
                raise ValueError(
                    "The engine plan file is generated on an incompatible device, expecting"
                    f" compute {self._trt.compute_capability} got compute"
                    f" {plan.compute_capability}"
                )
            return Engine(self._trt, plan, self.gpu_allocator, self._logger)
        except (ValueError, MemoryError, msgspec.MsgspecError) as error:
            self._logger.log(Severity.ERROR, f"deserialization failed: {error}")
            return None


class Engine:
    def __init__(self, trt: Any, plan: Plan, allocator: Any, logger: Any) -> None:
        self._trt, self.plan, self._allocator, self.logger = trt, plan, allocator, logger
        self.model = onnx.load_from_string(plan.graph)
        self.on_host: set[str] = set()
        self.contexts: weakref.WeakSet[Context] = weakref.WeakSet()
        self._taken: list[int] = []
        self.weights: dict[str, tuple[int, Weight]] = {}
        for weight in plan.weights:
            address = allocator.allocate(max(1, len(weight.content)), 256, 0)
            if not address:
                raise MemoryError("the allocator has no memory")
            self._taken.append(address)
            check(driver().cuMemcpyHtoD_v2(address, weight.content, len(weight.content)))
            self.weights[weight.name] = address, weight
        names = {w.name for w in plan.weights}
        self.inputs = [v for v in self.model.graph.input if v.name not in names]
        self.tensors = [*self.inputs, *self.model.graph.output]
        if trt.is_8:
            self.device_memory_size = plan.scratch
        else:
            self.device_memory_size_v2 = plan.scratch

    def __del__(self) -> None:
        for address in getattr(self, "_taken", []):
            self._allocator.deallocate(address)

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.plan.profiles)

    def get_tensor_name(self, i: int) -> str:
        return str(self.tensors[i].name)

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        is_input = any(value.name == name for value in self.inputs)
        return TensorIOMode.INPUT if is_input else TensorIOMode.OUTPUT

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if name in self.on_host else TensorLocation.DEVICE

    def get_tensor_dtype(self, name: str) -> DataType:
        found: DataType = _tensor(self._value(name)).dtype
        return found

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape: tuple[int, ...] = _tensor(self._value(name)).shape
        return shape

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        shapes = self.plan.profiles[profile].get(name) or [list(self.get_tensor_shape(name))] * 3
        return [tuple(shape) for shape in shapes]

    def _value(self, name: str) -> onnx.ValueInfoProto:
        return next(value for value in self.tensors if value.name == name)

    def evaluate(self, inputs: dict[str, Any]) -> dict[str, Any]:
        weights = {
            name: read(address, tuple(weight.shape), np.dtype(weight.dtype))
            for name, (address, weight) in self.weights.items()
        }
        if any(array is None for array in weights.values()):
            return {}
        names = [value.name for value in self.model.graph.output]
        arrays = ReferenceEvaluator(self.model).run(names, {**inputs, **weights})
        return dict(zip(names, arrays, strict=True))

    def __getattr__(self, name: str) -> Any:
        is_8 = self.__dict__["_trt"].is_8
        if name == "create_execution_context" and not is_8:
            return lambda strategy: Context(self)
        if name == "create_execution_context_without_device_memory" and is_8:
            return lambda: Context(self)
        raise AttributeError(name)


class Context:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._profile = -1
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch = 0
        self._kept: list[Any] = []
        engine.contexts.add(self)

    def __getattribute__(self, name: str) -> Any:
        if name == "set_device_memory":
            engine = object.__getattribute__(self, "_engine")
            if not engine._trt.has_set_device_memory:
                raise AttributeError(name)
        return object.__getattribute__(self, name)

    def set_device_memory(self, address: int, num_bytes: int) -> None:
        assert num_bytes >= self._engine.plan.scratch
        self._scratch = address

    @property
    def device_memory(self) -> int:
        return self._scratch

    @device_memory.setter
    def device_memory(self, address: int) -> None:
        self._scratch = address

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        others = [context for context in self._engine.contexts if context is not self]
        if self._engine._trt.is_8 and any(other._profile == profile for other in others):
            self._engine.logger.log(Severity.ERROR, f"profile {profile} is used by another context")
            return False
        self._profile = profile
        return 0 <= profile < len(self._engine.plan.profiles)

    def set_input_shape(self, name: str, shape: Any) -> bool:
        least, _, most = self._engine.get_tensor_profile_shape(name, self._profile)
        self._shapes[name] = tuple(shape)
        return len(shape) == len(least) and all(
            low <= size <= high for low, size, high in zip(least, shape, most, strict=True)
        )

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        zeros = {
            value.name: np.zeros(self._shapes[value.name], _dtype(value))
            for value in self._engine.inputs
        }
        return tuple(self._engine.evaluate(zeros)[name].shape)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert self._scratch or not self._engine.plan.scratch, "a context without scratch memory"
        function = _HOST_FUNCTION(lambda _: self._execute())
        self._kept.append(function)  # a graph may call it for as long as this context lives
        check(driver().cuLaunchHostFunc(ctypes.c_void_p(stream), function, None))
        return True

    def _execute(self) -> None:
        """As a kernel would: reads and writes device memory, and an error kills the context."""
        inputs = {
            value.name: read(self._addresses[value.name], self._shapes[value.name], _dtype(value))
            for value in self._engine.inputs
        }
        if any(array is None for array in inputs.values()):
            return
        outputs = self._engine.evaluate(inputs)
        for name, array in outputs.items():
            content = np.ascontiguousarray(array).tobytes()
            driver().cuMemcpyHtoD_v2(self._addresses[name], content, len(content))


def _dtype(value: onnx.ValueInfoProto) -> "np.dtype[Any]":
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))


def read(address: int, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> Any:
    """None where the driver refuses: the address is not mapped."""
    array = np.empty(shape, dtype)
    code = driver().cuMemcpyDtoH_v2(array.ctypes.data, address, array.nbytes)
    return None if code else array


def check(code: int) -> None:
    if code:
        raise RuntimeError(f"CUDA error {code}")


def driver() -> ctypes.CDLL:
    """The stand-in, which the test has loaded."""
    library = ctypes.CDLL("libcuda.so.1")
    library.cuMemcpyHtoD_v2.argtypes = (ctypes.c_uint64, ctypes.c_char_p, ctypes.c_size_t)
    library.cuMemcpyDtoH_v2.argtypes = (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t)
    library.cuLaunchHostFunc.argtypes = (ctypes.c_void_p, _HOST_FUNCTION, ctypes.c_void_p)
    return library


def install(version: str = "10.13.3") -> None:
    """As `import tensorrt` of this process."""
    sys.modules["tensorrt"] = module(version)
