"""`remontoir requests`: what a person reads of GET /requests."""

import io
from typing import Any

import httpx
import pytest
from rich.console import Console

from gateway.command.client import Client, ClientError
from gateway.command.show_requests import show_list, show_story
from gateway.http.docs_page import read_contract

EXAMPLES = read_contract()["components"]["examples"]


class Told:
    """What is printed of an answer, and what was asked."""

    def __init__(self, body: Any, status: int = 200) -> None:
        self.asked: list[str] = []
        self._body = body
        self._status = status
        self.file = io.StringIO()
        self.console = Console(file=self.file, width=160, highlight=False)

    def client(self) -> Client:
        def answer(request: httpx.Request) -> httpx.Response:
            self.asked.append(request.url.raw_path.decode())
            return httpx.Response(self._status, json=self._body)

        return Client("http://h:1", transport=httpx.MockTransport(answer))

    @property
    def lines(self) -> list[str]:
        return [" ".join(line.split()) for line in self.file.getvalue().splitlines()]


def test_the_list_has_a_line_for_each() -> None:
    told = Told(EXAMPLES["RequestList"]["value"])
    with told.client() as client:
        show_list(client, told.console, worst=5, model="resnet50", outcome=None)
    assert told.asked == ["/requests?worst=5&model=resnet50"]
    assert told.lines == [
        "id arrived model SLO ms took ms slack ms outcome",
        "5b1f0c2a-1f 09:12:49.120 resnet50 25.0 0.210 -16.0 rejected slo_infeasible_now",
        "Of the last 10,000 answered. `remontoir requests ID` tells why.",
    ]


def test_a_request_that_named_no_model_and_one_that_was_served_fit_in() -> None:
    served = EXAMPLES["RequestServed"]["value"]
    bare = {**served, "model": None, "slo_ms": None, "slack_ms": None}
    told = Told({"requests": [bare], "kept": 1, "since": None})
    with told.client() as client:
        show_list(client, told.console, worst=None, model=None, outcome="served")
    assert told.asked == ["/requests?outcome=served"]
    assert told.lines[1] == "5b1f0c2a-7 09:12:49.120 - - 12.4 - served"


def test_an_empty_list_is_said() -> None:
    told = Told({"requests": [], "kept": 1234, "since": None})
    with told.client() as client:
        show_list(client, told.console, worst=None, model=None, outcome=None)
    assert told.lines == ["None of that kind among the last 1,234 answered."]


def test_a_story_is_told_with_its_timeline() -> None:
    story = EXAMPLES["RequestServed"]["value"]
    told = Told(story)
    with told.client() as client:
        show_story(client, told.console, "a/b")
    assert told.asked == ["/requests/a%2Fb"]
    text = told.file.getvalue().splitlines()
    assert text[: len(story["story"])] == story["story"]
    bars = text[len(story["story"]) + 1 : -1]
    assert [line.split()[0] for line in bars] == [phase["phase"] for phase in story["timeline"]]
    assert "queue      9.400 ms" in bars[1]
    assert bars[1].count("█") == 36  # of 48, for 9.4 of 12.4 ms
    assert text[-1] == f"trace {story['trace_id']}"
    untimed = {**story, "latency_ms": 0.0, "trace_id": None}
    told = Told(untimed)
    with told.client() as client:
        show_story(client, told.console, "r")
    assert "trace" not in told.file.getvalue()


def test_a_refused_ones_story_says_what_helps() -> None:
    story = EXAMPLES["RequestRefused"]["value"]
    told = Told(story)
    with told.client() as client:
        show_story(client, told.console, "r")
    assert f"What helps: {story['remedy']}" in told.lines


def test_a_refusal_is_one_line() -> None:
    responses = read_contract()["components"]["responses"]
    content = responses["NotFound"]["content"]["application/problem+json"]
    body = {**content["examples"]["not_found"]["value"], "detail": "request 'x' is unknown"}
    told = Told(body, 404)
    with told.client() as client, pytest.raises(ClientError, match="request 'x' is unknown"):
        show_story(client, told.console, "x")
