"""`remontoir top`: figures from events, the screen they become, and how it ends."""

import http.server
import io
import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from rich.console import Console

from gateway.command.client import Client, ClientError
from gateway.command.top import run
from gateway.command.top_figures import MAX_WORST, TopFigures
from gateway.command.top_screen import screen
from tests.gateway.running import ROOT, environment

BOTH = {"rejected:slo_infeasible_now": 3, "rejected:quota_exceeded": 50}


def snapshot(**changes: Any) -> dict[str, Any]:
    model = {
        "name": "resnet",
        "version": "1",
        "pages": 2,
        "weights_bytes": 1,
        "default_slo_ms": 100.0,
        "batch_sizes": [1],
        "load_ms": 5.0,
        "exec_ms": {"1": 3.0},
        "shapes": 1,
        "pinned": False,
        "unavailable_reason": None,
    }
    device = {
        "worker": "gpu-0",
        "kind": "cpu",
        "page_bytes": 16 << 20,
        "total_pages": 8,
        "shares_exec_core": False,
        "holds": [0, 2, 2],
    }
    return {
        "epoch": 1,
        "seq": 0,
        "at_us": 1_000_000,
        "version": "1.2.3",
        "interval_ms": 500.0,
        "phase": "serving",
        "clients_own": ["quota_exceeded"],
        "remedies": {"slo_infeasible_now": "More devices.", "quota_exceeded": "Fewer requests."},
        "models": [model, {**model, "name": "bad", "unavailable_reason": "not ONNX"}],
        "devices": [device],
        "lost": ["gpu-9"],
        "counts": [[0, 100, 0, 0, 0, 500, 1, 1, 0, {}]],
        "figures": [[0, 6, 0, 250, 0.0, None, None, None, None]],
        "worst": [],
        "scaling": None,
        "unnamed": {},
        **changes,
    }


def frame(**changes: Any) -> dict[str, Any]:
    return {
        "epoch": 1,
        "seq": 1,
        "at_us": 11_000_000,
        "counts": [[0, 107, 0, 0, 4, 570, 1, 1, 0, BOTH]],
        "figures": [[0, 5, 2, 250, 0.0, None, None, None, None]],
        "bars": [
            [0, 0, 0, 1_000_000, 6_000_000, 5_000_000, 1, 1, True],
            [0, 1, 0, 6_000_000, 7_000_000, 1_000_000, 0, 1, True],
        ],
        "holds": [],
        "worst": [],
        "scaling": {"devices": 1, "recommended": 3, "load": 1.8, "forecast": 2, "error": None},
        "unnamed": {},
        **changes,
    }


def request(request_id: str, at_us: int, slack_ms: float | None, reason: str | None) -> Any:
    return {
        "request_id": request_id,
        "model": "resnet",
        "outcome": "served" if reason is None else "rejected",
        "reason": reason,
        "detail": "predicted 41.0 ms",
        "slo_ms": 25.0,
        "slack_ms": slack_ms,
        "at_us": at_us,
    }


def printed(figures: TopFigures, *, width: int, height: int, order: str = "goodput") -> str:
    out = Console(file=io.StringIO(), width=width, height=height)
    with out.capture() as text:
        out.print(screen(figures, url="http://h:1", width=width, height=height, order=order))
    return text.get()


def test_rates_are_of_what_came_since_it_was_opened() -> None:
    figures = TopFigures()
    figures.on_event("snapshot", snapshot())
    figures.on_event("frame", frame())
    resnet, bad = figures.models()
    assert (resnet.goodput, resnet.missed, resnet.queued) == (0.7, 3, 4)
    assert resnet.attainment == 0.7  # a quota that is used up is no broken promise
    assert resnet.latency_ms == 10.0
    assert (resnet.state, bad.state) == ("resident on 1", "unavailable")
    assert bad.attainment is None
    assert figures.reasons() == [
        ("rejected:quota_exceeded", 50, 50),
        ("rejected:slo_infeasible_now", 3, 3),
    ]


