"""Files of a set of runs: which pictures there are, and a page that needs nothing else."""

import base64
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import msgspec

from loadtest.plots import DrawnRun, Picture, html_page, write_page
from loadtest.plots.runs import _bound_by
from loadtest.results import Collector, OfBound, RunMeta, summarise
from tests.loadtest.results_story import Script, infer, inferred, ms, scheduler_with, served

ROOT = Path(__file__).parent.parent.parent


def drawn_run(
    policy: str, seed: int, case: dict[str, str | int | float | bool | None], good: int, keep: bool
) -> DrawnRun:
    scheduler = scheduler_with("w0")
    told = Script(Collector(scheduler))
    told.arrive(5, *range(1, 11))
    told.send(5, infer(1, *range(1, good + 1), start_ms=6))
    told.finish(12, inferred(1, 6, 11), [(i, served(rows=good)) for i in range(1, good + 1)])
    told.collector.sample(ms(50), scheduler)
    tables = told.collector.tables()
    return DrawnRun(
        meta=RunMeta(
            scenario="demo <1>", policy=policy, seed=seed, case=case, versions={"remontoir": "9"}
        ),
        summary=summarise(tables, (0, ms(1000))),
        tables=tables if keep else None,
    )


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[str] = []
        self.cells: list[list[str]] = []
        self.headings: list[str] = []
        self._tag = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        if tag == "img":
            self.images.append(str(dict(attrs)["src"]))
        elif tag == "tr":
            self.cells.append([])

    def handle_data(self, data: str) -> None:
        if self._tag in ("td", "th") and data.strip():
            self.cells[-1].append(data)
        elif self._tag == "h2" and data.strip():
            self.headings.append(data)


