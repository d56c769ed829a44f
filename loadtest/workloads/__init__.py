"""Workloads as data: who asks which model, when, and by when the answer is wanted.

Owns the randomness of a run: the same seed gives the same requests, and a stream's requests do not
change when another stream is added. It sends nothing and reads no clock, so a simulation and a live
load test play the same workload.
"""

from loadtest.workloads.ask import Ask
from loadtest.workloads.closed_loop import ClosedLoop
from loadtest.workloads.entries import (
    AzureFunctions,
    AzureLlm,
    Closed,
    Diurnal,
    Gamma,
    OnOff,
    OpenEntry,
    Poisson,
    Requests,
    ServeGen,
    SloShare,
    Spread,
    WorkloadEntry,
)
from loadtest.workloads.streams import closed_loops, open_loop

__all__ = [
    "Ask",
    "AzureFunctions",
    "AzureLlm",
    "Closed",
    "ClosedLoop",
    "Diurnal",
    "Gamma",
    "OnOff",
    "OpenEntry",
    "Poisson",
    "Requests",
    "ServeGen",
    "SloShare",
    "Spread",
    "WorkloadEntry",
    "closed_loops",
    "open_loop",
]
