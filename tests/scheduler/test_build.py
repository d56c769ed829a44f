"""What the core says of itself is what it is."""

from scheduler import build
from scheduler.timers import Timers


def test_the_build_that_runs_is_named() -> None:
    is_pure = type(Timers.set).__name__ == "function"  # mypyc makes a method_descriptor of it
    assert build.IS_COMPILED is not is_pure
    assert build.describe() == ("pure Python core" if is_pure else "compiled core")
