"""The live page in headless Chromium, against a gateway under load: `make e2e-ui`.

Playwright goes into an environment that is made for this and goes with it. Chromium is the system's
(Debian: apt install chromium) or the one of $CHROMIUM; without one it says so and does nothing.
`--pictures DIR` keeps the pictures that are looked at before they go into docs/. Needs an index of
packages, and three minutes.
"""

import argparse
import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import httpx
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gateway.tenants.api_keys import new_key
from tests.e2e.tools import LeftOut, environment_with, run
from tests.gateway.running import ROOT, environment, running_gateway

# Measured with this one.
PLAYWRIGHT = "playwright==1.65.2"
NUM_CLIENTS = 24
NAMES = ("chromium", "chromium-browser", "google-chrome")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=Path, metavar="DIR")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="remontoir-ui-") as scratch:
        home = Path(scratch)
        pictures = (asked.pictures or home).resolve()
        pictures.mkdir(parents=True, exist_ok=True)
        try:
            chromium = _chromium()
            python = environment_with(home / "playwright", PLAYWRIGHT)
        except LeftOut as why:
            print(f"e2e-ui: left out: {why}")
            return 0
        script = ROOT / "tests" / "e2e" / "ui_browser.py"
        try:
            with live_gateway(home) as (url, key):
                print(run(python, script, chromium, pictures, "live", url, key), end="", flush=True)
            with stage() as url:
                print(run(python, script, chromium, pictures, "scale", url), end="", flush=True)
        except subprocess.CalledProcessError as error:
            print(f"e2e-ui: FAILED\n{error.stdout}")
            return 1
        for picture in pictures.glob("ui-*.png"):
            _shrink(picture)
    return 0


def _shrink(picture: Path) -> None:
    """To what a repository can hold: the page has few colours."""
    with Image.open(picture) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(picture, optimize=True)


def _chromium() -> str:
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise LeftOut(f"there is no Chromium (looked for {', '.join(NAMES)} and $CHROMIUM)")
    return found


@contextmanager
def live_gateway(home: Path) -> Iterator[tuple[str, str]]:
    """Three emulated devices, more models than fit, clients that ask for too much now and then."""
    key = new_key()
    tenants = home / "tenants.yaml"
    tenants.write_text(f'tenants: {{ops: {{admin: true, keys: ["{key.line}"]}}}}\n')
    flags = ("--emulate", "clockwork-v100:3", "--cache-mb", "1024", "--drain-s", "0")
    with running_gateway(*flags, "--tenants", str(tenants), scratch=home) as gateway:
        headers = {"authorization": f"Bearer {key.text}"}
        models = httpx.get(f"{gateway.url}/models", headers=headers).json()["models"]
        with load(gateway.url, headers, [model["name"] for model in models]):
            yield gateway.url, key.text


@contextmanager
def load(url: str, headers: dict[str, str], names: list[str]) -> Iterator[None]:
    """NUM_CLIENTS that ask again and again, in a thread of their own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(_ask(url, headers, names),))
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(_cancel_all, loop)
        thread.join()
        loop.close()


async def _ask(url: str, headers: dict[str, str], names: list[str]) -> None:
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:

        async def person(number: int) -> None:
            chance = Random(number)
            x = {"name": "x", "shape": [1, 1], "datatype": "UINT8", "data": [0]}
            while True:
                name = names[min(int(chance.expovariate(0.25)), len(names) - 1)]
                slo_ms = chance.choice((8, 25, 50, 100, 250))
                body = {"model": name, "slo_ms": slo_ms, "inputs": [x]}
                with contextlib.suppress(httpx.HTTPError):
                    await client.post("/infer", json=body)
                await asyncio.sleep(chance.expovariate(12))

        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*map(person, range(NUM_CLIENTS)))


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()


@contextmanager
def stage() -> Iterator[str]:
    """ui_stage.py, with 1,000 models on 64 devices."""
    command = [sys.executable, str(ROOT / "tests" / "e2e" / "ui_stage.py"), "--per-second", "300"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    sys.exit(main())
