"""What a worker says of itself, on a clock that stands; and over HTTP."""

import json
import socket
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from gpuworker.config import ConfigError
from gpuworker.health import (
    STANDS_STILL_NS,
    Board,
    Phase,
    Pulse,
    listen,
    new_board,
    problems,
    serve,
)

NOW_NS = 8_000_000_000_000
LATER_NS = NOW_NS + STANDS_STILL_NS


class Clock:
    now_ns = NOW_NS

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_worker_that_compiles_is_live_and_no_more(clock: Clock) -> None:
    board = new_board(1)
    Pulse(board, 0, clock)
    hours_later = NOW_NS + 3_600_000_000_000
    assert problems(board, "/livez", hours_later) == []
    assert problems(board, "/startz", NOW_NS) == ["worker 0: starting, last heard 0.0 s ago"]
    assert problems(board, "/readyz", NOW_NS) == ["worker 0: starting, last heard 0.0 s ago"]


def test_a_worker_without_a_gateway_has_started_and_is_not_ready(clock: Clock) -> None:
    board = new_board(1)
    Pulse(board, 0, clock).beat(is_joined=False)
    assert problems(board, "/startz", NOW_NS) == []
    assert problems(board, "/livez", NOW_NS) == []
    assert problems(board, "/readyz", NOW_NS) == ["worker 0: waiting, last heard 0.0 s ago"]


def test_a_worker_whose_main_thread_stands_still_is_neither_live_nor_ready(clock: Clock) -> None:
    board = new_board(1)
    pulse = Pulse(board, 0, clock)
    pulse.beat(is_joined=True)
    assert problems(board, "/livez", LATER_NS - 1) == problems(board, "/readyz", LATER_NS - 1) == []
    told = ["worker 0: joined, last heard 15.0 s ago"]
    assert problems(board, "/livez", LATER_NS) == problems(board, "/readyz", LATER_NS) == told
    clock.now_ns = LATER_NS
    pulse.beat(is_joined=True)
    assert problems(board, "/livez", LATER_NS) == problems(board, "/readyz", LATER_NS) == []


def test_all_of_a_machines_workers_must_be_well_and_the_one_that_is_not_is_named(
    clock: Clock,
) -> None:
    board = new_board(2)
    first, second = Pulse(board, 0, clock), Pulse(board, 1, clock)
    first.beat(is_joined=True)
    assert problems(board, "/startz", NOW_NS) == ["worker 1: starting, last heard 0.0 s ago"]
    second.beat(is_joined=True)
    assert problems(board, "/readyz", NOW_NS) == []


def test_a_worker_that_ended_for_good_is_no_reason_to_restart_the_others(clock: Clock) -> None:
    board = new_board(2)
    Pulse(board, 0, clock).end()
    Pulse(board, 1, clock).beat(is_joined=True)
    assert problems(board, "/livez", NOW_NS) == []
    assert problems(board, "/readyz", NOW_NS) == ["worker 0: ended, last heard 0.0 s ago"]


def test_processes_that_inherit_the_file_share_the_board(clock: Clock) -> None:
    ours = new_board(2)
    theirs = Board(ours.file, 2)
    Pulse(theirs, 1, clock).beat(is_joined=True)
    assert ours.read(1) == (Phase.JOINED, NOW_NS)


@pytest.fixture
def url(clock: Clock) -> str:
    board = new_board(1)
    Pulse(board, 0, clock).beat(is_joined=False)
    return f"http://127.0.0.1:{listen(board, 0, clock)}"


def test_probes_are_answered_over_http(url: str) -> None:
    with urlopen(f"{url}/livez", timeout=20) as reply:
        assert (reply.status, json.load(reply)) == (200, {"problems": []})
    for path, status in (("/readyz", 503), ("/", 404)):
        with pytest.raises(HTTPError) as caught:
            urlopen(url + path, timeout=20)
        with caught.value as reply:
            body = json.load(reply)
        assert (caught.value.code, body["problems"] is None) == (status, status == 404)


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"^--health-port {port}: Address already in use$"):
            serve(1, port)
