import ctypes
import platform
import struct
import threading

import pytest

from gpuworker import linux

SCHED_GETATTR = {"x86_64": 315, "aarch64": 275}


def slice_ns() -> int:
    """The calling thread's, as the kernel has it."""
    number = SCHED_GETATTR[platform.machine()]
    attributes = ctypes.create_string_buffer(48)
    assert ctypes.CDLL(None).syscall(ctypes.c_long(number), 0, attributes, 48, 0) == 0
    return int(struct.unpack_from("=IIQiIQQQ", attributes)[5])


@pytest.mark.skipif(platform.machine() not in SCHED_GETATTR, reason="system call number unknown")
def test_a_thread_takes_turns_of_its_own_length() -> None:
    seen = []

    def long_turns() -> None:
        is_set = linux.set_time_slice(10_000_000)
        seen.append((is_set, slice_ns()))

    before = slice_ns()
    thread = threading.Thread(target=long_turns)
    thread.start()
    thread.join()
    if seen[0][1] == before:
        pytest.skip("this kernel does not let a thread choose (Linux 6.12 and later do)")
    assert seen == [(True, 10_000_000)]
    assert slice_ns() == before
