import io
from typing import Any

import pytest
from rich.console import Console

from gateway.command.client import Answer
from gateway.command.display import print_answer

BODY = {
    "model_name": "g",
    "model_version": "1",
    "outputs": [],
    "slo": {
        "slo_ms": 50.0,
        "latency_ms": 3.0,
        "slack_ms": 47.0,
        "predicted_ms": 4.0,
        "cold_start": False,
    },
    "timing_ms": dict.fromkeys(("queue", "load", "input", "exec", "output"), 0.5),
}


@pytest.mark.parametrize(
    ("members", "end"),
    [
        ({}, "predicted 4.0 ms"),
        ({"cache": "miss"}, "predicted 4.0 ms"),
        ({"cache": "hit"}, "predicted 4.0 ms, from the cache"),
        ({"cache": "shared"}, "predicted 4.0 ms, from an identical request's execution"),
        ({"variant": "small"}, "predicted 4.0 ms, by small"),
    ],
)
def test_who_answered_is_said_where_that_is_not_the_model_that_was_asked(
    members: dict[str, Any], end: str
) -> None:
    console = Console(file=io.StringIO(), width=120)
    print_answer(console, Answer({**BODY, **members}, round_trip_ms=5.0))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().rstrip().endswith(end)
