"""Arithmetic on facts."""

import msgspec
import pytest

from scheduler.spec import public_name, shape_key_of
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


def test_a_version_that_came_later_has_a_name_of_its_own_in_the_scheduler_alone() -> None:
    first = model_spec("m")
    later = msgspec.structs.replace(first, scheduled_as="m/2")
    assert (first.key, later.key) == ("m", "m/2")
    in_the_scheduler = msgspec.structs.replace(later, name=later.key, scheduled_as="")
    assert [spec.public_name for spec in (first, later, in_the_scheduler)] == ["m"] * 3
    assert public_name("m/2") == public_name("m") == "m"
