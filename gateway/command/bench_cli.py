"""`remontoir bench`: benchmarks of servers, what their results mean, and a queue for many hosts.

Owns their help, and which flags are passed on. The process becomes the program, exit code and all.
"""

import os
import sys
from collections.abc import Sequence

import typer

from gateway.command import bench_flags as flags
from gateway.command import bench_run_cli
from gateway.programs import given_flags, program

app = typer.Typer(
    name="bench",
    help="Benchmark servers: measure, say what results mean and what to buy; a queue for hosts.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(bench_run_cli.app)

ANALYSIS, QUEUE = "loadtest.analysis", "loadtest.job_queue"


@app.command()
def report(
    results: flags.Results = None,
    out: flags.ReportOut = None,
    title: flags.Title = None,
    sort: flags.Sort = None,
    prices: flags.PricesFile = None,
    job: flags.OfJob = None,
    run: flags.OfRun = None,
    no_roofline: flags.NoRoofline = False,
    threads: flags.Threads = None,
) -> None:
    """Write one HTML page about results; it needs no network, and fits light and dark.

    Distributions of latency, goodput by rate and SLO, model by batch size, the
    models under this machine's roofline, stages, cold starts, costs, a
    leaderboard, and what all of it says. What was cut short is said.

    \b
    Examples:
      remontoir bench report bench-results --out report.html
      remontoir bench report bench-leader --prices ours.yaml --no-roofline
    """
    more = ["--no-roofline"] * no_roofline
    _become(
        ANALYSIS, "report", _given(results), more,
        given_flags(
            out=out, title=title, sort=sort, prices=prices, threads=threads, job=job, run=run
        ),
    )  # fmt: skip


@app.command()
def leaderboard(
    results: flags.Results = None,
    sort: flags.Sort = None,
    model: flags.OfModel = None,
    top: flags.Top = None,
    prices: flags.PricesFile = None,
    job: flags.OfJob = None,
    run: flags.OfRun = None,
) -> None:
    """List configurations under their workloads, the best first by any metric.

    \b
    Examples:
      remontoir bench leaderboard --sort p99 --model resnet18
      remontoir bench leaderboard bench-leader --sort usd --prices ours.yaml
    """
    given = given_flags(sort=sort, model=model, top=top, prices=prices, job=job, run=run)
    _become(ANALYSIS, "leaderboard", _given(results), given)


@app.command()
def recommend(
    model: flags.ForModel,
    slo_ms: flags.ForSlo,
    results: flags.Results = None,
    max_cost: flags.MaxCost = None,
    rate: flags.AtRate = None,
    attainment: flags.Attainment = None,
    arrivals: flags.Arrivals = None,
    prices: flags.PricesFile = None,
    job: flags.OfJob = None,
    run: flags.OfRun = None,
) -> None:
    """Name the three configurations that serve most within an SLO, and how sure that is.

    Where the SLO, or a configuration at it, was not measured, goodput is
    predicted from what was; the interval holds the truth in nine of ten cases.

    \b
    Examples:
      remontoir bench recommend --model resnet18 --slo-ms 80
      remontoir bench recommend --model resnet18 --slo-ms 80 --max-cost 0.002 --attainment 0.99
    """
    given = given_flags(
        model=model, slo_ms=slo_ms, max_cost=max_cost, rate=rate, attainment=attainment,
        arrivals=arrivals, prices=prices, job=job, run=run,
    )  # fmt: skip
    _become(ANALYSIS, "recommend", _given(results), given)


@app.command()
def roofline(
    models: flags.OnnxFiles,
    batch: flags.Batches = None,
    threads: flags.Threads = None,
    shape: flags.Shapes = None,
) -> None:
    """Say whether memory or computing limits a model here, and how near it is to its roof.

    FLOPs and bytes are counted from the graph, the machine's ceilings and the
    model's executions are measured: a second or two, and one for each batch size.

    \b
    Examples:
      remontoir bench roofline demo-models/*/1/model.onnx --batch 1,8
      remontoir bench roofline line.onnx --shape x=3,48,320 --threads 2
    """
    shapes = [text for value in shape or () for text in ("--shape", value)]
    files = [str(path) for path in models]
    _become(ANALYSIS, "roofline", files, given_flags(batch=batch, threads=threads), shapes)


@app.command()
def submit(
    job: flags.JobFile,
    leader: flags.LeaderUrl = None,
    token_file: flags.TokenFile = None,
    name: flags.JobName = None,
    on: flags.On = None,
    estimate_s: flags.EstimateS = None,
    job_id: flags.JobId = None,
    wait: flags.Wait = False,
    out: flags.RowsOut = None,
) -> None:
    """Hand a job to a leader, for a follower on an idle host.

    \b
    Examples:
      remontoir bench submit job.yaml --leader https://bench.example:8700 --token-file token
      remontoir bench submit job.yaml --on gpu=t4 --wait --out results.jsonl
    """
    labels = [text for value in on or () for text in ("--on", value)]
    given = given_flags(
        leader=leader, token_file=token_file, name=name, estimate_s=estimate_s, job_id=job_id,
        out=out,
    )  # fmt: skip
    _become(QUEUE, "submit", [str(job)], given, labels, ["--wait"] * wait)


@app.command()
def queue(
    leader: flags.LeaderUrl = None,
    token_file: flags.TokenFile = None,
    cancel: flags.Cancel = None,
) -> None:
    """Show a leader's jobs and followers, or cancel a job.

    \b
    Examples:
      remontoir bench queue --leader https://bench.example:8700 --token-file token
      remontoir bench queue --cancel 5b1f7a3e-90c4-4c55-8d5c-0a3d6c1f2e77
    """
    _become(QUEUE, "queue", given_flags(leader=leader, token_file=token_file, cancel=cancel))


@app.command()
def leader(
    host: flags.LeaderHost = None,
    port: flags.LeaderPort = None,
    database: flags.Database = None,
    token_file: flags.TokenFile = None,
    tls_cert: flags.TlsCert = None,
    tls_key: flags.TlsKey = None,
) -> None:
    """Keep a queue of jobs for followers, and their results, until Ctrl-C.

    Everything is in the database: killed and started again, it goes on. A job
    goes to the follower with the least backlog, which runs the shortest first;
    a follower with nothing to do takes from the longest queue.

    \b
    Examples:
      remontoir bench leader
      remontoir bench leader --host 0.0.0.0 --token-file token --tls-cert cert.pem --tls-key key.pem
    """
    given = given_flags(
        host=host, port=port, database=database, token_file=token_file, tls_cert=tls_cert,
        tls_key=tls_key,
    )  # fmt: skip
    _become(QUEUE, "leader", given)


@app.command()
def follower(
    leader: flags.LeaderUrl = None,
    token_file: flags.TokenFile = None,
    name: flags.FollowerName = None,
    folder: flags.FollowerFolder = None,
    label: flags.Labels = None,
    max_busy: flags.MaxBusy = None,
) -> None:
    """Run a leader's jobs on this host while nobody else uses it, until Ctrl-C.

    \b
    Examples:
      remontoir bench follower --leader https://bench.example:8700 --token-file token
      remontoir bench follower --name rack3 --label gpu=t4 --max-busy 0.2
    """
    labels = [text for value in label or () for text in ("--label", value)]
    given = given_flags(
        leader=leader, token_file=token_file, name=name, folder=folder, max_busy=max_busy
    )
    # what it runs comes last: everything behind it is the command
    _become(QUEUE, "follower", given, labels, ["--command", *program("gateway"), "bench", "run"])


def _given(value: str | None) -> list[str]:
    return [] if value is None else [value]


# No help of ours: the program has its own.
@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def peers(more: typer.Context) -> None:
    """Measure Triton, KServe, Ray Serve and others beside ours; `peers --help` has its options."""
    _become("loadtest.peers", *more.args)


def _become(module: str, *parts: str | Sequence[str]) -> None:
    """This process becomes the program."""
    command = program(module)
    for part in parts:
        command += [part] if isinstance(part, str) else part
    os.execv(sys.executable, command)
