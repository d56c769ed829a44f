import gc
import tracemalloc

import pytest

from gateway.inference.prediction_cache import ENTRY_BYTES, TENSOR_BYTES, PredictionCache
from gateway.open_requests import Outputs
from scheduler.wire import TensorMeta
from tests.gateway.http_doubles import outputs

ONE = ENTRY_BYTES + TENSOR_BYTES  # an entry of one tensor, without its bytes


def answer(*tensors: bytes, energy_mj: float | None = None) -> Outputs:
    made = outputs(*[((1, len(data)), data) for data in tensors])
    return Outputs(made.tensors, made.views, energy_mj)


def key(number: int) -> bytes:
    return number.to_bytes(32)


def test_what_was_put_in_comes_out_as_a_copy_without_its_energy() -> None:
    cache = PredictionCache(1 << 20)
    batch = bytearray(b"abcd1234")
    made = Outputs((TensorMeta((1, 4), 4),), [memoryview(batch)[:4]], 12.5)
    cache.put(key(1), made)
    batch[:] = b"xxxxxxxx"
    found = cache.get(key(1))
    assert found == Outputs((TensorMeta((1, 4), 4),), [memoryview(b"abcd")])
    assert cache.get(key(2)) is None
    assert (key(1) in cache, key(2) in cache, len(cache)) == (True, False, 1)


def test_the_least_recently_used_goes_first_and_only_for_room() -> None:
    cache = PredictionCache(3 * (ONE + 100))
    for number in (1, 2, 3):
        cache.put(key(number), answer(bytes(100)))
    assert (cache.num_bytes, cache.num_evicted) == (cache.max_bytes, 0)
    cache.get(key(1))
    cache.put(key(4), answer(bytes(100)))
    assert [number for number in (1, 2, 3, 4) if key(number) in cache] == [1, 3, 4]
    assert (cache.num_bytes, cache.num_evicted) == (cache.max_bytes, 1)
    cache.put(key(5), answer(bytes(ONE + 200)))  # as large as two
    assert [number for number in (1, 3, 4, 5) if key(number) in cache] == [4, 5]


def test_to_look_is_not_to_use() -> None:
    cache = PredictionCache(2 * ONE)
    cache.put(key(1), answer(b""))
    cache.put(key(2), answer(b""))
    assert key(1) in cache
    cache.put(key(3), answer(b""))
    assert key(1) not in cache


def test_an_answer_over_the_budget_is_counted_and_makes_no_room() -> None:
    cache = PredictionCache(ONE + 100)
    cache.put(key(1), answer(bytes(100)))
    cache.put(key(2), answer(bytes(101)))
    assert (len(cache), cache.num_too_large, cache.num_evicted) == (1, 1, 0)


def test_without_a_budget_nothing_is_kept_and_nothing_counted() -> None:
    cache = PredictionCache(0)
    cache.put(key(1), answer(b"1"))
    assert (len(cache), cache.num_bytes, cache.num_too_large) == (0, 0, 0)


def test_the_same_key_again_replaces_and_is_counted_once() -> None:
    cache = PredictionCache(1 << 20)
    cache.put(key(1), answer(bytes(100)))
    cache.put(key(1), answer(b"abc"))
    assert (len(cache), cache.num_bytes) == (1, ONE + 3)
    cache.clear()
    assert (len(cache), cache.num_bytes, cache.num_evicted) == (0, 0, 0)


@pytest.mark.parametrize(("num_tensors", "num_bytes"), [(1, 8), (1, 4000), (3, 200), (8, 40)])
def test_it_takes_no_more_memory_than_it_says(num_tensors: int, num_bytes: int) -> None:
    data = bytes(num_bytes)
    cache = PredictionCache(1 << 30)
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(2000):
            cache.put(key(number), answer(*[data] * num_tensors))
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.4 * cache.num_bytes < taken < cache.num_bytes
