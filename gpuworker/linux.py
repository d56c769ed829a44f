"""What the worker asks of the kernel for its process and its threads. Linux only, no policy."""

import ctypes
import os
import platform
import signal
import struct
import threading

_PR_SET_PDEATHSIG = 1
_PR_SET_TIMERSLACK = 29
SHORTEST_SLICE_NS = 100_000  # that the kernel grants
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """Have the kernel send SIGTERM when the parent dies. Raises OSError.

    The parent may already be gone: the caller compares `os.getppid()` with what it was before.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def set_timer_slack(slack_ns: int) -> None:
    """How late the kernel may wake the calling thread from a timed wait. Raises OSError."""
    _prctl(_PR_SET_TIMERSLACK, slack_ns)


def set_time_slice(slice_ns: int) -> bool:
    """How long the calling thread runs before it yields to equals (100 µs to 100 ms).

    A thread that wakes interrupts one with a longer slice at once, instead of waiting for up to
    4 ms (EEVDF, Linux 6.12 and later). False where the kernel does not do that.
    """
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    # struct sched_attr: size, policy (0: SCHED_OTHER), flags, nice, priority, runtime (the slice),
    # deadline, period
    attributes = struct.pack("=IIQiIQQQ", 48, 0, 0, nice, 0, slice_ns, 0, 0)
    return bool(_libc.syscall(ctypes.c_long(number), 0, attributes, 0) == 0)


def set_thread_nice(nice: int) -> None:
    """Niceness of the calling thread alone. Raises OSError for a value below the present one."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)


def pin_to_cpu(cpu: int) -> None:
    """Run the calling thread, and all it starts from now on, on one CPU. Raises OSError."""
    os.sched_setaffinity(0, {cpu})


def num_usable_cpus() -> int:
    return len(os.sched_getaffinity(0))


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}, {value}): {os.strerror(error)}")
