"""Weights in memory that all GPUs' workers share, with real processes where there are two."""

import os
import resource
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest

from gpuworker.devices.host import DeviceError, memory_available_bytes
from gpuworker.devices.host_store import HostStore, share
from gpuworker.devices.pages import Bytes
from tests.gpuworker.store_process import Unpinned, content

ROOT = Path(__file__).parent.parent.parent
BYTES = 10_000  # no whole number of pages


class StoreProcess:
    """tests/gpuworker/store_process.py, spoken to line by line."""

    def __init__(self, descriptor: int) -> None:
        command = [sys.executable, "-m", "tests.gpuworker.store_process", str(descriptor)]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            pass_fds=[descriptor],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ask(self, *words: object) -> str:
        self.tell(*words)
        return self.answer()

    def tell(self, *words: object) -> None:
        assert self.process.stdin is not None
        print(*words, file=self.process.stdin, flush=True)

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def wait_until_locked_out(self) -> None:
        """Until the kernel lists it among those that wait for a lock of a file."""
        waits = f"ADVISORY  WRITE {self.process.pid} "
        while not any("->" in line and waits in line for line in _lines("/proc/locks")):
            assert self.process.poll() is None

    def end(self) -> str:
        """What it said on standard error."""
        said = self.process.communicate()[1]
        assert self.process.returncode == 0, said
        return said

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


class Start(Protocol):
    def __call__(self) -> StoreProcess: ...


@pytest.fixture
def descriptor() -> Iterator[int]:
    """Of a store for two models."""
    made = share({"a": BYTES, "b": BYTES})
    yield made
    os.close(made)


@pytest.fixture
def start(descriptor: int) -> Iterator[Start]:
    started: list[StoreProcess] = []

    def start_one() -> StoreProcess:
        started.append(StoreProcess(descriptor))
        return started[-1]

    yield start_one
    for one in started:
        if one.process.poll() is None:
            one.kill()


def crc32(seed: int, num_bytes: int = BYTES) -> str:
    return str(zlib.crc32(content(seed, num_bytes)))


def test_what_one_process_wrote_another_uses_and_has_no_copy_of(start: Start) -> None:
    first, second = start(), start()
    assert first.ask("keep", "a", 1, BYTES) == "kept"
    assert second.ask("keep", "a", 1, BYTES) == "kept"
    assert first.ask("sum", "a") == second.ask("sum", "a") == crc32(1)
    first.ask("flip", "a")
    assert second.ask("sum", "a") == first.ask("sum", "a") != crc32(1)
    assert first.end() == second.end() == ""


def test_models_do_not_touch_each_other(start: Start) -> None:
    first, second = start(), start()
    first.ask("keep", "a", 1, BYTES)
    second.ask("keep", "b", 2, BYTES)
    assert second.ask("keep", "a", 1, BYTES) == first.ask("keep", "b", 2, BYTES) == "kept"
    assert first.ask("sum", "b") == crc32(2)
    assert second.ask("sum", "a") == crc32(1)


def test_other_bytes_are_kept_apart_and_said(start: Start) -> None:
    first, second = start(), start()
    first.ask("keep", "a", 1, BYTES)
    second.ask("keep", "a", 2, BYTES)
    first.ask("flip", "a")
    assert second.ask("sum", "a") == crc32(2)
    assert first.end() == ""
    assert "a: its weights differ from another GPU's, and are kept apart" in second.end()


@pytest.mark.parametrize(("name", "num_bytes"), [("a", BYTES + 1), ("a", BYTES - 1), ("new", 5)])
def test_what_has_no_place_is_kept_apart(start: Start, name: str, num_bytes: int) -> None:
    """Plans of two kinds of cards have weights of two sizes; a model may have come since."""
    first, second = start(), start()
    for one in (first, second):
        one.ask("keep", name, 3, num_bytes)
    first.ask("flip", name)
    assert second.ask("sum", name) == crc32(3, num_bytes)


def test_who_comes_second_waits_until_the_first_has_written(start: Start) -> None:
    first, second = start(), start()
    first.tell("keep-endless", "a", BYTES)
    assert first.answer() == "writing"
    second.tell("keep", "a", 1, BYTES)
    second.wait_until_locked_out()
    # Another model's place is another lock.
    third = start()
    assert third.ask("keep", "b", 2, BYTES) == "kept"


def test_a_process_that_dies_while_it_writes_holds_nobody_up(start: Start) -> None:
    first, second, third = start(), start(), start()
    first.tell("keep-endless", "a", BYTES)
    assert first.answer() == "writing"
    second.tell("keep", "a", 1, BYTES)
    second.wait_until_locked_out()
    first.kill()
    assert second.answer() == "kept"  # it has written them itself: those of the dead do not count
    third.ask("keep", "a", 1, BYTES)
    second.ask("flip", "a")
    assert second.ask("sum", "a") == third.ask("sum", "a") != crc32(1)


