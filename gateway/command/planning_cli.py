"""The commands that plan, `remontoir plan` and `remontoir tune`, programs of loadtest/planning.

Owns their help, which flags are passed on, and the compiling of a repository before.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import typer

from gateway.command import flags, program_flags
from gateway.command.command_error import CommandError
from gateway.programs import given_flags, program

app = typer.Typer()


@app.command()
def plan(
    source: program_flags.PlanSource = None,
    trace: program_flags.Trace = None,
    slo_ms: program_flags.PlanSlo = None,
    models: program_flags.PlanModels = None,
    catalogue: program_flags.Catalogues = None,
    profile: program_flags.Profiles = None,
    count: program_flags.ModelCount = None,
    target: program_flags.Target = None,
    policy: program_flags.PlanPolicy = None,
    set_: program_flags.Variables = None,
    seed: program_flags.Seeds = None,
    rate_per_s: program_flags.RatePerS = None,
    scale: program_flags.TraceScale = None,
    duration_s: program_flags.PlanDurationS = None,
    exec_noise: program_flags.ExecNoise = None,
    device_mb: program_flags.DeviceMb = None,
    max_devices: program_flags.MaxDevices = None,
    max_requests: program_flags.MaxRequests = None,
    budget_s: program_flags.BudgetS = None,
    device: flags.CompileDevice = None,
    cache_dir: flags.CacheDir = None,
    out: program_flags.PlanOut = None,
    json: program_flags.AsJson = False,
    jobs: program_flags.Jobs = None,
) -> None:
    """Say how many devices, and how much cache, some requests need: by playing them.

    Fleets of several sizes are given the requests in virtual time, with the
    scheduler that serves, from coarse to fine. Shown are the fewest devices
    and the least cache that attain the target, the curve, its knee, and what
    no simulation can know. The exit code is 1 where no fleet attains it.

    \b
    Examples:
      remontoir plan --trace day.csv --slo-ms 50 --models demo-models
      remontoir plan day.rec --target 0.999 --jobs 2
      remontoir plan example --set slo_ms=25 --out plan
      remontoir plan --trace azure2019_500fn_min480_959.csv.gz --rate-per-s 500 \\
        --slo-ms 100 --profile v100/resnet50_v2 --count 300
    """
    command = program("loadtest.planning.plan_command")
    command += [] if source is None else [source]
    for flag, values in (
        ("--catalogue", catalogue),
        ("--profile", profile),
        ("--set", set_),
        ("--seed", seed),
    ):
        command += [text for value in values or () for text in (flag, str(value))]
    command += given_flags(
        trace=trace, slo_ms=slo_ms, count=count, target=target, policy=policy,
        rate_per_s=rate_per_s, scale=scale, duration_s=duration_s, exec_noise=exec_noise,
        device_mb=device_mb, max_devices=max_devices, max_requests=max_requests,
        budget_s=budget_s, out=out, jobs=jobs,
    )  # fmt: skip
    command += ["--json"] * json
    _run(command, models, device=device, cache_dir=cache_dir)


@app.command()
def tune(
    source: program_flags.PlanSource = None,
    trace: program_flags.Trace = None,
    slo_ms: program_flags.PlanSlo = None,
    models: program_flags.PlanModels = None,
    catalogue: program_flags.Catalogues = None,
    profile: program_flags.Profiles = None,
    count: program_flags.ModelCount = None,
    cores: program_flags.Cores = None,
    weights_mb: program_flags.WeightsMb = None,
    workers: program_flags.TuneWorkers = None,
    threads: program_flags.TuneThreads = None,
    batches: program_flags.TuneBatches = None,
    policy: program_flags.TunePolicies = None,
    parallel_share: program_flags.ParallelShare = None,
    measured: program_flags.Measured = None,
    probe: program_flags.ProbeCommand = None,
    job: program_flags.TuneJob = None,
    results: program_flags.TuneResults = None,
    search: program_flags.Search = None,
    evaluations: program_flags.Evaluations = None,
    max_requests: program_flags.TuneMaxRequests = None,
    set_: program_flags.Variables = None,
    seed: program_flags.Seeds = None,
    rate_per_s: program_flags.RatePerS = None,
    scale: program_flags.TraceScale = None,
    duration_s: program_flags.PlanDurationS = None,
    exec_noise: program_flags.ExecNoise = None,
    device: flags.CompileDevice = None,
    cache_dir: flags.CacheDir = None,
    json: program_flags.AsJson = False,
) -> None:
    """Search for the workers, threads, largest batch and policy that serve some requests best.

    Each configuration of the host is played in virtual time, or measured live,
    by a benchmark's job (--job) or a command of yours (--probe). What its
    neighbours scored says what to try next, on a ninth of the requests first:
    most need not be tried at all.

    \b
    Examples:
      remontoir tune --trace day.csv --slo-ms 50 --models demo-models --cores 8
      remontoir tune day.rec --policy remontoir --policy edf --evaluations 40
      remontoir tune --job loadtest/jobs/tune.yaml --evaluations 12
      remontoir tune --probe ./measure.sh --cores 4 --evaluations 12
    """
    if models is not None and (job or probe) is not None:
        raise CommandError(
            f"--models {models}: --job and --probe measure models of their own.", exit_code=2
        )
    command = program("loadtest.planning.tune_command")
    command += [] if source is None else [source]
    for flag, values in (
        ("--catalogue", catalogue),
        ("--profile", profile),
        ("--set", set_),
        ("--seed", seed),
        ("--policy", policy),
        ("--measured", measured),
    ):
        command += [text for value in values or () for text in (flag, str(value))]
    command += given_flags(
        trace=trace, slo_ms=slo_ms, count=count, cores=cores, weights_mb=weights_mb,
        workers=workers, threads=threads, batches=batches, parallel_share=parallel_share,
        probe=probe, job=job, results=results, search=search, evaluations=evaluations,
        max_requests=max_requests, rate_per_s=rate_per_s, scale=scale, duration_s=duration_s,
        exec_noise=exec_noise,
    )  # fmt: skip
    command += ["--json"] * json
    _run(command, models, device=device, cache_dir=cache_dir)


def _run(
    command: list[str], models: Path | None, *, device: str | None, cache_dir: Path | None
) -> None:
    """Become the program; with a repository, measure it first."""
    if models is None:
        if device is not None or cache_dir is not None:
            raise CommandError("--device and --cache-dir go with --models.", exit_code=2)
        os.execv(sys.executable, command)
    with tempfile.TemporaryDirectory(prefix="remontoir-") as directory:
        catalogue = measured_catalogue(models, Path(directory), device=device, cache_dir=cache_dir)
        raise typer.Exit(subprocess.call([*command, "--catalogue", str(catalogue)]))


def measured_catalogue(
    models: Path, directory: Path, *, device: str | None, cache_dir: Path | None
) -> Path:
    """What `remontoir compile` measures of a repository here; from its cache where it has before.

    Raises typer.Exit with the compiler's exit code, which has said why.
    """
    catalogue = directory / "catalogue.json"
    command = [*program("gpuworker"), "compile", "--catalog-out", str(catalogue)]
    command += given_flags(models=models, device=device, cache_dir=cache_dir)
    exit_code = subprocess.call(command, stdout=sys.stderr)
    if exit_code != 0:
        raise typer.Exit(exit_code)
    return catalogue
