"""What a person does with the live page, done by Playwright; run by ui.py in Playwright's Python.

    ui_browser.py CHROMIUM PICTURES live URL KEY | scale URL

"live" wants a gateway under load whose worst requests have stories, and an admin's key for it;
"scale" one with 1,000 models and 64 devices. Waits for conditions, never for a time that should do.
"""

import re
import sys
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
PATIENCE_MS = 60_000
# Longest that the page may be deaf, in a headless browser without a GPU on a busy machine.
LONGEST_TASK_MS = 1000

# What is drawn, in one number: enough to see that it moved.
INK = """selector => {
  const canvas = document.querySelector(selector);
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let sum = 0;
  for (let i = 0; i < data.length; i += 4) sum = (sum * 31 + data[i] + data[i + 1] * 7) % 1e9;
  return sum;
}"""
WATCH_TASKS = """() => { window.longTasks = [];
  new PerformanceObserver(list => window.longTasks.push(...list.getEntries().map(e => e.duration)))
    .observe({ type: "longtask" }); }"""


class Visit:
    """One page, and everything that it complains of."""

    def __init__(self, browser: Browser, url: str, *, scheme: str = "light") -> None:
        context = browser.new_context(
            viewport={"width": 1280, "height": 900},
            color_scheme=scheme,  # type: ignore[arg-type]
            reduced_motion="no-preference",
        )
        self.page: Page = context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self._complain(str(error)))
        self.page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        self.page.goto(f"{url}/ui")

    def _on_console(self, message: object) -> None:
        kind, text = message.type, message.text  # type: ignore[attr-defined]
        # A refused request is said by the browser itself; the page shows it. The other is ours.
        is_known = "status of 401" in text or "willReadFrequently" in text
        if kind in ("error", "warning") and not is_known:
            self._complain(f"{kind}: {text}")

    def _complain(self, text: str) -> None:
        print(f"ui: the page complains: {text}")
        self.complaints.append(text)

    def is_live(self) -> None:
        expect(self.page.locator("#connection")).to_have_text("Live", timeout=PATIENCE_MS)

    def ends(self, url: str) -> None:
        assert not self.complaints, self.complaints
        assert self.hosts == {url.split("/")[2]}, self.hosts
        self.page.context.close()


def number(text: str) -> int:
    return int(re.sub(r"\D", "", text.split(" of ")[0]))


def live(browser: Browser, pictures: Path, url: str, key: str) -> None:
    visit = Visit(browser, url)
    page = visit.page
    # It needs a key, says so, and refuses a wrong one.
    expect(page.locator("#key-dialog")).to_be_visible(timeout=PATIENCE_MS)
    page.fill("#key-text", "rmt_kb34b37557710_" + "A" * 43)
    page.keyboard.press("Enter")
    expect(page.locator("#key-why")).to_contain_text("not valid", timeout=PATIENCE_MS)
    page.fill("#key-text", key)
    page.check("#key-keep")
    page.click("#key-use")
    visit.is_live()
    print("ui: asks for a key, and takes the right one")

    worst = page.locator("#worst tbody tr:not([hidden]) button")
    expect(worst.nth(5)).to_be_attached(timeout=PATIENCE_MS)
    moved(page, "#lanes canvas")
    page.click("#pause")
    before = page.evaluate(INK, "#lanes canvas")
    page.wait_for_timeout(300)
    assert page.evaluate(INK, "#lanes canvas") == before
    page.click("#pause")
    moved(page, "#lanes canvas")
    print("ui: the chart moves, and stands still when told to")

    worst.first.click()
    story = page.locator("#story")
    expect(story).to_be_visible()
    expect(story.locator("p").first).to_be_visible(timeout=PATIENCE_MS)
    expect(story.locator("table tbody tr").first).to_be_visible()
    page.screenshot(path=str(pictures / "ui-story.png"))
    page.keyboard.press("Escape")
    expect(story).to_be_hidden()
    print("ui: a story opens, and Escape closes it")

    everything = page.locator("#models tbody tr[aria-rowindex]:not([hidden])")
    page.fill("#filter-model", "resnet*")
    expect(page.locator("#filter-says")).to_contain_text(" of 64 models")
    for name in everything.locator("th").all_inner_texts():
        assert name.startswith("resnet"), name
    assert "model=resnet" in page.url
    page.fill("#filter-worker", "local-1")
    expect(page.locator("#filter-says")).to_contain_text("1 of 3 devices")
    page.reload()  # filters are in the address, the key in the tab
    visit.is_live()
    expect(page.locator("#filter-says")).to_contain_text("1 of 3 devices", timeout=PATIENCE_MS)
    page.fill("#filter-model", "none is called so")
    nothing = "0.0 requests per second in time, at most 0.0"
    expect(page.locator("#chart-text")).to_contain_text(nothing, timeout=PATIENCE_MS)
    page.click("#filter-clear")
    expect(page.locator("#filter-says")).to_have_text("")
    reasons = page.locator("#refusals tbody tr:not([hidden]) small")
    expect(reasons.filter(has_text="more devices").first).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator("#tile-advised")).to_contain_text(", here 3", timeout=PATIENCE_MS)
    print("ui: says what helps, and how many devices are advised")
    page.select_option("#filter-state", "resident")
    expect(page.locator("#models-count")).not_to_have_text("64 of 64")
    page.click("#filter-clear")
    print("ui: filters narrow everything, and survive a reload")

    page.locator("#models thead button", has_text="Model").click()
    names = everything.locator("th").all_inner_texts()
    assert names == sorted(names), names
    everything.locator("button").first.click()
    expect(story).to_contain_text("Default SLO")
    page.locator("#story .close").click()
    print("ui: the table sorts, a model opens")

    keyboard(page)
    print("ui: everything is reached by keys, and has a name")

    page.reload()
    visit.is_live()
    page.wait_for_timeout(20_000)  # a picture with something in it
    page.evaluate("() => scrollTo(0, 0)")
    page.screenshot(path=str(pictures / "ui-light.png"), full_page=True)
    page.select_option("#theme", "dark")
    page.screenshot(path=str(pictures / "ui-dark.png"), full_page=True)
    page.reload()
    visit.is_live()
    assert page.evaluate("() => document.documentElement.dataset.theme") == "dark"
    print("ui: dark and light, by choice")
    visit.ends(url)

    other = Visit(browser, url, scheme="dark")
    expect(other.page.locator("#key-dialog")).to_be_visible(timeout=PATIENCE_MS)
    back = other.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert back == "rgb(17, 21, 26)", back
    other.ends(url)