def test_a_store_of_its_own_keeps_a_copy_in_pinned_memory_and_gives_it_back() -> None:
    pinned: list[tuple[int, int]] = []

    class Pinning(Unpinned):
        def pin(self, memory: Bytes) -> None:
            pinned.append((memory.ctypes.data, memory.nbytes))

        def unpin(self, memory: Bytes) -> None:
            pinned.remove((memory.ctypes.data, memory.nbytes))

    given = content(1, BYTES)
    store = HostStore(Pinning())
    kept = store.keep("a", given)
    given[:] = 0
    assert np.array_equal(kept, content(1, BYTES))
    assert pinned == [(kept.ctypes.data, 12288)]
    assert (store.drop("a"), store.drop("a")) == (12288, 0)
    assert pinned == []


def test_what_workers_share_is_not_given_back_by_one_of_them(descriptor: int) -> None:
    store = HostStore(Unpinned(), descriptor)
    store.keep("a", content(1, BYTES))
    assert store.drop("a") == 0


def test_each_models_place_is_pinned_once_and_in_whole_pages_of_the_host(descriptor: int) -> None:
    pinned: list[tuple[int, int]] = []

    class Pinning(Unpinned):
        def pin(self, memory: Bytes) -> None:
            pinned.append((memory.ctypes.data, memory.nbytes))

    store = HostStore(Pinning(), descriptor)
    kept = [store.keep(name, content(1, BYTES)).ctypes.data for name in ("a", "b", "a")]
    assert kept[0] == kept[2]
    assert all(address % 4096 == 0 for address in kept)
    assert pinned == [(kept[0], 12288), (kept[1], 12288)]


def test_weights_of_no_bytes_have_a_place_too() -> None:
    made = share({"empty": 0, "a": BYTES})
    try:
        store = HostStore(Unpinned(), made)
        assert store.keep("empty", content(1, 0)).nbytes == 0
        assert np.array_equal(store.keep("a", content(1, BYTES)), content(1, BYTES))
    finally:
        os.close(made)


def test_memory_that_cannot_be_pinned_costs_one_model_and_may_be_there_later(
    descriptor: int,
) -> None:
    refusals = [MemoryError("no more")]

    class Pinning(Unpinned):
        def pin(self, memory: Bytes) -> None:
            if refusals:
                raise refusals.pop()

    store = HostStore(Pinning(), descriptor)
    with pytest.raises(MemoryError, match="no more"):
        store.keep("a", content(1, BYTES))
    for name, seed in (("b", 2), ("a", 1)):
        assert np.array_equal(store.keep(name, content(seed, BYTES)), content(seed, BYTES))


@pytest.mark.parametrize(
    "held",
    [b"", b"short", b"\xff" * 8192, (2).to_bytes(8, "little") + b"[]" + bytes(4096)],
    ids=["empty", "short", "noise", "another index"],
)
def test_a_descriptor_of_something_else_is_refused(held: bytes) -> None:
    other = os.memfd_create("no-store")
    try:
        os.write(other, held)
        with pytest.raises(DeviceError, match=f"descriptor {other} is no store of weights"):
            HostStore(Unpinned(), other)
    finally:
        os.close(other)


def test_a_descriptor_that_is_not_open_or_no_file_is_refused() -> None:
    reading, writing = os.pipe()
    os.close(writing)
    with pytest.raises(DeviceError, match="is no store of weights"):
        HostStore(Unpinned(), reading)
    os.close(reading)
    with pytest.raises(DeviceError, match="is no store of weights"):
        HostStore(Unpinned(), reading)


def test_more_than_the_machine_has_is_refused_before_any_is_taken() -> None:
    before = memory_available_bytes()
    with pytest.raises(DeviceError, match=r"1073741824 MiB .* of all models: \d+ MiB are avail"):
        share({"a": 1 << 50})
    assert memory_available_bytes() > before // 2
    assert not _memfds()


def test_memory_that_the_system_refuses_is_said_and_given_back() -> None:
    """A limit on the size of files stands for whatever the system may have against it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(DeviceError, match="4 MiB for the weights of all models: "):
            share({"a": 4 << 20})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not _memfds()


def test_names_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DeviceError, match="1 models' names do not fit"):
        share({"a" * 70_000: 1})
    assert not _memfds()


def test_thousands_of_models_have_a_place_each() -> None:
    sizes = {f"model-{number}": number for number in range(3000)}
    made = share(sizes)
    try:
        store = HostStore(Unpinned(), made)
        views = {name: store.keep(name, content(n, n)) for name, n in sizes.items()}
        for name, n in sizes.items():
            assert np.array_equal(views[name], content(n, n))
    finally:
        os.close(made)


def _memfds() -> list[str]:
    links = (os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
    return [link for link in links if os.path.exists(link) and "weights-store" in os.readlink(link)]


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="ascii").splitlines()
