"""`/ui` over HTTP: what is served to whom, and what is not."""

import asyncio

import pytest

from gateway.config import GatewayConfig
from gateway.tenants.api_keys import new_key
from gateway.tenants.tenants_file import TenantSpec
from tests.gateway.http_doubles import Bench, refused, run, settle
from tests.gateway.live_stage import parsed
from tests.gateway.running import ROOT

OPS, SHOP = new_key(), new_key()
FILES = sorted(path.name for path in (ROOT / "gateway" / "ui").iterdir())


def with_tenants() -> Bench:
    return Bench(
        tenants={
            "ops": TenantSpec(keys=(OPS.line,), admin=True),
            "shop": TenantSpec(keys=(SHOP.line,)),
        }
    )


def test_the_page_and_all_it_is_made_of_are_served_and_nothing_else() -> None:
    async def story() -> None:
        bench = Bench()
        page = await bench.get("/ui")
        assert page.status == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.body == (ROOT / "gateway" / "ui" / "index.html").read_bytes()
        for name in FILES:
            file = await bench.get(f"/ui/files/{name}")
            if name.endswith((".js", ".css", ".svg", ".html")):
                assert file.body == (ROOT / "gateway" / "ui" / name).read_bytes()
                assert file.headers["x-content-type-options"] == "nosniff"
            else:
                refused(file, 404, "not_found")
        for path in ("/ui/files/..%2fconfig.py", "/ui/files/config.py", "/ui/files/"):
            refused(await bench.get(path), 404, "not_found")

    run(story)


def test_the_page_may_load_nothing_from_elsewhere() -> None:
    async def story() -> None:
        policy = (await Bench().get("/ui")).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy

    run(story)
    for name in FILES:
        if name.endswith((".js", ".css", ".html")) and not name.startswith("uPlot"):
            text = (ROOT / "gateway" / "ui" / name).read_text("utf-8")
            assert "://" not in text.replace("http://www.w3.org/", ""), name


def test_events_stream_until_the_reader_goes() -> None:
    async def story() -> None:
        bench = Bench()
        client = bench.client()
        client.start("GET", "/ui/events", {})
        client.give(b"")
        await settle(60)
        assert client.status == 200
        assert client.headers["content-type"].startswith("text/event-stream")
        assert client.headers["cache-control"] == "no-store"
        assert [event.name for event in parsed(client.body)] == ["snapshot"]
        client.hang_up()
        assert client.task is not None
        await client.task
        await settle()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(story)


def test_with_tenants_the_page_is_open_and_its_events_need_an_admin() -> None:
    async def story() -> None:
        bench = with_tenants()
        assert (await bench.get("/ui")).status == 200
        assert (await bench.get("/ui/files/style.css")).status == 200
        refused(await bench.get("/ui/events"), 401, "unauthenticated")
        key = {"authorization": f"Bearer {SHOP.text}"}
        told = refused(await bench.get("/ui/events", **key), 403, "forbidden")
        assert "/ui/events" in told["detail"]
        client = bench.client()
        client.start("GET", "/ui/events", {"authorization": f"Bearer {OPS.text}"})
        client.give(b"")
        await settle(60)
        assert client.status == 200
        client.hang_up()
        assert client.task is not None
        await client.task

    run(story)


@pytest.mark.parametrize("path", ["/ui", "/ui/files/style.css", "/ui/events"])
def test_a_page_that_is_turned_off_is_not_there(path: str) -> None:
    async def story() -> None:
        client = await Bench(config=GatewayConfig(ui_pages=0)).get(path)
        assert "ui_pages is 0" in refused(client, 404, "not_found")["detail"]

    run(story)
