"""The magika demo: a file → the model's input, the model's output → the name of a type.

Owns the rules around the model, as magika 1.0.3's Python package has them in its default mode
(high confidence): which bytes of a file the model sees, which files it need not see at all, and
when its answer is too unsure to be given. The labels and thresholds are the package's own
(data/magika_standard_v3_3.json). The gateway itself knows nothing of this.
"""

import functools
import importlib.resources
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

MODEL_NAME = "magika"
INPUT_NAME = "bytes"


class ContentType(msgspec.Struct, frozen=True):
    description: str | None
    mime_type: str | None
    group: str | None
    is_text: bool


class Rules(msgspec.Struct, frozen=True):
    """The package's config.min.json. Sizes in bytes; thresholds are per label of the model."""

    beg_size: int
    end_size: int
    block_size: int
    padding_token: int
    min_file_size_for_dl: int
    medium_confidence_threshold: float
    thresholds: dict[str, float]
    overwrite_map: dict[str, str]
    target_labels_space: tuple[str, ...]


class Knowledge(msgspec.Struct, frozen=True):
    source: str
    licence: str
    config: Rules
    content_types: dict[str, ContentType]


class FileType(NamedTuple):
    """What a file is. `model_label` is what the model said, None where it was not asked."""

    label: str
    content_type: ContentType
    score: float
    model_label: str | None
    remark: str


@functools.cache
def knowledge() -> Knowledge:
    path = importlib.resources.files("gateway") / "data" / "magika_standard_v3_3.json"
    return msgspec.json.decode(path.read_bytes(), type=Knowledge)


def examine(path: Path) -> FileType | list[int]:
    """The model's input for this file, or the answer where the model is not needed for it.

    Raises OSError where the file cannot be read.
    """
    if path.is_dir():
        return _named("directory", "a directory")
    if path.exists() and not path.is_file():
        return _named("unknown", "neither a file nor a directory")
    with path.open("rb") as file:
        return examine_stream(file)


def examine_stream(file: BinaryIO) -> FileType | list[int]:
    """As `examine`, for anything that can be read and sought."""
    rules = knowledge().config
    num_bytes = file.seek(0, os.SEEK_END)
    if num_bytes == 0:
        return _named("empty", "the file is empty")
    # Blocks larger than what the model sees, as white space around them is stripped.
    block_size = min(rules.block_size, num_bytes)
    file.seek(0)
    first = file.read(block_size)
    file.seek(num_bytes - block_size)
    last = file.read(block_size)
    beginning = first.lstrip()[: rules.beg_size]
    if min(num_bytes, len(beginning)) < rules.min_file_size_for_dl:
        is_text = _is_utf8(first)
        return _named("txt" if is_text else "unknown", "too few bytes for the model")
    end = last.rstrip()[-rules.end_size :]
    padding = rules.padding_token
    return [
        *beginning,
        *[padding] * (rules.beg_size - len(beginning)),
        *[padding] * (rules.end_size - len(end)),
        *end,
    ]


def interpret(scores: Sequence[float]) -> FileType:
    """The model's 214 scores → a type. Raises ValueError for another number of scores."""
    rules = knowledge().config
    if len(scores) != len(rules.target_labels_space):
        raise ValueError(
            f"{len(scores)} scores, magika has {len(rules.target_labels_space)} labels"
        )
    best = max(range(len(scores)), key=scores.__getitem__)
    score = scores[best]
    model_label = rules.target_labels_space[best]
    label = rules.overwrite_map.get(model_label, model_label)
    remark = ""
    if score < rules.thresholds.get(model_label, rules.medium_confidence_threshold):
        is_text = knowledge().content_types[label].is_text
        label = "txt" if is_text else "unknown"
        remark = "" if label == model_label else f"not sure enough that it is {model_label}"
    return FileType(label, knowledge().content_types[label], score, model_label, remark)


def _named(label: str, remark: str) -> FileType:
    return FileType(label, knowledge().content_types[label], 1.0, None, remark)


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
