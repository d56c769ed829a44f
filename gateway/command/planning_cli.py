"""The commands that plan: `remontoir plan`. They hand over to programs of loadtest/planning.

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
    if models is None:
        if device is not None or cache_dir is not None:
            raise CommandError("--device and --cache-dir go with --models.", exit_code=2)
        os.execv(sys.executable, command)
    with tempfile.TemporaryDirectory(prefix="remontoir-") as directory:
        measured = measured_catalogue(models, Path(directory), device=device, cache_dir=cache_dir)
        raise typer.Exit(subprocess.call([*command, "--catalogue", str(measured)]))


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
