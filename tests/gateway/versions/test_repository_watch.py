"""Files are taken once two looks have seen them alike, and once for each state they are in."""

import os
import shutil
from pathlib import Path

from gateway.versions.repository_watch import NOTHING, RepositoryWatch, State, state_of, states_of


def state(*files: tuple[str, int]) -> State:
    return frozenset((path, num_bytes, 0, 0) for path, num_bytes in files)


OLD, HALF, WHOLE = state(("1", 5)), state(("2", 3)), state(("2", 9))


def test_what_was_there_at_the_start_is_not_taken() -> None:
    watch = RepositoryWatch({"m": OLD})
    assert [watch.look({"m": OLD}) for _ in range(3)] == [[], [], []]


def test_a_change_is_taken_by_the_second_look_that_sees_it_and_once() -> None:
    watch = RepositoryWatch({"m": OLD})
    looks = [OLD, WHOLE, WHOLE, WHOLE]
    assert [watch.look({"m": seen}) for seen in looks] == [[], [], ["m"], []]


def test_what_grows_is_not_taken_until_it_stops() -> None:
    watch = RepositoryWatch({"m": OLD})
    for num_bytes in range(1, 9):
        assert watch.look({"m": state(("2", num_bytes))}) == []
    assert watch.look({"m": WHOLE}) == []
    assert watch.look({"m": WHOLE}) == ["m"]


def test_what_was_taken_half_is_taken_again_when_it_is_whole() -> None:
    watch = RepositoryWatch({"m": OLD})
    looks = [HALF, HALF, HALF, WHOLE, WHOLE]
    assert [watch.look({"m": seen}) for seen in looks] == [[], ["m"], [], [], ["m"]]


def test_a_change_that_is_taken_back_is_none() -> None:
    watch = RepositoryWatch({"m": OLD})
    looks = [WHOLE, OLD, WHOLE, OLD]
    assert [watch.look({"m": seen}) for seen in looks] == [[], [], [], []]


def test_models_that_come_and_go_are_changes() -> None:
    watch = RepositoryWatch({"m": OLD})
    looks: list[dict[str, State]] = [{"m": OLD, "n": WHOLE}, {"n": WHOLE}, {"n": WHOLE}, {}]
    assert [watch.look(seen) for seen in looks] == [[], ["n"], ["m"], []]
    assert watch.look({}) == ["n"]


def test_what_was_taken_by_hand_is_not_taken_again() -> None:
    watch = RepositoryWatch({"m": OLD})
    watch.look({"m": WHOLE})
    assert watch.is_changed("m", WHOLE)
    assert watch.is_changed("n", WHOLE)
    watch.take("m", WHOLE)
    assert not watch.is_changed("m", WHOLE)
    assert watch.look({"m": WHOLE}) == []


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_the_state_is_of_the_highest_version_with_files_and_of_the_config(tmp_path: Path) -> None:
    model = tmp_path / "m"
    assert state_of(model) == NOTHING
    write(model / "1" / "model.onnx", "one")
    first = state_of(model)
    assert len(first) == 1
    (model / "2").mkdir()
    write(model / "notes" / "model.onnx", "no version")
    assert state_of(model) == first
    write(model / "config.yaml", "pinned: true")
    with_config = state_of(model)
    assert first < with_config
    write(model / "2" / "deep" / "weights.bin", "external data")
    second = state_of(model)
    assert not first & second
    write(model / "1" / "model.onnx", "another one")
    assert state_of(model) == second, "nobody would serve it"
    shutil.rmtree(model / "2")
    assert state_of(model) not in (first, second, NOTHING)


def test_a_file_that_is_replaced_by_a_rename_is_another(tmp_path: Path) -> None:
    file, other = tmp_path / "m" / "1" / "model.onnx", tmp_path / "aside"
    write(file, "one")
    write(other, "two")
    before = state_of(tmp_path / "m")
    status = file.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, file)
    assert state_of(tmp_path / "m") != before


def test_a_repository_has_the_state_of_each_model(tmp_path: Path) -> None:
    write(tmp_path / "m" / "1" / "model.onnx", "one")
    write(tmp_path / ".hidden" / "1" / "model.onnx", "being copied")
    write(tmp_path / "README", "no model")
    assert set(states_of(tmp_path)) == {"m"}
    assert states_of(tmp_path / "nowhere") == {}