def test_lanes_are_shares_and_slices_of_ten_seconds() -> None:
    figures = TopFigures()
    figures.on_event("snapshot", snapshot())
    figures.on_event("frame", frame())
    [line] = figures.devices(10)
    assert (line.exec_share, line.load_share) == (0.5, 0.1)
    assert line.exec_slices == [1.0] * 5 + [0.0] * 5
    assert line.load_slices == [0.0] * 5 + [1.0] + [0.0] * 4
    assert (line.pages_free, line.total_pages, line.outstanding) == (5, 8, 2)


def test_what_is_older_than_the_window_counts_no_more() -> None:
    figures = TopFigures()
    figures.on_event("snapshot", snapshot())
    figures.on_event("frame", frame())
    later = [[0, 110, 0, 0, 0, 600, 1, 1, 0, BOTH]]
    figures.on_event("frame", frame(at_us=100_000_000, counts=later))
    resnet, _ = figures.models()
    assert (resnet.goodput, resnet.missed) == (0.1, 0)
    figures.on_event("frame", frame(at_us=140_000_000, counts=[]))
    resnet, _ = figures.models()
    assert (resnet.goodput, resnet.latency_ms) == (0.0, None)


def test_devices_are_in_the_order_of_their_names() -> None:
    figures = TopFigures()
    [device] = snapshot()["devices"]
    named = [{**device, "worker": name} for name in ("gpu-10", "gpu-9", "cpu")]
    figures.on_event("snapshot", snapshot(devices=named))
    assert [line.worker for line in figures.devices(1)] == ["cpu", "gpu-9", "gpu-10"]


def test_frames_of_another_epoch_wait_for_their_snapshot() -> None:
    figures = TopFigures()
    figures.on_event("snapshot", snapshot())
    figures.on_event("frame", frame(epoch=2))
    assert figures.num_frames == 0
    figures.on_event("snapshot", snapshot(epoch=2, devices=[], figures=[], at_us=2_000_000))
    assert list(figures.devices(10)) == []


def test_another_process_at_the_address_starts_from_nothing() -> None:
    figures = TopFigures()
    figures.on_event("snapshot", snapshot())
    figures.on_event("frame", frame())
    figures.on_event("snapshot", snapshot(at_us=5))
    resnet, _ = figures.models()
    assert (resnet.goodput, resnet.missed) == (0.0, 0)


@pytest.mark.parametrize("order", ["goodput", "misses", "name"])
def test_the_screen_says_all_of_it_in_the_lines_that_there_are(order: str) -> None:
    figures = TopFigures()
    many = [{**snapshot()["models"][0], "name": f"m{n:03}"} for n in range(1000)]
    devices = snapshot()["devices"] * 64
    figures.on_event("snapshot", snapshot(models=many, devices=devices, figures=[]))
    figures.on_event("frame", frame(counts=[[0, 107, 0, 0, 4, 570, 1, 1, 0, BOTH]], figures=[]))
    out = Console(file=io.StringIO(), width=100, height=40)
    shown = screen(figures, url="http://h:1", width=100, height=40, order=order, note="paused")
    with out.capture() as text:
        out.print(shown)
    lines = text.get().splitlines()
    assert len(lines) <= 40
    whole = "\n".join(lines)
    for said in ("1.2.3 at http://h:1, serving", "paused", "of 64)", "of 1000)", "quota exceeded"):
        assert said in whole
    assert "lost: gpu-9" in whole


def test_what_helps_is_said_where_there_is_room_and_numbers_are_never_cut() -> None:
    figures = TopFigures()
    name = "a_model_with_a_name_too_long_for_a_narrow_terminal"
    [model, _] = snapshot()["models"]
    figures.on_event("snapshot", snapshot(models=[{**model, "name": name}]))
    figures.on_event("frame", frame())
    wide, narrow = printed(figures, width=120, height=24), printed(figures, width=80, height=24)
    assert "slo infeasible now, rejected     3            3  More devices." in wide
    assert "More devices." not in narrow
    assert "slo infeasible now, rejected     3            3" in narrow
    assert name in wide
    assert name not in narrow
    for numbers in ("0.7   70.0 %       3  10.0        4      2", "devices 1, advised 3"):
        assert numbers in wide
        assert numbers in narrow
    assert all(len(line) <= 80 for line in narrow.splitlines())


