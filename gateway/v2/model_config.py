"""A model as Triton's ModelConfig: what tools read to know how to ask it.

It owns the translation of a ModelSpec into those words. It must never say what a client would act
on wrongly: with `max_batch_size` above 0, a reader puts a batch axis before every tensor's `dims`.
"""

import msgspec

from scheduler.spec import ModelSpec, TensorSpec


class TensorConfig(msgspec.Struct, frozen=True):
    name: str
    data_type: str
    dims: tuple[int, ...]


class DynamicBatching(msgspec.Struct, frozen=True):
    """Requests share batches. How many wait for whom is found while it runs: no settings."""

    preferred_batch_size: tuple[int, ...]


class TransactionPolicy(msgspec.Struct, frozen=True):
    decoupled: bool = False


class ResponseCache(msgspec.Struct, frozen=True):
    enable: bool


class ModelConfiguration(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[TensorConfig]
    output: list[TensorConfig]
    model_transaction_policy: TransactionPolicy
    dynamic_batching: DynamicBatching | None = None
    response_cache: ResponseCache | None = None


def configuration_of(spec: ModelSpec) -> ModelConfiguration:
    """`max_batch_size` is 0 unless rows are axis 0 of every tensor, as Triton's rule is."""
    tensors = (*spec.inputs, *spec.outputs)
    has_rows = bool(tensors) and all(tensor.batch_axis == 0 for tensor in tensors)
    batches = has_rows and spec.max_batch_rows > 1
    is_cached = spec.sharing is not None and spec.sharing.cache_bytes > 0
    return ModelConfiguration(
        name=spec.name,
        platform=spec.platform,
        backend=spec.platform.partition("_")[0],
        max_batch_size=spec.max_batch_rows if has_rows else 0,
        input=[_tensor(tensor, has_rows) for tensor in spec.inputs],
        output=[_tensor(tensor, has_rows) for tensor in spec.outputs],
        model_transaction_policy=TransactionPolicy(),
        dynamic_batching=DynamicBatching(spec.batch_sizes) if batches else None,
        response_cache=ResponseCache(True) if is_cached else None,
    )


def _tensor(spec: TensorSpec, has_rows: bool) -> TensorConfig:
    datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return TensorConfig(spec.name, f"TYPE_{datatype}", spec.shape[1:] if has_rows else spec.shape)
