"""Groups of variants: which models stand behind a group's name, and what has come of them.

It owns the comparison of members' signatures, the group's face as if it were a model, and its
counters. It must never ask the scheduler: gateway/variants/variants.py chooses.
"""

from collections.abc import Iterator, Mapping

import msgspec

from gateway.errors import RequestError
from gateway.inference.tensors import unknown_tensor
from gateway.variants.exp3 import Exp3
from gateway.variants.groups_file import Groups as GroupSpecs
from gateway.variants.groups_file import GroupsError, GroupSpec
from scheduler.priority import NORMAL
from scheduler.spec import MILLISECOND_NS, SECOND_NS, ModelProfile, ModelSpec, TensorSpec


class Member:
    """One model of a group, and what is counted of it there."""

    __slots__ = ("accuracy", "loss", "model", "num_feedback", "num_served")

    def __init__(self, model: str, accuracy: float | None) -> None:
        self.model = model
        self.accuracy = accuracy
        self.num_served = 0
        self.num_feedback = 0
        self.loss = 0.0  # sum over all feedback


class Group:
    """`members` are in order of preference."""

    def __init__(self, name: str, spec: GroupSpec) -> None:
        self.name = name
        self.spec = spec
        self.members = [Member(member.model, member.accuracy) for member in spec.members]
        self.feedback_ns = round(spec.feedback_s * SECOND_NS)
        self.exp3: Exp3 | None = None
        if spec.selection == "exp3":
            self.exp3 = Exp3(len(self.members), eta=spec.eta, seed=spec.seed)
        self._default_slo_ns = (
            None if spec.default_slo_ms is None else round(spec.default_slo_ms * MILLISECOND_NS)
        )
        self._specs: tuple[ModelSpec | None, ...] = ()
        self._face: ModelSpec | None = None
        self._reasons: list[str | None] = []

    def face(self, catalog: Mapping[str, ModelSpec]) -> ModelSpec:
        """The group as a model: tensors of its members, the most rows that any of them takes."""
        specs = tuple(catalog.get(member.model) for member in self.members)
        if self._face is None or any(
            new is not old for new, old in zip(specs, self._specs, strict=True)
        ):
            self._specs = specs
            self._reasons = _reasons(self, specs)
            self._face = self._made()
        return self._face

    def reasons(self, catalog: Mapping[str, ModelSpec]) -> list[str | None]:
        """By member: why it cannot be chosen now, None where it can."""
        self.face(catalog)
        return self._reasons

    def check(self, catalog: Mapping[str, ModelSpec]) -> None:
        """Raises GroupsError where the group could never be what its file says."""
        where = f"group {self.name}"
        if self.name in catalog:
            raise GroupsError(f"{where}: a model has this name too; call the group something else")
        for member in self.members:
            if member.model not in catalog:
                known = ", ".join(sorted(catalog)) or "none"
                raise GroupsError(f"{where}: there is no model {member.model!r}; there are {known}")
        for member, reason in zip(self.members, self.reasons(catalog), strict=True):
            if reason is not None and catalog[member.model].unavailable_reason is None:
                raise GroupsError(f"{where}: {member.model} cannot be a member: {reason}")

    def _made(self) -> ModelSpec:
        pairs = zip(self._specs, self._reasons, strict=True)
        served = [spec for spec, reason in pairs if spec is not None and reason is None]
        if not served:
            reasons = [
                f"{member.model}: {reason}"
                for member, reason in zip(self.members, self._reasons, strict=True)
            ]
            return ModelSpec(
                name=self.name,
                version="",
                content_hash="",
                platform="group",
                inputs=(),
                outputs=(),
                batch_sizes=(1,),
                runs_exact_batch=True,
                weights_bytes=0,
                profile=ModelProfile(0, ()),
                default_slo_ns=self._default_slo_ns,
                unavailable_reason=f"none of its members can be served ({'; '.join(reasons)})",
            )
        widest = max(served, key=lambda spec: spec.max_batch_rows)
        return msgspec.structs.replace(
            widest,
            name=self.name,
            version="",
            content_hash="",
            platform="group",
            weights_bytes=0,
            default_slo_ns=self._default_slo_ns,
            is_pinned=False,
            priority=NORMAL,
            sharing=None,
        )


class Groups(Mapping[str, Group]):
    """By name. `catalog` is the HTTP side's, which may change."""

    def __init__(self, specs: GroupSpecs, catalog: Mapping[str, ModelSpec]) -> None:
        self._groups = {name: Group(name, spec) for name, spec in specs.items()}
        self.catalog = catalog

    def __getitem__(self, name: str) -> Group:
        return self._groups[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)

    def check(self) -> None:
        """Once the models are known. Raises GroupsError."""
        for group in self._groups.values():
            group.check(self.catalog)


class CatalogWithGroups(Mapping[str, ModelSpec]):
    """The catalogue, in which a group is found by its name, and not listed."""

    def __init__(self, catalog: Mapping[str, ModelSpec], groups: Groups) -> None:
        self._catalog = catalog
        self._groups = groups

    def __getitem__(self, name: str) -> ModelSpec:
        spec = self._catalog.get(name)
        if spec is not None:
            return spec
        return self._groups[name].face(self._catalog)

    def __iter__(self) -> Iterator[str]:
        return iter(self._catalog)

    def __len__(self) -> int:
        return len(self._catalog)


def _reasons(group: Group, specs: tuple[ModelSpec | None, ...]) -> list[str | None]:
    reasons: list[str | None] = []
    first: ModelSpec | None = None
    for spec in specs:
        reason = "there is no such model" if spec is None else spec.unavailable_reason
        if spec is not None and reason is None:
            reason = unknown_tensor(spec)
        if spec is not None and reason is None:
            if first is None:
                first = spec
            else:
                reason = difference(first, spec)
        reasons.append(reason)
    return reasons


def difference(one: ModelSpec, other: ModelSpec) -> str | None:
    """Where a request for one is no request for the other; None where it is."""
    for kind, ours, theirs in (
        ("input", one.inputs, other.inputs),
        ("output", one.outputs, other.outputs),
    ):
        if len(ours) != len(theirs):
            return (
                f"it has {len(theirs)} {kind}s ({_names(theirs)}), "
                f"{one.name} has {len(ours)} ({_names(ours)})"
            )
        for position, (our, their) in enumerate(zip(ours, theirs, strict=True)):
            if our != their:
                return (
                    f"its {kind} {position} is {_shown(their)}, that of {one.name} is {_shown(our)}"
                )
    return None


def _names(tensors: tuple[TensorSpec, ...]) -> str:
    return ", ".join(tensor.name for tensor in tensors)


def _shown(tensor: TensorSpec) -> str:
    axis = "none" if tensor.batch_axis is None else tensor.batch_axis
    return f"{tensor.name!r} {tensor.datatype} {list(tensor.shape)} (batch axis {axis})"


def unavailable(face: ModelSpec) -> RequestError:
    return RequestError("model_unavailable", f"group {face.name}: {face.unavailable_reason}")
