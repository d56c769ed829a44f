"""Flags of `remontoir bench`: names, metavars and help, once. Owns words only."""

from pathlib import Path
from typing import Annotated

import typer

METRICS = (
    "goodput, attainment, p50, p99, p999, late, refused, failed, refusal-p99, cold-start, usd, "
    "energy, co2, cpu, memory, prediction-error"
)

Results = Annotated[
    str | None,
    typer.Argument(
        metavar="RESULTS",
        help="A folder of results, a .jsonl file, a leader's database: its file or its URL.",
        show_default="bench-results",
    ),
]
PricesFile = Annotated[
    Path | None,
    typer.Option(
        "--prices",
        metavar="FILE.yaml",
        help="What devices cost and draw, and the grid's CO2: a copy of "
        "loadtest/analysis/prices.yaml with your own figures.",
        show_default="list prices",
    ),
]
OfJob = Annotated[
    str | None, typer.Option("--job", metavar="NAME", help="Results of this job only.")
]
OfRun = Annotated[
    str | None, typer.Option("--run", metavar="ID", help="Results of this run of a job only.")
]
ReportOut = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE.html", help="The page.", show_default="report.html"),
]
Title = Annotated[
    str | None, typer.Option("--title", help="Of the page.", show_default="the models' names")
]
Sort = Annotated[
    str | None,
    typer.Option("--sort", metavar="METRIC", help=f"One of {METRICS}.", show_default="goodput"),
]
NoRoofline = Annotated[
    bool,
    typer.Option(
        "--no-roofline", help="Do not measure this machine, nor execute the models on it."
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", help="To measure with, as models are executed.", show_default="1"),
]
OfModel = Annotated[
    str | None, typer.Option("--model", metavar="MODEL", help="Lines of this model only.")
]
Top = Annotated[int | None, typer.Option("--top", help="So many lines.", show_default="20")]
ForModel = Annotated[str, typer.Option("--model", metavar="MODEL", help="As the results call it.")]
ForSlo = Annotated[
    float, typer.Option("--slo-ms", metavar="N", help="Any: it need not have been measured.")
]
MaxCost = Annotated[
    float | None,
    typer.Option("--max-cost", metavar="USD", help="Of 1,000 requests served in time, at most."),
]
AtRate = Annotated[
    float | None,
    typer.Option(
        "--rate",
        metavar="PER_S",
        help="At this offered rate.",
        show_default="each at the rate that suits it best",
    ),
]
Attainment = Annotated[
    float | None,
    typer.Option(
        "--attainment",
        metavar="SHARE",
        help="Count only rates at which so many were in time, as 0.99.",
        show_default="0",
    ),
]
Arrivals = Annotated[
    str | None,
    typer.Option(
        "--arrivals",
        metavar="WORDS",
        help="Only what was measured under such arrivals, as poisson.",
        show_default="all together",
    ),
]
OnnxFiles = Annotated[
    list[Path], typer.Argument(metavar="MODEL.onnx...", help="Of a model repository or alone.")
]
Batches = Annotated[
    str | None,
    typer.Option("--batch", metavar="N,N,...", help="Batch sizes.", show_default="1,2,4,8,16"),
]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="INPUT=N,N,...",
        help="One row of an input whose axes are free; may be given again.",
        show_default="profile_shapes of the model's config.yaml",
    ),
]
LeaderUrl = Annotated[
    str | None,
    typer.Option("--leader", metavar="URL", help="Where it is.", show_default="this machine"),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        help="What leader, followers and those who submit share. Whoever has it runs jobs on "
        "every follower.",
        show_default="$REMONTOIR_BENCH_TOKEN",
    ),
]
JobFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="As for `bench run`.")]
JobName = Annotated[
    str | None, typer.Option("--name", help="In the queue.", show_default="the job's")
]
On = Annotated[
    list[str] | None,
    typer.Option(
        "--on",
        metavar="KEY=VALUE",
        help="Only on followers with this label (host=NAME is always one); may be given again.",
    ),
]
EstimateS = Annotated[
    float | None,
    typer.Option(
        "--estimate-s",
        metavar="S",
        help="How long it will take; shorter jobs go first.",
        show_default="as the same job took, else what its file adds up to",
    ),
]
Wait = Annotated[bool, typer.Option("--wait", help="Until it has ended: 0 done, 3 partial.")]
RowsOut = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE.jsonl", help="With --wait: its results, for `report`."),
]
JobId = Annotated[
    str | None,
    typer.Option(
        "--job-id",
        metavar="ID",
        help="The same id again is the same job.",
        show_default="a new one",
    ),
]
Cancel = Annotated[
    str | None, typer.Option("--cancel", metavar="JOB", help="Cancel this job, running or not.")
]
LeaderHost = Annotated[
    str | None,
    typer.Option(
        "--host",
        help="To listen on; beyond this machine a token is needed.",
        show_default="127.0.0.1",
    ),
]
LeaderPort = Annotated[int | None, typer.Option("--port", show_default="8700")]
Database = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="FOLDER|FILE|URL",
        help="Of queue and results: a folder or file for SQLite, or a URL as "
        "postgresql://HOST/NAME.",
        show_default="bench-leader",
    ),
]
TlsCert = Annotated[
    Path | None, typer.Option("--tls-cert", metavar="FILE", help="Serve HTTPS with it.")
]
TlsKey = Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="Of --tls-cert.")]
FollowerName = Annotated[
    str | None, typer.Option("--name", help="One for each.", show_default="the host's name")
]
FollowerFolder = Annotated[
    Path | None,
    typer.Option(
        "--folder",
        metavar="DIR",
        help="Where it works, and keeps results until the leader has them.",
        show_default="bench-follower/NAME",
    ),
]
Labels = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="KEY=VALUE", help="What it has, as gpu=t4; for --on."),
]
MaxBusy = Annotated[
    float | None,
    typer.Option(
        "--max-busy",
        metavar="SHARE",
        help="Of the host's CPUs that others may use: above, it takes no job.",
        show_default="0.08",
    ),
]
