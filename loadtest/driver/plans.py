"""From a measurement's words to a plan for the driver: inputs, requests, what is right for them.

Owns the making of groups: an entry's requests to one model with one SLO. It sends nothing.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from loadtest.driver import client_stages
from loadtest.driver.bare_loop import slos_ms
from loadtest.driver.inputs import Examples, Input, examples, inputs_of_file, inputs_of_metadata
from loadtest.driver.job import usual_protocol
from loadtest.driver.job_file import Case, JobError
from loadtest.driver.job_target import PeerServer
from loadtest.driver.model_files import ModelFile
from loadtest.driver.protocols import request
from loadtest.driver.shooting import Group, Plan
from loadtest.driver.targets import Running
from loadtest.workloads import Closed, SloShare, WorkloadEntry
from loadtest.workloads.choice import matching_models
from scheduler.spec import MILLISECOND_NS

# What a reply is taken to have beside its outputs, before one was seen.
REPLY_HEAD_BYTES = 300


class Planned(NamedTuple):
    """`rates[i]` are requests per second that group i is expected to get, 0 in a closed loop;
    `slo_sent_ms[i]` is what is left of its SLO for the server.
    """

    plan: Plan
    rates: list[float]
    slo_sent_ms: list[float]


def planned(
    case: Case,
    entries: tuple[WorkloadEntry, ...],
    *,
    files: Mapping[str, ModelFile],
    server: Running,
    cpus: tuple[int, ...],
) -> Planned:
    """Raises JobError, InputError, TargetError."""
    job = case.job
    stages = client_stages.measure(job.client, seed=case.seed)
    names = tuple(model.name for model in job.models)
    made = {
        model.name: _examples(case, index, files.get(model.name), server)
        for index, model in enumerate(job.models)
    }
    groups, rates, sent_ms = [], [], []
    for number, entry in enumerate(entries):
        models = matching_models(entry, names)
        shares = _shares(entry, models)
        for model in models:
            for slo_ms in sorted(set(slos_ms(entry))):
                group, left_ms = _group(
                    case, number, entry, model, slo_ms, made[model], stages=stages, server=server
                )
                groups.append(group)
                sent_ms.append(left_ms)
                rates.append(shares[model] * _weight(entry, slo_ms))
    plan = Plan(
        host=server.host,
        port=server.port,
        is_tls=server.is_tls,
        target=server.target,
        entries=entries,
        models=names,
        groups=groups,
        stages=stages,
        duration_s=job.duration_s,
        warm_up_s=job.warm_up_s,
        give_up_s=job.give_up_s,
        connections=job.connections,
        seed=case.seed,
        cpus=cpus,
        parts=job.processes,
    )
    return Planned(plan, rates, sent_ms)


def _examples(case: Case, index: int, file: ModelFile | None, server: Running) -> Examples:
    model = case.job.models[index]
    shapes = dict(model.shapes) if file is None else file.shapes
    inputs: Sequence[Input] = (
        inputs_of_metadata(server.metadata(model.name), model.name)
        if file is None
        else inputs_of_file(file.path, model.name)
    )
    return examples(
        inputs,
        model=model.name,
        rows=model.batch,
        count=case.job.variants,
        seed=1000 * case.seed + index,
        shapes=shapes,
        path=None if file is None else file.path,
    )


def _group(
    case: Case,
    number: int,
    entry: WorkloadEntry,
    model: str,
    slo_ms: float,
    made: Examples,
    *,
    stages: client_stages.Stages,
    server: Running,
) -> tuple[Group, float]:
    # a peer is asked as what it turned out to be
    is_peer = isinstance(case.job.target, PeerServer)
    protocol = usual_protocol(server.target) if is_peer else case.job.spoken

    def requests(left_ms: float) -> list[bytes]:
        return [
            request(
                protocol,
                server.target,
                host=server.name,
                model=model,
                inputs=inputs,
                slo_ms=left_ms,
                priority=entry.priority_class,
            )
            for inputs in made.inputs
        ]

    reply_bytes = REPLY_HEAD_BYTES
    if made.outputs:
        reply_bytes += sum(array.nbytes for array in made.outputs[0].values())
    own_ms = stages.expected_ms(len(requests(slo_ms)[0]), reply_bytes)
    left_ms = round(slo_ms - own_ms, 3)
    if left_ms <= 0:
        raise JobError(
            f"model {model!r}: of an SLO of {slo_ms:g} ms the client's own work and its link take "
            f"{own_ms:.1f} ms (a request of {len(requests(slo_ms)[0]):,} bytes): nothing is left"
        )
    group = Group(number, model, round(slo_ms * MILLISECOND_NS), requests(left_ms), made.outputs)
    return group, left_ms


def _shares(entry: WorkloadEntry, models: Sequence[str]) -> dict[str, float]:
    """An entry's rate, divided among its models as it is drawn."""
    if isinstance(entry, Closed):
        return dict.fromkeys(models, 0.0)
    rate_per_s = getattr(entry, "rate_per_s", None) or getattr(entry, "scale_to_rate_per_s", None)
    skew = getattr(entry, "skew", 0.0)
    weights = [(index + 1) ** -skew for index in range(len(models))]
    total = sum(weights)
    return {
        model: round((rate_per_s or 0.0) * weight / total, 6)
        for model, weight in zip(models, weights, strict=True)
    }


def _weight(entry: WorkloadEntry, slo_ms: float) -> float:
    if not isinstance(entry.slo_ms, tuple):
        return 1.0
    shares: tuple[SloShare, ...] = entry.slo_ms
    own = sum(share.weight for share in shares if share.slo_ms == slo_ms)
    return own / sum(share.weight for share in shares)