def test_a_page_carries_its_table_and_pictures() -> None:
    run = drawn_run("fifo", 1, {}, 4, False)
    text = html_page("T & C", {"a <b>": run.summary}, [Picture("p", "Pic", b"\x89PNG", "why")])
    page = Page(text)
    assert page.images == ["data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()]
    assert "<h1>T &amp; C</h1>" in text
    assert "a &lt;b&gt;" in text
    assert "<figcaption>why</figcaption>" in text
    head, line = page.cells
    assert line[:4] == ["a <b>", "10", "4.0", "40.000"]
    assert line[head.index("mean batch")] == "4.00"
    assert line[head.index("refused p99 (ms)")] == "–"  # noqa: RUF001
    assert line[head.index("error p1/p50/p99 (µs)")] == "0 / 0 / 0"


def test_a_set_of_runs_becomes_files_and_a_page_that_fetches_nothing(tmp_path: Path) -> None:
    runs = [
        drawn_run(
            policy,
            seed,
            {"slo_ms": slo_ms, "mix": "even"},
            good,
            (good, seed, slo_ms) == (5, 1, 10),
        )
        for policy, good in (("remontoir", 8), ("clockwork:schedule_ahead_ms=5", 5))
        for slo_ms in (10, 25)
        for seed in (1, 2, 3)
    ]
    written = write_page(tmp_path / "new", "Demo", runs)
    names = [path.name for path in written]
    assert names[:3] == ["index.html", "goodput-slo_ms.png", "latency-slo_ms-10-mix-even.png"]
    ours = "-clockwork-schedule_ahead_ms-5-slo_ms-10-mix-even-seed-1.png"
    assert [name.removesuffix(ours) for name in names[3:]] == [
        "timeline-of-lanes", "prediction-errors", "pages", "schedule_ahead", "busy-lanes",
    ]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(names)

    text = written[0].read_text("utf-8")
    page = Page(text)
    assert [base64.b64decode(src.partition(",")[2]) for src in page.images] == [
        path.read_bytes() for path in written[1:]
    ]
    assert len(page.cells) == 1 + len(runs)
    assert page.cells[1][:3] == ["remontoir, slo_ms 10, mix even, seed 1", "10", "8.0"]
    assert page.headings[0] == "Goodput by SLO"
    assert re.findall(r"https?://|<script|<link", text) == []
    assert "demo &lt;1&gt;" in text


def test_the_timeline_of_lanes_is_of_the_first_100_ms_or_of_what_was_asked(tmp_path: Path) -> None:
    run = drawn_run("fifo", 1, {}, 4, True)

    def lanes_of(window: tuple[int, int] | None) -> tuple[bytes, str]:
        page, *pictures = write_page(tmp_path, "Demo", [run], lanes_window=window)
        [lanes] = [path for path in pictures if path.name.startswith("timeline")]
        return lanes.read_bytes(), page.read_text("utf-8")

    (first, page), (asked, other) = lanes_of(None), lanes_of((ms(5), ms(12.5)))
    assert "0 to 100 ms." in page
    assert "5 to 12.5 ms." in other
    assert first != asked


def bounded(run: DrawnRun, goodput_per_s: float, *, is_whole: bool = True) -> DrawnRun:
    of_bound = OfBound(
        share=0.5, goodput_per_s=goodput_per_s, from_s=0.0, until_s=1.0, is_whole=is_whole
    )
    return msgspec.structs.replace(
        run, summary=msgspec.structs.replace(run.summary, of_bound=of_bound)
    )


def test_the_share_of_the_bound_is_a_column_where_it_was_asked_for() -> None:
    plain = drawn_run("fifo", 1, {}, 4, False)
    runs = {"asked": bounded(plain, 8.0).summary, "not": plain.summary}
    head, asked, unasked = Page(html_page("T", runs, [])).cells
    assert (head[-1], asked[-1], unasked[-1]) == ("of bound (%)", "50.0", "–")  # noqa: RUF001
    assert "of bound (%)" not in html_page("T", {"not": plain.summary}, [])


def test_the_bound_is_drawn_as_the_mean_over_seeds(tmp_path: Path) -> None:
    runs = [
        bounded(drawn_run(policy, seed, {"slo_ms": slo_ms}, 4, False), slo_ms + seed)
        for policy in ("remontoir", "fifo")
        for slo_ms in (10, 25)
        for seed in (1, 3)
    ]
    assert _bound_by("slo_ms", runs) == {10.0: 12.0, 25.0: 27.0}
    page = write_page(tmp_path, "Demo", runs)[0].read_text("utf-8")
    assert "No scheduler passes the upper bound." in page
    of_first = bounded(runs[0], 11, is_whole=False)
    page = write_page(tmp_path, "Demo", [of_first, *runs[1:]])[0].read_text("utf-8")
    assert "upper bound, here that of each run&#x27;s first requests." in page


def test_no_bound_is_drawn_over_a_variable_that_is_not_its_only_one(tmp_path: Path) -> None:
    runs = [
        bounded(drawn_run("fifo", 1, {"slo_ms": slo_ms, "rate": rate}, 4, False), slo_ms + rate)
        for slo_ms in (10, 25)
        for rate in (100, 200)
    ]
    assert _bound_by("slo_ms", runs) == {}
    page = write_page(tmp_path, "Demo", runs)[0].read_text("utf-8")
    assert "Lines have bounds of their own" in page


def test_pictures_whose_names_differ_in_signs_only_are_files_of_their_own(tmp_path: Path) -> None:
    cases = ({"skew": "-1", "why": "x" * 300}, {"skew": "+1", "why": "x" * 300})
    runs = [
        drawn_run("fifo", 1, dict(case), good, True)
        for case, good in zip(cases, (3, 7), strict=True)
    ]
    latency, other = (
        path for path in write_page(tmp_path, "Demo", runs) if path.name.startswith("latency")
    )
    assert other.stem == latency.stem + "-2"
    assert latency.read_bytes() != other.read_bytes()


def test_runs_without_variables_or_tables_have_their_lines_only(tmp_path: Path) -> None:
    written = write_page(tmp_path, "Demo", [drawn_run("fifo", s, {}, 4, False) for s in (1, 2)])
    assert [path.name for path in written] == ["index.html"]
    assert [cells[0] for cells in Page(written[0].read_text("utf-8")).cells[1:]] == [
        "fifo, seed 1", "fifo, seed 2",
    ]  # fmt: skip


def test_no_runs_are_an_empty_page(tmp_path: Path) -> None:
    [path] = write_page(tmp_path, "Nothing", [])
    assert Page(path.read_text("utf-8")).cells == []


# A module that is None in sys.modules cannot be imported, as one that is not installed.
WITHOUT = """
import sys
sys.modules["matplotlib"] = sys.modules["pyarrow"] = None
from loadtest.plots import goodput
from loadtest.results import Collector, RunMeta, write
from scheduler.scheduler import Scheduler

tables = Collector(Scheduler()).tables()
meta = RunMeta(scenario="s", policy="p", seed=1)
write(tables, sys.argv[1], meta, "sqlite")
for call in (lambda: goodput({"a": {1.0: [1.0]}}), lambda: write(tables, sys.argv[1], meta)):
    try:
        call()
    except RuntimeError as error:
        print(error)
"""


def test_without_the_libraries_only_pictures_and_parquet_are_missing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == [
        'pictures need matplotlib: pip install "remontoir[simulate]"',
        'Parquet needs pyarrow: pip install "remontoir[simulate]" (or write sqlite)',
    ], done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["results.sqlite"]
