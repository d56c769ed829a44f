"""Flags of the commands that are programs of their own: names, metavars and help, once.

Owns words only, as flags.py does for the others.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class TableFiles(StrEnum):
    """What loadtest/results can write tables as."""

    PARQUET = "parquet"
    SQLITE = "sqlite"


Recording = Annotated[
    Path, typer.Argument(metavar="FILE", help="What `remontoir serve --record` wrote.")
]
OtherPolicy = Annotated[
    str | None,
    typer.Option(
        "--policy", metavar="TEXT", help="What would it have done: NAME, or NAME:option=value,..."
    ),
]
OtherAhead = Annotated[
    float | None,
    typer.Option(
        "--schedule-ahead-ms", metavar="N", help="Of that policy.", show_default="its own rule"
    ),
]
Seed = Annotated[
    int | None, typer.Option("--seed", help="Of the durations drawn.", show_default="1")
]
RequestId = Annotated[
    str | None,
    typer.Argument(
        metavar="REQUEST_ID",
        help="The x-request-id of its answer, or the scheduler's number as --list shows it.",
    ),
]
ListRequests = Annotated[bool, typer.Option("--list", help="List the requests of the recording.")]
Refused = Annotated[bool, typer.Option("--refused", help="With --list: only what was refused.")]
Late = Annotated[
    bool, typer.Option("--late", help="With --list: only what was admitted and not served in time.")
]
OfModel = Annotated[
    str | None, typer.Option("--model", metavar="MODEL", help="With --list: of this model only.")
]
Scenario = Annotated[
    Path,
    typer.Argument(metavar="SCENARIO.yaml", help="Models, devices, faults, workload, policies."),
]
Policies = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        metavar="TEXT",
        help="NAME, or NAME:option=value,...; may be given again.",
        show_default="the scenario's policies",
    ),
]
Seeds = Annotated[
    list[int] | None,
    typer.Option(
        "--seed",
        help="Of arrivals and noise; may be given again.",
        show_default="the scenario's seeds",
    ),
]
Variables = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE,...",
        help="Values of one of the scenario's variables; may be given again.",
        show_default="the scenario's values",
    ),
]
DurationS = Annotated[
    float | None,
    typer.Option(
        "--duration-s", help="Virtual seconds of arrivals.", show_default="the scenario's"
    ),
]
Full = Annotated[bool, typer.Option("--full", help="As long as the scenario's full_duration_s.")]
OutDir = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Write every run's tables into a folder there."),
]
TableFormat = Annotated[
    TableFiles | None,
    typer.Option(
        "--format", metavar="parquet|sqlite", help="Of the tables.", show_default="parquet"
    ),
]
Plot = Annotated[
    bool, typer.Option("--plot", help="Pictures too, and a page that shows them: DIR/index.html.")
]
Lanes = Annotated[
    str | None,
    typer.Option(
        "--lanes",
        metavar="FROM:TO",
        help="With --plot: the seconds of the run that the picture of the lanes shows.",
        show_default="100 ms after the warm-up",
    ),
]
OfBound = Annotated[
    bool,
    typer.Option(
        "--bound",
        help="Also what share this is of what a scheduler could serve that knew the future.",
    ),
]
Window = Annotated[
    int | None,
    typer.Option(
        "--window",
        metavar="REQUESTS",
        help="For so many of them at the most; minutes pass for more.",
        show_default="20000",
    ),
]
FromS = Annotated[
    float | None,
    typer.Option(
        "--from-s",
        metavar="S",
        help="Virtual second from which on requests are counted.",
        show_default="the scenario's warmup_s",
    ),
]
Iterations = Annotated[
    int | None,
    typer.Option(
        "--iterations", metavar="N", help="More of them make it lower.", show_default="80"
    ),
]
DecisionLogFile = Annotated[
    Path | None,
    typer.Option(
        "--log",
        metavar="FILE",
        help="Of one run: every event and what was decided, a line each. The same scenario and "
        "seed give the same bytes.",
    ),
]
Jobs = Annotated[
    int | None, typer.Option("--jobs", help="Runs at a time, a process each.", show_default="1")
]
CheckStep = Annotated[
    str | None,
    typer.Argument(metavar="pages|engines|product|all", show_default="all", help="Which of them."),
]
CheckDevice = Annotated[
    str | None,
    typer.Option("--device", metavar="cuda:N", help="Which GPU.", show_default="cuda:0"),
]
CheckOut = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="JSON, logs and generated models go here.",
        show_default="bench-results/gpu-check",
    ),
]
Quick = Annotated[bool, typer.Option("--quick", help="Short: does it work at all?")]
PlanSource = Annotated[
    str | None,
    typer.Argument(
        metavar="SCENARIO.yaml|FILE.rec",
        help="A scenario, or what `serve --record` wrote; or neither, with --trace.",
    ),
]
Trace = Annotated[
    str | None,
    typer.Option(
        "--trace",
        metavar="FILE",
        help="Requests: a CSV with at_s and perhaps model and slo_ms, Azure's or ServeGen's "
        "traces (also by their names in loadtest/data), or a recording.",
    ),
]
PlanSlo = Annotated[
    float | None,
    typer.Option("--slo-ms", help="Of all requests.", show_default="the requests' own"),
]
PlanModels = Annotated[
    Path | None,
    typer.Option(
        "--models",
        metavar="DIR",
        help="Which models the trace asks: a repository, compiled and measured on this machine.",
    ),
]
Catalogues = Annotated[
    list[Path] | None,
    typer.Option(
        "--catalogue",
        metavar="FILE",
        help="Or what `compile --catalog-out` measured elsewhere; may be given again.",
    ),
]
Profiles = Annotated[
    list[str] | None,
    typer.Option(
        "--profile",
        metavar="v100/NAME",
        help="Or a row of the Clockwork paper's V100 table; may be given again.",
    ),
]
ModelCount = Annotated[
    int | None,
    typer.Option("--count", help="So many of each model, as after fine-tuning.", show_default="1"),
]
Target = Annotated[
    float | None,
    typer.Option("--target", metavar="SHARE", help="To be answered in time.", show_default="0.99"),
]
PlanPolicy = Annotated[
    str | None,
    typer.Option(
        "--policy",
        metavar="TEXT",
        help="NAME, or NAME:option=value,...",
        show_default="the source's, or remontoir",
    ),
]
RatePerS = Annotated[
    float | None,
    typer.Option(
        "--rate-per-s", help="The trace faster or slower, to that mean.", show_default="as it is"
    ),
]
TraceScale = Annotated[
    float | None, typer.Option("--scale", help="The trace's rate times that.", show_default="1")
]
PlanDurationS = Annotated[
    float | None,
    typer.Option("--duration-s", help="Only the first of the trace.", show_default="all"),
]
ExecNoise = Annotated[
    float | None,
    typer.Option(
        "--exec-noise",
        help="Executions vary: the standard deviation of a factor around 1.",
        show_default="the scenario's, or 0",
    ),
]
DeviceMb = Annotated[
    int | None,
    typer.Option(
        "--device-mb",
        help="MiB of weights that one device can hold at the most.",
        show_default="22016, what Clockwork keeps of a V100",
    ),
]
MaxDevices = Annotated[
    int | None, typer.Option("--max-devices", help="No more are tried.", show_default="64")
]
MaxRequests = Annotated[
    int | None,
    typer.Option(
        "--max-requests",
        help="Of a longer trace the busiest stretch of so many is played.",
        show_default="50000",
    ),
]
BudgetS = Annotated[
    float | None,
    typer.Option(
        "--budget-s",
        help="After so many seconds nothing more is begun; what is known by then is told.",
        show_default="600",
    ),
]
PlanOut = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Write plan.json, plan.svg and plan.png there."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of words.")]
Cores = Annotated[
    int | None,
    typer.Option(
        "--cores",
        help="Of the host: workers x threads are no more.",
        show_default="this machine's, or those of the job's server",
    ),
]
WeightsMb = Annotated[
    int | None,
    typer.Option(
        "--weights-mb",
        help="MiB for weights, of all workers together.",
        show_default="22016",
    ),
]
TuneWorkers = Annotated[
    str | None,
    typer.Option("--workers", metavar="N,...", help="To try.", show_default="1,2,3,4,6,8,..."),
]
TuneThreads = Annotated[
    str | None,
    typer.Option(
        "--threads",
        metavar="N,...",
        help="Of each worker's executions, to try.",
        show_default="1,2,4,...",
    ),
]
TuneBatches = Annotated[
    str | None,
    typer.Option(
        "--batches", metavar="N,...", help="Largest batches to try.", show_default="1,2,4,8,16"
    ),
]
TunePolicies = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        metavar="TEXT",
        help="To try; may be given again.",
        show_default="remontoir, clockwork, clipper, edf",
    ),
]
ParallelShare = Annotated[
    float | None,
    typer.Option(
        "--parallel-share",
        metavar="SHARE",
        help="What of an execution further threads share (Amdahl's law), where not measured.",
        show_default="0.85",
    ),
]
Measured = Annotated[
    list[str] | None,
    typer.Option(
        "--measured",
        metavar="THREADS=FILE",
        help="A catalogue measured with so many threads; may be given again.",
    ),
]
ProbeCommand = Annotated[
    str | None,
    typer.Option(
        "--probe",
        metavar="COMMAND",
        help="Measure live: it finds TUNE_WORKERS, _THREADS, _MAX_BATCH, _POLICY and "
        "_SHARE in its environment and prints a score, more is better, as its last line.",
    ),
]
TuneJob = Annotated[
    Path | None,
    typer.Option(
        "--job",
        metavar="JOB.yaml",
        help="Measure live: `remontoir serve` is started with each configuration, and asked as "
        "this job of `bench run` says.",
    ),
]
TuneResults = Annotated[
    str | None,
    typer.Option(
        "--results",
        metavar="PLACE",
        help="Where whole runs of --job are kept, for `bench report`.",
        show_default="bench-results",
    ),
]
Search = Annotated[
    str | None,
    typer.Option(
        "--search", metavar="region|halving|random|grid", help="How.", show_default="region"
    ),
]
Evaluations = Annotated[
    float | None,
    typer.Option(
        "--evaluations",
        help="Stop after the cost of so many whole runs.",
        show_default="20",
    ),
]
TuneMaxRequests = Annotated[
    int | None,
    typer.Option(
        "--max-requests",
        help="Of a longer trace the busiest stretch of so many is a whole run.",
        show_default="10000",
    ),
]
