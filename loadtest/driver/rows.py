"""Rows of results out of figures: one for each model and SLO of a measurement.

Owns which figure goes into which column, and nothing about how it came to be.
"""

from collections.abc import Mapping

import msgspec

from loadtest.analysis.cell import Cell
from loadtest.driver.crew import Shift
from loadtest.driver.figures import max_ms, quantile_ms, steps_ms
from loadtest.driver.job_file import Case
from loadtest.driver.job_target import Remontoir
from loadtest.driver.model_files import ModelFile
from loadtest.driver.plans import Planned
from loadtest.driver.targets import cpus_of
from loadtest.machine import Machine
from loadtest.workloads import Closed
from scheduler.spec import MILLISECOND_NS


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is the same for all rows of one measurement."""

    job: str
    job_hash: str
    run_id: str
    started_at: str
    ended_at: str
    partial: str
    server_cpu_s: float | None
    server_rss_bytes: int | None
    cold_start_ms: float | None
    ceiling_per_s: float | None
    machine: Machine
    load_average: float


def rows_of(
    case: Case, planned: Planned, shift: Shift, facts: Facts, files: Mapping[str, ModelFile]
) -> list[Cell]:
    """In the order of the groups."""
    cells = []
    rates = [_rate(planned, shift, index) for index in range(len(shift.parts))]
    seen: dict[tuple[str, str, float, float], int] = {}
    for index, (group, part) in enumerate(zip(planned.plan.groups, shift.parts, strict=True)):
        entry = planned.plan.entries[group.entry]
        slo_ms = group.slo_ns / MILLISECOND_NS
        arrivals = str(entry.__struct_config__.tag) + (f" {entry.name}" if entry.name else "")
        # two entries alike would be one row: the second says that it is another
        key = (group.model, arrivals, rates[index], slo_ms)
        seen[key] = seen.get(key, 0) + 1
        if seen[key] > 1:
            arrivals += f" #{seen[key]}"
        file = files.get(group.model)
        model = next(each for each in case.job.models if each.name == group.model)
        target = case.job.target
        cells.append(
            Cell(
                job=facts.job,
                run_id=facts.run_id,
                repeat=case.repeat,
                seed=case.seed,
                started_at=facts.started_at,
                ended_at=facts.ended_at,
                model=group.model,
                config=case.config,
                arrivals=arrivals,
                rate_per_s=rates[index],
                slo_ms=slo_ms,
                slo_sent_ms=planned.slo_sent_ms[index],
                duration_s=shift.played_s,
                warm_up_s=case.job.warm_up_s,
                sent=part.sent,
                good=part.good,
                late=part.late,
                refused=part.refused,
                failed=part.failed,
                device=target.device if isinstance(target, Remontoir) else "cpu",
                devices=len(cpus_of(target.cpus)) if target.url is None else 1,
                batch=model.batch,
                latency=steps_ms(part.latency),
                p50_ms=quantile_ms(part.latency, 50),
                p99_ms=quantile_ms(part.latency, 99),
                p999_ms=quantile_ms(part.latency, 99.9),
                late_p50_ms=quantile_ms(part.lateness, 50),
                refusal_p50_ms=quantile_ms(part.refusal, 50),
                refusal_p99_ms=quantile_ms(part.refusal, 99),
                stages=tuple(
                    (name, total / part.num_staged) for name, total in part.stage_ms.items()
                ),
                cold_start_ms=facts.cold_start_ms,
                server_cpu_s=facts.server_cpu_s,
                server_rss_bytes=facts.server_rss_bytes,
                driver_error_p99_ms=quantile_ms(part.driver_error, 99),
                driver_error_max_ms=max_ms(part.driver_error),
                driver_ceiling_per_s=facts.ceiling_per_s,
                prediction_error_p50_ms=quantile_ms(part.prediction_error, 50),
                prediction_error_p99_ms=quantile_ms(part.prediction_error, 99),
                partial=facts.partial,
                errors=tuple(sorted(part.errors.items())),
                model_path="" if file is None else str(file.path.resolve()),
                model_hash="" if file is None else file.sha256,
                machine=f"{facts.machine.cpu}, {facts.machine.num_cpus} CPUs",
                commit=facts.machine.commit,
                point=case.name,
                job_hash=facts.job_hash,
                histogram=part.latency,
                refusal_histogram=part.refusal,
                environment=_environment(case, facts),
            )
        )
    return cells


def _rate(planned: Planned, shift: Shift, index: int) -> float:
    """What was offered; a trace at its own rate says it only once it was played: two digits, so
    that repeats are alike.
    """
    entry = planned.plan.entries[planned.plan.groups[index].entry]
    if planned.rates[index] or isinstance(entry, Closed):
        return planned.rates[index]
    return float(f"{shift.parts[index].sent / shift.played_s:.2g}")


def _environment(case: Case, facts: Facts) -> dict[str, str]:
    machine, job = facts.machine, case.job
    return {
        "cpu": machine.cpu,
        "num_cpus": str(machine.num_cpus),
        "memory_gib": f"{machine.memory_gib:.1f}",
        "kernel": machine.kernel,
        "python": machine.python,
        **machine.versions,
        "load_average": f"{facts.load_average:.2f}",
        "server_cpus": job.target.cpus if job.target.url is None else job.target.url,
        "driver_processes": str(job.processes),
        "connections": str(job.connections),
    }