def test_the_worst_requests_of_the_window_are_named_in_a_tall_terminal() -> None:
    figures = TopFigures()
    figures.on_event("snapshot", snapshot(worst=[request("old", 1_000_000, -900, "overloaded")]))
    told = [
        request("tight", 60_000_000, 0.5, None),
        request("worse", 60_000_000, -16, "slo_infeasible_now"),
        request("unforeseen", 60_000_000, None, "no_worker"),
    ]
    figures.on_event("frame", frame(at_us=61_000_000, worst=told))
    assert [line.request_id for line in figures.worst()] == ["worse", "unforeseen", "tight"]
    assert "slo_infeasible_now: predicted 41.0 ms" in printed(figures, width=120, height=40)
    assert "worse" not in printed(figures, width=120, height=24)
    # a flood of them leaves the worst, in bounded memory
    many = [request(f"r{n}", 61_000_000, -n, "overloaded") for n in range(1000)]
    for start in range(0, 1000, 20):
        figures.on_event("frame", frame(at_us=61_000_000, worst=many[start : start + 20]))
    assert figures.worst()[0].request_id == "r999"
    assert len(figures.worst()) <= MAX_WORST


class Stream(httpx.SyncByteStream):
    def __init__(self, *events: tuple[str, str]) -> None:
        self._events = events

    def __iter__(self) -> Iterator[bytes]:
        yield b"retry: 2000\n\n"
        for name, data in self._events:
            yield f"event: {name}\ndata: {data}\n\n".encode()


def client(status: int, content: Any, **more: Any) -> Client:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/ui/events"
        assert request.headers["authorization"] == "Bearer k"
        return httpx.Response(status, **{"stream": content} if status == 200 else {"json": content})

    return Client("http://h:1", api_key="k", transport=httpx.MockTransport(answer), **more)


def test_into_a_pipe_it_prints_one_picture() -> None:
    told = [("snapshot", json.dumps(snapshot())), *[("frame", json.dumps(frame()))] * 3]
    out = Console(file=io.StringIO(), width=120)
    with client(200, Stream(*told)) as gateway:
        run(gateway, "http://h:1", out, once=False)
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("Remontoir 1.2.3") == 1
    assert "resnet" in text


def test_a_refusal_is_one_line() -> None:
    body = {"reason": "forbidden", "detail": "GET /ui/events needs an admin"}
    with (
        client(403, body) as gateway,
        pytest.raises(ClientError, match=r"^403 forbidden: GET /ui/events needs an admin$"),
    ):
        run(gateway, "http://h:1", Console(file=io.StringIO()), once=True)


def test_a_stream_that_ends_at_once_says_why() -> None:
    with (
        client(200, Stream(("end", '{"reason": "draining"}'))) as gateway,
        pytest.raises(ClientError, match="ended the stream: draining"),
    ):
        run(gateway, "http://h:1", Console(file=io.StringIO()), once=True)


def test_q_quits_on_a_terminal(tmp_path: Any) -> None:
    """A real terminal, a server that says nothing."""
    has_asked, may_end = threading.Event(), threading.Event()

    class Quiet(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            has_asked.set()
            may_end.wait(60)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "gateway",
                "top",
                "--url",
                f"http://127.0.0.1:{server.server_port}",
            ],
            cwd=ROOT,
            env=environment(TERM="xterm"),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        assert has_asked.wait(60)
        os.write(ours, b"q")
        assert process.wait(60) == 0
    finally:
        may_end.set()
        server.shutdown()
        server.server_close()
        thread.join()
        os.close(ours)
        os.close(theirs)
