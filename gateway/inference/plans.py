"""Plans: how each model's inputs are read, made once and kept until the model is another.

It owns what is said of a model that is not here, or of a version that it has not. It must never
look at a request.
"""

from collections.abc import Mapping

from gateway.errors import RequestError
from gateway.inference.answer_sharing import Sharings
from gateway.inference.tensors import ModelPlan, unknown_tensor
from gateway.variants.groups import Groups, unavailable
from gateway.versions.versions import NONE_KEPT, versions_of
from scheduler.spec import ModelSpec


class Plans:
    """Of the models of a catalogue, groups of them, and versions kept beside those (by name and
    version).
    """

    def __init__(
        self,
        catalog: Mapping[str, ModelSpec],
        groups: Groups,
        sharings: Sharings,
        kept: Mapping[tuple[str, str], ModelSpec] = NONE_KEPT,
    ) -> None:
        self._catalog = catalog
        self._groups = groups
        self._sharings = sharings
        self._kept = kept
        # By the model's name, and for versions that are kept, by their own in the scheduler.
        self._plans: dict[str, ModelPlan] = {}

    def plan_of(self, name: str, version: str | None = None) -> ModelPlan:
        """Raises RequestError: not_found, or model_unavailable with the reason."""
        spec = self._catalog.get(name)
        if version is not None and spec is not None and version != spec.version:
            return self._plan_of_kept(spec, version)
        plan = self._plans.get(name)
        if plan is not None and plan.spec is spec:
            return plan
        if spec is None:
            return self._plan_of_group(name, version)
        if spec.unavailable_reason is not None:
            raise RequestError("model_unavailable", f"model {name}: {spec.unavailable_reason}")
        unknown = unknown_tensor(spec)
        if unknown is not None:
            raise RequestError("model_unavailable", f"model {name}: {unknown}")
        plan = self._plans[name] = ModelPlan(spec, self._sharings.of(spec))
        return plan

    def _plan_of_group(self, name: str, version: str | None) -> ModelPlan:
        """The group's own: its members' tensors, under its name."""
        group = self._groups.get(name)
        if group is None:
            self._plans.pop(name, None)
            raise RequestError("not_found", f"no model {name[:200]!r} is served here")
        face = group.face(self._catalog)
        if face.unavailable_reason is not None:
            raise unavailable(face)
        if version is not None:
            raise RequestError("not_found", no_such_version(face, version, self._kept))
        plan = self._plans.get(name)
        if plan is None or plan.spec is not face:
            plan = self._plans[name] = ModelPlan(face, group=group)
        return plan

    def _plan_of_kept(self, serving: ModelSpec, version: str) -> ModelPlan:
        """Of a version beside the one that serves, for which alone answers are remembered."""
        name = f"{serving.name}/{version}"  # no model is called that
        spec = self._kept.get((serving.name, version))
        if spec is None:
            self._plans.pop(name, None)
            raise RequestError("not_found", no_such_version(serving, version, self._kept))
        plan = self._plans.get(name)
        if plan is None or plan.spec is not spec:
            plan = self._plans[name] = ModelPlan(spec)
        return plan


def no_such_version(
    spec: ModelSpec, version: str, kept: Mapping[tuple[str, str], ModelSpec]
) -> str:
    """Names the versions there are."""
    if not spec.version:
        return f"{spec.name} is a group, which has no versions"
    there = ", ".join(versions_of(spec, kept))
    return f"model {spec.name} has no version {version[:60]!r} here; it has {there}"
