"""How much of the Azure trace is played in 6.5: the scale for a seed's models, and shorter parts.

Owns what 60 % of execution load means here: what all requests of the hour would take of the devices
in batches of 8, with the models that the seed gives to the functions.
"""

import random

import msgspec

from loadtest.scenario import Case
from loadtest.stage import models_of
from loadtest.workloads import AzureFunctions
from loadtest.workloads.replays import models_of_functions
from loadtest.workloads.trace_files import minute_counts
from scheduler.spec import SECOND_NS

EXEC_LOAD, AT_BATCH = 0.6, 8
HOUR = 60  # minutes of the trace
FIRST_MINUTES = 6  # that all policies are played for
BOUND_MINUTES = 10  # that the bound is computed for: among them are some that nobody could serve


def scale_of(case: Case) -> float:
    """What makes EXEC_LOAD of execution at batch 8 over the hour, with this seed's models."""
    models = models_of(case.setup)
    entry = case.setup.workload[0]
    assert isinstance(entry, AzureFunctions)
    functions = minute_counts(entry.file)
    # the same draw as the workload's own (loadtest/workloads/streams.py)
    chance = random.Random(f"{case.seed}/{entry.name}/models")
    homes = models_of_functions(len(functions), [m.name for m in models], entry.split, chance)
    exec_s = {m.name: m.profile.shapes[0].exec_ns[AT_BATCH] / AT_BATCH / SECOND_NS for m in models}
    minutes = [(entry.first_minute + i) % len(functions[0]) for i in range(HOUR)]
    busy_s = 0.0
    for counts, mine in zip(functions, homes, strict=True):
        total = sum(counts[minute] for minute in minutes)
        busy_s += total * sum(exec_s[name] for name in mine) / len(mine)
    num_devices = sum(devices.count for devices in case.setup.devices)
    return round(EXEC_LOAD * num_devices * HOUR * 60 / busy_s, 3)


def first_part(case: Case) -> Case:
    """The same arrivals, for the minutes that other policies are played for."""
    duration_s = min(case.duration_s, case.setup.warmup_s + part_s(case))
    setup = msgspec.structs.replace(case.setup, duration_s=duration_s, full_duration_s=None)
    return msgspec.structs.replace(case, setup=setup, duration_s=duration_s)


def part_s(case: Case) -> float:
    entry = case.setup.workload[0]
    assert isinstance(entry, AzureFunctions)
    return FIRST_MINUTES * entry.minute_s


def window_starts(case: Case) -> list[float]:
    """Where windows of the bound begin: with each of the first minutes after the warm-up that are
    played.
    """
    entry = case.setup.workload[0]
    assert isinstance(entry, AzureFunctions)
    begin_s = case.setup.warmup_s
    starts = [begin_s + number * entry.minute_s for number in range(BOUND_MINUTES)]
    return [round(at_s, 3) for at_s in starts if at_s < case.duration_s]
