"""A model's statistics in the words of the protocol's statistics extension.

It owns the translation of gateway/metrics/tallies.py. Counts and nanoseconds are since the
gateway started.
"""

import msgspec

from gateway.inference.answer_sharing import HIT, MISS, AnswerSharing
from gateway.metrics.tallies import ModelTallies
from scheduler.spec import MILLISECOND_NS, ModelSpec


class Duration(msgspec.Struct, frozen=True):
    """`ns` is the sum over `count`."""

    count: int
    ns: int


_NONE = Duration(0, 0)


class InferenceStats(msgspec.Struct, frozen=True):
    """`success` and `fail` are the gateway's whole time with a request, `queue` what of it was
    waiting, but not for weights. A request counts with the compute time of its whole batch, also
    one whose client had gone. `cache_hit` and `cache_miss` are what looking took, of a model with a
    cache; who shared another's execution is in neither.
    """

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration = _NONE
    cache_miss: Duration = _NONE


class BatchStats(msgspec.Struct, frozen=True):
    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class ModelStats(msgspec.Struct, frozen=True):
    """`inference_count` counts rows, `execution_count` batches; `last_inference` is in ms since
    the epoch, 0 before the first.
    """

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: InferenceStats
    batch_stats: list[BatchStats]


class Statistics(msgspec.Struct, frozen=True):
    model_stats: list[ModelStats]


def statistics_of(
    spec: ModelSpec,
    tallies: ModelTallies | None,
    *,
    epoch_ns: int,
    sharing: AnswerSharing | None = None,
) -> ModelStats:
    """`epoch_ns` is the instant of the epoch at which the clock of `tallies` was 0."""
    if tallies is None:
        none = InferenceStats(_NONE, _NONE, _NONE, _NONE, _NONE, _NONE)
        return ModelStats(spec.name, spec.version, 0, 0, 0, none, [])
    executions = tallies.executions
    by_rows = sorted(executions.by_rows.items())
    num_executed, num_served = executions.num_requests, tallies.num_served
    num_others = tallies.outcomes.total() - num_served
    last_ns = executions.last_ns
    return ModelStats(
        name=spec.name,
        version=spec.version,
        last_inference=0 if last_ns is None else (epoch_ns + last_ns) // MILLISECOND_NS,
        inference_count=sum(rows * sums[0] for rows, sums in by_rows),
        execution_count=sum(sums[0] for _, sums in by_rows),
        inference_stats=InferenceStats(
            success=Duration(num_served, tallies.served_ns),
            fail=Duration(num_others, tallies.request_ns.total - tallies.served_ns),
            queue=Duration(num_served, tallies.queue_ns.total),
            compute_input=Duration(num_executed, executions.input_ns),
            compute_infer=Duration(num_executed, executions.exec_ns),
            compute_output=Duration(num_executed, executions.output_ns),
            cache_hit=_of_cache(sharing, HIT),
            cache_miss=_of_cache(sharing, MISS),
        ),
        batch_stats=[
            BatchStats(rows, *[Duration(sums[0], ns) for ns in sums[1:]]) for rows, sums in by_rows
        ],
    )


def _of_cache(sharing: AnswerSharing | None, result: str) -> Duration:
    if sharing is None or not sharing.cache.max_bytes:
        return _NONE
    return Duration(sharing.counts[result], sharing.lookup_ns[result])
