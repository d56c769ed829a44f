"""Arithmetic on facts."""

import pytest

from scheduler.spec import shape_key_of
from tests.scheduler.story import PAGE_BYTES, model_spec


@pytest.mark.parametrize(
    ("pages", "expected"), [(0, 1), (1, 1), (1 + 1 / PAGE_BYTES, 2), (3, 3), (2.5, 3)]
)
def test_weights_take_whole_pages_and_at_least_one(pages: float, expected: int) -> None:
    assert model_spec(pages=pages).num_pages(PAGE_BYTES) == expected  # type: ignore[arg-type]


def test_the_largest_batch_is_the_last_compiled_size() -> None:
    assert model_spec(exec_ms={1: 1, 4: 2, 16: 3}).max_batch_rows == 16


def test_a_shape_class_is_named_by_its_shapes() -> None:
    assert shape_key_of(((3, 48, 320), (1,), ())) == "3x48x320;1;"
    assert shape_key_of(()) == ""
