"""`remontoir check`: whether a running gateway does what it is there for, from outside.

Owns the four questions: is it live, is it ready, does it answer in time, does it refuse what cannot
be. It must never change anything: it asks one small inference, and one that no device can meet.
"""

import json
import time
from collections.abc import Sequence

from rich.console import Console

from gateway.command.announce import example_of
from gateway.command.client import Client, ClientError, JsonObject, inputs_of_json
from scheduler.spec import ModelProfile, ModelSpec, ShapeProfile, TensorSpec

# A microsecond: no execution is as short.
IMPOSSIBLE_SLO_MS = 0.001
# Why it may be refused: it could never be met, or the tenant must not ask for it; or, of several
# gateways, it was another's to say, and the deadline passed on the way.
RIGHT_REASONS = (
    "slo_infeasible_ever",
    "slo_infeasible_now",
    "slo_below_tenant_minimum",
    "deadline_exceeded_executing",
)


def check(
    gateway: Client,
    console: Console,
    *,
    model: str | None,
    json_text: str | None,
    slo_ms: float,
) -> None:
    """Prints a line for each question that was answered well. Raises ClientError at the first that
    was not.
    """
    for what, path in (("live", "/livez"), ("ready", "/readyz")):
        begin_ns = time.perf_counter_ns()
        gateway.get(path)
        _say(console, what, f"GET {path}: 200 in {_ms_since(begin_ns):.1f} ms")
    name, inputs = _question(gateway, model, json_text)
    answer = gateway.infer(name, inputs, [], slo_ms)
    cold = ", weights loaded for it" if answer.body["timing_ms"].get("load_wait") else ""
    _say(
        console,
        "answers",
        f"{name} in {answer.round_trip_ms:.1f} ms of {slo_ms:g} ms{cold}",
    )
    begin_ns = time.perf_counter_ns()
    refusal = gateway.refusal(name, inputs, IMPOSSIBLE_SLO_MS)
    reason = refusal["reason"]
    if reason not in RIGHT_REASONS:
        raise ClientError(
            f"an SLO of {IMPOSSIBLE_SLO_MS:g} ms was refused for {reason}: {refusal['detail']}"
        )
    _say(
        console,
        "refuses",
        f"an SLO of {IMPOSSIBLE_SLO_MS:g} ms: {refusal['status']} {reason} in"
        f" {_ms_since(begin_ns):.1f} ms",
    )


def _question(
    gateway: Client, model: str | None, json_text: str | None
) -> tuple[str, list[JsonObject]]:
    """Which model to ask, and what: what was given, or zeros."""
    if model is not None and json_text is not None:
        return model, inputs_of_json(json_text, gateway.model(model))
    entries = gateway.models() if model is None else [gateway.model(model)]
    able = [entry for entry in entries if entry["unavailable_reason"] is None]
    if not able:
        why = f"{model}: {entries[0]['unavailable_reason']}" if model else "no model is available"
        raise ClientError(why)
    example = example_of([_spec(entry) for entry in able])
    if example is None:
        names = ", ".join(entry["name"] for entry in able)
        raise ClientError(f"no small inputs of zeros suit {names}: give --model and --json")
    inputs: list[JsonObject] = json.loads(example.body)["inputs"]
    return example.model, inputs


def _spec(entry: JsonObject) -> ModelSpec:
    """What the choice of an example looks at, of an entry of /models."""
    shapes = tuple(ShapeProfile(shape["shape_key"], 0, {}) for shape in entry["profile"]["shapes"])
    return ModelSpec(
        name=entry["name"],
        version=entry["version"],
        content_hash="",
        platform=entry["platform"],
        inputs=_tensors(entry["inputs"]),
        outputs=_tensors(entry["outputs"]),
        batch_sizes=tuple(entry["batch_sizes"]),
        runs_exact_batch=entry["runs_exact_batch"],
        weights_bytes=entry["weights_bytes"],
        profile=ModelProfile(load_ns=0, shapes=shapes),
    )


def _tensors(entries: Sequence[JsonObject]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(entry["name"], entry["datatype"], tuple(entry["shape"]), entry["batch_axis"])
        for entry in entries
    )


def _say(console: Console, what: str, how: str) -> None:
    console.print(f"[green]ok[/green]  {what:8}", end="")
    console.print(how, markup=False, soft_wrap=True)


def _ms_since(begin_ns: int) -> float:
    return (time.perf_counter_ns() - begin_ns) / 1e6