def keyboard(page: Page) -> None:
    """Tab goes through the page in its order; what takes the focus has a name."""
    page.focus(".skip")
    seen: list[str] = []
    for _ in range(400):
        page.keyboard.press("Tab")
        where = page.evaluate(
            """() => { const e = document.activeElement; return e === document.body ? "" :
              [e.id || e.tagName, e.getAttribute("aria-label") || e.getAttribute("aria-labelledby")
               || e.labels?.[0]?.textContent || e.textContent.trim()].join("|"); }"""
        )
        if not where:
            break
        assert where.split("|")[1], where
        seen.append(where.split("|")[0])
    order = ["pause", "theme", "filter-model", "filter-state", "filter-worker", "lanes", "pages"]
    found = [name for name in seen if name in order]
    assert found == order, seen
    page.focus("#lanes")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#lanes-says")).to_contain_text("local-1: ")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#lanes-says")).to_contain_text("EXEC")
    page.focus("#pages")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#pages-says")).to_contain_text("pages hold")


def moved(page: Page, canvas: str) -> None:
    before = page.evaluate(INK, canvas)
    page.wait_for_function(f"before => ({INK})({canvas!r}) !== before", arg=before)


def scale(browser: Browser, pictures: Path, url: str) -> None:
    visit = Visit(browser, url, scheme="dark")
    page = visit.page
    visit.is_live()
    expect(page.locator("#models-count")).to_have_text("1000 of 1000", timeout=PATIENCE_MS)
    expect(page.locator("#workers-count")).to_contain_text("64 here")
    page.evaluate(WATCH_TASKS)
    moved(page, "#lanes canvas")
    moved(page, "#pages canvas")
    assert page.locator("#models tbody tr").count() < 60
    page.locator("#models").evaluate("table => { table.scrollTop = table.scrollHeight; }")
    last = page.locator("#models tbody tr[aria-rowindex='1001']")
    expect(last).to_be_visible()
    page.locator("#lanes").evaluate("lanes => { lanes.scrollTop = lanes.scrollHeight; }")
    moved(page, "#lanes canvas")
    page.fill("#filter-model", "bert_05")
    expect(page.locator("#models-count")).to_contain_text(" of 1000")
    assert number(page.locator("#models-count").inner_text()) < 100
    page.click("#filter-clear")
    page.wait_for_timeout(10_000)
    longest = page.evaluate("() => Math.max(0, ...window.longTasks)")
    assert longest < LONGEST_TASK_MS, f"the page was deaf for {longest:.0f} ms"
    page.locator("#lanes").evaluate("lanes => { lanes.scrollTop = 0; }")
    page.locator("#models").evaluate("table => { table.scrollTop = 0; }")
    page.wait_for_timeout(500)
    page.screenshot(path=str(pictures / "ui-scale.png"), full_page=True)
    visit.ends(url)
    print(f"ui: 1,000 models and 64 devices, longest task {longest:.0f} ms")


def main() -> None:
    chromium, pictures, what, *rest = sys.argv[1:]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        {"live": live, "scale": scale}[what](browser, Path(pictures), *rest)
        browser.close()


if __name__ == "__main__":
    main()
