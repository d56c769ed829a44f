"""Calls an allocator as TensorRT does: the real Python classes, over nvinfer.cpp."""

import ctypes
import importlib
import importlib.util
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent / "nvinfer.cpp"
# What the classes of TensorRT 11 link with; all of it is in the one file.
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
BINDINGS = "tensorrt_bindings"
# The thread that calls: this one, another of Python's, one of C++ alone.
THREADS = ("this", "python", "c++")


def why_not() -> str | None:
    """What is missing for tests with it, or None."""
    if shutil.which("c++") is None:
        return "needs a C++ compiler"
    if importlib.util.find_spec(BINDINGS) is None:
        return f"needs {BINDINGS}: make cuda-packages"
    return None


class NvInfer:
    """`module` is the real `tensorrt`, but that there is nothing below it. Once per process."""

    def __init__(self, directory: Path) -> None:
        for name in LIBRARIES:
            library = directory / f"lib{name}.so.11"
            command = [
                "c++",
                "-std=c++17",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-O1",
                "-shared",
                "-fPIC",
            ]
            command += ["-pthread", f"-Wl,-soname,{library.name}", "-o", str(library), str(SOURCE)]
            subprocess.run(command, check=True)
            # By their sonames they are then found in place of any that the machine has.
            loaded = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
            if name == LIBRARIES[0]:
                self.library = loaded
        self.module = importlib.import_module(BINDINGS)

    def called(self, allocator: Any) -> "Allocator":
        return Allocator(self.library, allocator)


class Allocator:
    """What TensorRT sees of an IGpuAllocator that is written in Python."""

    def __init__(self, library: ctypes.CDLL, allocator: Any) -> None:
        self._allocator = allocator  # kept: C++ has but a pointer
        self._library = library
        # pybind11 puts the address of the C++ object behind the head of the Python object.
        place = id(allocator) + object.__basicsize__
        self._pointer = ctypes.c_void_p.from_address(place).value
        for name in ("allocate", "allocate_async", "reallocate"):
            self._function(name).restype = ctypes.c_void_p
        for name in ("deallocate", "deallocate_async"):
            self._function(name).restype = ctypes.c_bool
        self._function("kind").restype = ctypes.c_char_p

    def kind(self) -> str:
        found: bytes = self._function("kind")(ctypes.c_void_p(self._pointer))
        return found.decode()

    def allocate(
        self, num_bytes: int, *, alignment: int = 256, thread: str = "this", is_async: bool = False
    ) -> int:
        """An address, 0 where there is none."""
        name = "allocate_async" if is_async else "allocate"
        return self._call(name, num_bytes, alignment, thread=thread) or 0

    def reallocate(self, address: int, num_bytes: int, *, alignment: int = 256) -> int:
        return self._call("reallocate", address, alignment, num_bytes, thread="this") or 0

    def deallocate(self, address: int, *, thread: str = "this", is_async: bool = False) -> bool:
        name = "deallocate_async" if is_async else "deallocate"
        return bool(self._call(name, address, thread=thread))

    def _function(self, name: str) -> Any:
        return getattr(self._library, f"standin_{name}")

    def _call(self, name: str, *numbers: int, thread: str) -> Any:
        function = self._function(name)
        arguments = [ctypes.c_void_p(self._pointer), *map(ctypes.c_uint64, numbers)]
        arguments.append(ctypes.c_bool(thread == "c++"))
        if thread != "python":
            return function(*arguments)
        answers: list[Any] = []
        _in_a_thread(lambda: answers.append(function(*arguments)))
        return answers[0]


def _in_a_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
