"""Cross-origin requests, as a browser sends them: both ways through the server say the same."""

import asyncio
import json

import pytest

from gateway.http.cors import Cors, OriginError, origins_of
from tests.gateway.http_doubles import fp32, mlp_body, outputs, served
from tests.gateway.listening import Connection, body_of, listening, run

MLP_OUTPUTS = outputs(((1, 2), fp32(0.5, 0.25)))
APP = "https://app.example.com"
PREFLIGHT = (
    "OPTIONS {path} HTTP/1.1\r\nHost: x\r\nOrigin: {origin}\r\n"
    "Access-Control-Request-Method: POST\r\n"
    "Access-Control-Request-Headers: content-type,x-slo-ms,authorization\r\n\r\n"
)


async def preflight(connection: Connection, origin: str, path: str = "/infer") -> dict[str, str]:
    connection.writer.write(PREFLIGHT.format(path=path, origin=origin).encode())
    status, headers, _ = await connection.answer()
    assert (status == 200) is ("access-control-allow-origin" in headers)
    return headers


@pytest.mark.parametrize("path", ["/infer", "/v2/models/mlp/infer", "/models", "/metrics"])
def test_a_preflight_of_an_allowed_page_is_answered_at_every_route(path: str) -> None:
    async def story() -> None:
        async with listening(True, cors=Cors((APP,))) as gateway:
            headers = await preflight(await gateway.connect(), APP, path)
            assert headers["access-control-allow-origin"] == APP
            assert headers["access-control-allow-methods"] == "get, head, post"
            asked = "content-type,x-slo-ms,authorization"
            assert headers["access-control-allow-headers"] == asked
            assert headers["access-control-max-age"] == "7200"
            assert "origin" in headers["vary"]
            assert "access-control-allow-credentials" not in headers
            assert headers["x-request-id"]
            assert gateway.submitted.empty()

    run(story)


def test_a_preflight_of_another_page_is_refused() -> None:
    async def story() -> None:
        async with listening(True, cors=Cors((APP,))) as gateway:
            for origin in ("https://evil.example", f"{APP}.evil.example", "null"):
                assert "access-control-allow-origin" not in await preflight(
                    await gateway.connect(), origin
                )

    run(story)


@pytest.mark.parametrize("origins", [(APP, "http://localhost:3000"), ("*",)], ids=["two", "any"])
@pytest.mark.parametrize(
    "origin", [APP, "http://localhost:3000", "https://evil.example", None], ids=str
)
@pytest.mark.parametrize("is_served", [True, False], ids=["served", "refused"])
def test_both_ways_give_an_answer_the_same_headers(
    origins: tuple[str, ...], origin: str | None, is_served: bool
) -> None:
    async def story() -> None:
        seen = []
        for path in ("/infer", "/infer?long=1"):  # the query goes uvicorn's way
            async with listening(True, cors=Cors(origins)) as gateway:
                connection = await gateway.connect()
                said = "" if origin is None else f"Origin: {origin}\r\n"
                connection.send(
                    body_of(mlp_body()) if is_served else b"{",
                    headers=f"{said}X-Request-Id: one\r\n",
                    path=path,
                )
                if is_served:
                    (await gateway.submitted.get()).on_done(served(), MLP_OUTPUTS)
                status, headers, _ = await connection.answer()
                assert (status == 200) is is_served
                seen.append({name: v for name, v in headers.items() if name != "date"})
        assert seen[0] == seen[1]
        is_allowed = origin is not None and (origin in origins or "*" in origins)
        allowed = origins[0] if "*" in origins else origin
        assert seen[0].get("access-control-allow-origin") == (allowed if is_allowed else None)
        exposed = seen[0].get("access-control-expose-headers", "")
        assert ("x-remontoir-reason" in exposed) is (origin is not None)
        assert seen[0]["vary"] == "origin"

    run(story)


def test_answers_in_flight_keep_their_own_origin() -> None:
    """The next request on the connection is read before the first is answered."""

    async def story() -> None:
        async with listening(True, cors=Cors((APP, "https://b.example"))) as gateway:
            connection = await gateway.connect()
            body = body_of(mlp_body())
            connection.send(body, headers=f"Origin: {APP}\r\n")
            first = await gateway.submitted.get()
            connection.send(body, headers="Origin: https://b.example\r\n")
            await asyncio.sleep(0)
            first.on_done(served(), MLP_OUTPUTS)
            assert (await connection.answer())[1]["access-control-allow-origin"] == APP
            (await gateway.submitted.get()).on_done(served(), MLP_OUTPUTS)
            headers = (await connection.answer())[1]
            assert headers["access-control-allow-origin"] == "https://b.example"

    run(story)


def test_without_the_setting_nothing_is_said_and_a_preflight_is_a_wrong_method() -> None:
    async def story() -> None:
        async with listening(True) as gateway:
            connection = await gateway.connect()
            connection.writer.write(PREFLIGHT.format(path="/infer", origin=APP).encode())
            status, headers, body = await connection.answer()
            assert (status, json.loads(body)["reason"]) == (405, "method_not_allowed")
            connection.send(body_of(mlp_body()), headers=f"Origin: {APP}\r\n")
            (await gateway.submitted.get()).on_done(served(), MLP_OUTPUTS)
            _, served_headers, _ = await connection.answer()
            for name in (*headers, *served_headers):
                assert not name.startswith("access-control-")
                assert name != "vary"

    run(story)


def test_origins_are_written_with_commas() -> None:
    assert origins_of(f"{APP}, http://localhost:3000") == (APP, "http://localhost:3000")
    assert origins_of("http://[::1]:3000") == ("http://[::1]:3000",)
    assert origins_of(" * ") == ("*",)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "app.example.com",
        "https://",
        "https://app.example.com/",
        "https://app.example.com/page",
        "https://App.example.com",
        "https://*.example.com",
        "https://user@example.com",
        "https://a.example:port",
        "https://a.example:0",
        "https://a b",
        f"*,{APP}",
        f"{APP},",
        "null",
    ],
)
def test_what_is_no_origin_is_named(text: str) -> None:
    with pytest.raises(OriginError, match="is no origin: expected SCHEME://HOST"):
        origins_of(text)
