import json
import logging
import sys

import pytest

from gpuworker.logs import LogError, formatter

RECORD = logging.LogRecord("gpuworker.worker", logging.WARNING, "", 0, "said %d", (1,), None)


def test_a_line_of_json_says_which_worker_it_is_of() -> None:
    pytest.importorskip("structlog")
    line = json.loads(formatter("json", worker="gpu0").format(RECORD))
    assert line.pop("timestamp").endswith("Z")
    assert line.pop("pid") > 0
    assert line == {
        "message": "said 1",
        "level": "warning",
        "logger": "gpuworker.worker",
        "process": "gpuworker",
        "worker": "gpu0",
    }
    assert "worker" not in json.loads(formatter("json", worker=None).format(RECORD))
    assert "said 1" in formatter("pretty", worker=None).format(RECORD)


def test_a_worker_needs_structlog_for_json_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "structlog", None)
    with pytest.raises(LogError, match="needs structlog"):
        formatter("json", worker="gpu0")
    assert formatter("pretty", worker="gpu0").format(RECORD).endswith("WARNING said 1")
