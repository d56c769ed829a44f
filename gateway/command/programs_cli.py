"""The commands that hand over to a program of loadtest/: in virtual time, over recordings, on GPUs.

Owns their help, and which flags are passed on. The process becomes the program, exit code and all.
"""

import os
import sys

import typer

from gateway.command import program_flags
from gateway.command.command_error import CommandError
from gateway.programs import given_flags, program

app = typer.Typer()


@app.command()
def simulate(
    scenario: program_flags.Scenario,
    policy: program_flags.Policies = None,
    seed: program_flags.Seeds = None,
    set_: program_flags.Variables = None,
    duration_s: program_flags.DurationS = None,
    full: program_flags.Full = False,
    out: program_flags.OutDir = None,
    format_: program_flags.TableFormat = None,
    plot: program_flags.Plot = False,
    lanes: program_flags.Lanes = None,
    bound: program_flags.OfBound = False,
    log: program_flags.DecisionLogFile = None,
    jobs: program_flags.Jobs = None,
) -> None:
    """Play a scenario in virtual time, with the scheduler that serves, and show how it went.

    A scenario is a YAML file; loadtest/scenarios/example.yaml explains every
    line of one. There is a run for each combination of its variables, policies
    and seeds, and a line in the table for each run.

    \b
    Examples:
      remontoir simulate loadtest/scenarios/example.yaml
      remontoir simulate my.yaml --policy remontoir --policy clockwork --seed 1 --seed 2
      remontoir simulate my.yaml --set slo_ms=10,25 --out results --plot --jobs 2
    """
    command = [*program("loadtest.simulate"), str(scenario)]
    for flag, values in (("--policy", policy), ("--seed", seed), ("--set", set_)):
        command += [text for value in values or () for text in (flag, str(value))]
    command += [*["--full"] * full, *["--plot"] * plot, *["--bound"] * bound]
    command += given_flags(
        duration_s=duration_s, out=out, format=format_, lanes=lanes, log=log, jobs=jobs
    )
    os.execv(sys.executable, command)


@app.command()
def bound(
    scenario: program_flags.Scenario,
    seed: program_flags.Seeds = None,
    set_: program_flags.Variables = None,
    duration_s: program_flags.DurationS = None,
    full: program_flags.Full = False,
    window: program_flags.Window = None,
    from_s: program_flags.FromS = None,
    iterations: program_flags.Iterations = None,
) -> None:
    """Compute the most that any scheduler could serve of a scenario, even one that knew the future.

    It is a bound, no schedule: that nobody gets there does not mean that one
    should. `remontoir simulate --bound` says what share of it a run has reached.

    \b
    Examples:
      remontoir bound my.yaml
      remontoir bound my.yaml --set slo_ms=25 --seed 1 --window 5000 --from-s 10
    """
    command = [*program("loadtest.bound"), str(scenario)]
    for flag, values in (("--seed", seed), ("--set", set_)):
        command += [text for value in values or () for text in (flag, str(value))]
    command += ["--full"] * full
    command += given_flags(
        duration_s=duration_s, window=window, from_s=from_s, iterations=iterations
    )
    os.execv(sys.executable, command)


@app.command()
def replay(
    file: program_flags.Recording,
    policy: program_flags.OtherPolicy = None,
    seed: program_flags.Seed = None,
    schedule_ahead_ms: program_flags.OtherAhead = None,
) -> None:
    """Run a recording again: are the decisions the same? With another policy?

    Without --policy every decision must come out as recorded; the first that
    does not is shown, and the exit code is 1, as it is for a file that is not
    whole.

    With --policy the recorded arrivals, cancellations, workers and models meet
    that policy. What runs takes as long as it did on the recorded worker, drawn
    from its own runs of that model and batch size; the report says how much of
    that had to be guessed. It cannot tell what clients would have done: those
    that wait, retry or give up would have behaved otherwise.

    \b
    Examples:
      remontoir replay day.rec
      remontoir replay day.rec --policy clockwork --schedule-ahead-ms 5 --seed 2
    """
    command = [*program("loadtest.replay"), str(file)]
    command += given_flags(policy=policy, seed=seed, schedule_ahead_ms=schedule_ahead_ms)
    os.execv(sys.executable, command)


@app.command()
def explain(
    file: program_flags.Recording,
    request_id: program_flags.RequestId = None,
    list_: program_flags.ListRequests = False,
    refused: program_flags.Refused = False,
    late: program_flags.Late = False,
    model: program_flags.OfModel = None,
) -> None:
    """Tell one request's story: why it waited, was batched, was refused.

    \b
    Examples:
      remontoir explain day.rec --list --refused --model magika
      remontoir explain day.rec 1a2b3c4d-2f
    """
    if (request_id is None) != list_:
        raise CommandError("give one of REQUEST_ID and --list.", exit_code=2)
    if not list_ and (refused or late or model is not None):
        raise CommandError("--refused, --late and --model go with --list.", exit_code=2)
    command = [*program("loadtest.explain"), str(file)]
    command += [] if request_id is None else ["--", request_id]
    if list_:
        command += ["--list", *["--refused"] * refused, *["--late"] * late]
        command += given_flags(model=model)
    os.execv(sys.executable, command)


@app.command(
    "gpu-check", context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def gpu_check(
    more: typer.Context,
    step: program_flags.CheckStep = None,
    device: program_flags.CheckDevice = None,
    out: program_flags.CheckOut = None,
    quick: program_flags.Quick = False,
) -> None:
    """Measure what a GPU does with this product, bar by bar: LOADs, engines, many models over HTTP.

    Models are made on the spot. The exit code is 0 if every bar is met, 1 if
    one is missed, 2 if something is missing on this machine.

    \b
    Examples:
      remontoir gpu-check --quick
      remontoir gpu-check pages --device cuda:1
      remontoir gpu-check product --names 50 --cached 20 --slo-ms 25
    """
    command = [*program("loadtest.gpu_check"), *([] if step is None else [step])]
    command += ["--quick"] * quick
    command += [*given_flags(device=device, out=out), *more.args]
    os.execv(sys.executable, command)


# No help of ours: the program shows its own options, which are Locust's kind.
@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def locust(more: typer.Context) -> None:
    """Load a gateway by Locust: users, a live web page, SLOs met and missed. Needs its extra."""
    os.execv(sys.executable, [*program("loadtest.locust_load"), *more.args])
