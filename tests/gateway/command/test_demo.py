"""The rules around magika's model, as its package has them."""

import io
from pathlib import Path

import pytest

from gateway.command import demo
from gateway.command.demo import FileType

PADDING = 256
LABELS = demo.knowledge().config.target_labels_space


def examined(content: bytes) -> FileType | list[int]:
    return demo.examine_stream(io.BytesIO(content))


def scores(label: str, score: float) -> list[float]:
    rest = (1.0 - score) / (len(LABELS) - 1)
    return [score if name == label else rest for name in LABELS]


def label_and_score(file_type: FileType | list[int]) -> tuple[str, float]:
    assert isinstance(file_type, FileType)
    return file_type.label, file_type.score


def test_a_short_file_is_padded_after_its_beginning_and_before_its_end() -> None:
    text = b"12345678"
    assert examined(text) == [*text, *[PADDING] * 1016, *[PADDING] * 1016, *text]


def test_a_long_file_gives_its_first_and_last_1024_bytes() -> None:
    content = bytes(range(256)) * 40
    expected = [*content[:1024], *content[-1024:]]
    assert examined(content) == expected


def test_white_space_is_stripped_before_the_bytes_are_counted() -> None:
    content = b"\n\t " * 10 + b"#!/bin/sh\nexit 0" + b"\n" * 20
    stripped_left = content.lstrip()
    stripped_right = content.rstrip()
    expected = [*stripped_left, *[PADDING] * (1024 - len(stripped_left))]
    expected += [*[PADDING] * (1024 - len(stripped_right)), *stripped_right]
    assert examined(content) == expected


def test_only_the_first_and_last_4096_bytes_are_stripped() -> None:
    content = b" " * 4090 + b"abcdefghijkl" + b" " * 4090
    # of the first block, six letters are left after stripping: too few to ask the model
    assert label_and_score(examined(content)) == ("txt", 1.0)


@pytest.mark.parametrize(
    ("content", "label"),
    [
        (b"", "empty"),
        (b"a", "txt"),
        (b"1234567", "txt"),
        (b"\xff\xfe\x00", "unknown"),
        (b"   1234567", "txt"),
        (b" " * 10_000, "txt"),
    ],
)
def test_files_with_too_few_bytes_are_named_without_the_model(content: bytes, label: str) -> None:
    assert label_and_score(examined(content)) == (label, 1.0)


def test_directories_and_missing_files(tmp_path: Path) -> None:
    assert label_and_score(demo.examine(tmp_path)) == ("directory", 1.0)
    with pytest.raises(FileNotFoundError):
        demo.examine(tmp_path / "missing")


def test_a_file_on_disk_is_examined_like_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"import sys\n" * 300)
    assert demo.examine(tmp_path / "f") == examined(b"import sys\n" * 300)


def test_a_sure_answer_is_given_with_its_description() -> None:
    answer = demo.interpret(scores("python", 0.99))
    assert (answer.label, answer.score, answer.remark) == ("python", 0.99, "")
    assert answer.content_type.mime_type == "text/x-python"


def test_an_unsure_answer_becomes_text_or_unknown() -> None:
    text = demo.interpret(scores("python", 0.49))
    assert (text.label, text.model_label) == ("txt", "python")
    assert text.remark == "not sure enough that it is python"
    assert demo.interpret(scores("png", 0.49)).label == "unknown"


def test_some_labels_need_a_higher_score_than_others() -> None:
    assert demo.interpret(scores("markdown", 0.74)).label == "txt"
    assert demo.interpret(scores("markdown", 0.75)).label == "markdown"


def test_labels_of_random_content_are_given_their_plain_names() -> None:
    assert demo.interpret(scores("randombytes", 0.99)).label == "unknown"
    assert demo.interpret(scores("randomtxt", 0.99)).label == "txt"


def test_unsure_that_it_is_text_is_text_without_a_remark() -> None:
    answer = demo.interpret(scores("txt", 0.3))
    assert (answer.label, answer.remark) == ("txt", "")


def test_another_number_of_scores_is_an_error() -> None:
    with pytest.raises(ValueError, match="3 scores, magika has 214 labels"):
        demo.interpret([0.1, 0.2, 0.7])


def test_every_label_the_rules_can_give_has_a_description() -> None:
    known = demo.knowledge().content_types
    given = {*LABELS, *demo.knowledge().config.overwrite_map.values()}
    assert {*given, "txt", "unknown", "empty", "directory"} <= set(known)
