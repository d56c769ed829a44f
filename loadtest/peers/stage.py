"""The models that all servers are asked for, with inputs, right answers, and their bare speed.

Owns what is the same for everybody: two models, `fast` and `slow`, one ten times the other. SLOs
are multiples of what they take here and now, so they need no calibration.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from loadtest import repositories
from loadtest.messages import Floats, Tensor
from loadtest.peers.peer import MAX_BATCH
from loadtest.reference import Loop, measure, sample_rows, session_of

NUM_ROWS = 4
BATCHES = (1, 2, 4, MAX_BATCH)


class StagedModel(NamedTuple):
    """`tensor` is its input's name; `outputs` are what ONNX Runtime says to `rows`."""

    path: Path
    tensor: str
    rows: Sequence[Tensor]
    outputs: Sequence[Floats]


class Stage(NamedTuple):
    repository: Path
    models: Mapping[str, StagedModel]

    @property
    def paths(self) -> dict[str, Path]:
        return {name: model.path for name, model in self.models.items()}

    def loops(self, *, seconds: float) -> dict[str, dict[int, Loop]]:
        """How fast the bare loop is at present: hosts of virtual machines change their minds."""
        return {
            name: measure(model.path, seconds=seconds, batch_sizes=BATCHES)
            for name, model in self.models.items()
        }

    def slow_ms(self, *, seconds: float) -> float:
        """One execution of `slow` at present."""
        path = self.models["slow"].path
        return measure(path, seconds=seconds, batch_sizes=[1])[1].exec_p50_ms


def staged(root: Path) -> Stage:
    repository = repositories.two_sizes(root)
    models = {}
    for name in ("fast", "slow"):
        path = repositories.model_path(repository, name)
        rows, outputs = sample_rows(path, NUM_ROWS)
        models[name] = StagedModel(path, session_of(path).get_inputs()[0].name, rows, outputs)
    return Stage(repository, models)
