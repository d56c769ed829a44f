"""What an image is made of, against what the wheel needs. `make e2e-image` builds and runs it."""

import re
from pathlib import Path
from typing import Any

import pytest
import tomllib

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
COPIED = re.findall(r"(?m)^!(\S+)$", (ROOT / ".dockerignore").read_text())


def names(requirements: list[str]) -> set[str]:
    """Normalised, without extras and versions."""
    found = [re.match(r"[A-Za-z0-9._-]+", line) for line in requirements]
    return {re.sub(r"[-_.]+", "-", match[0]).lower() for match in found if match}


def locked(file: str) -> set[str]:
    return names(re.findall(r"(?m)^[a-zA-Z0-9].*", (ROOT / file).read_text()))


def test_a_build_sees_every_package_of_the_wheel_and_what_describes_it() -> None:
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    described = {PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    assert {*wheel["packages"], *described, "pyproject.toml", "hatch_build.py"} <= set(COPIED)


@pytest.mark.parametrize(
    ("file", "requirements"),
    [
        ("requirements-image.txt", PROJECT["project"]["dependencies"]),
        ("requirements-image.txt", PROJECT["project"]["optional-dependencies"]["otel"]),
        ("requirements-compile.txt", PROJECT["dependency-groups"]["compile"]),
        ("requirements-gpu-image.txt", PROJECT["dependency-groups"]["gpu-image"]),
    ],
)
def test_the_locks_of_images_have_what_they_are_for(file: str, requirements: list[str]) -> None:
    assert names(requirements) <= locked(file), "run: make lock"


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.gpu"])
def test_images_install_what_is_locked_and_run_as_nobody_special(name: str) -> None:
    text = (ROOT / name).read_text().replace("\\\n", " ")
    installs = re.findall(r"pip \S*[^;\n]*?\binstall\b[^;\n]*", text)
    assert installs
    for install in installs:
        assert "--require-hashes" in install or "--no-index" in install, install
    for copied in re.findall(r"(?m)^COPY (requirements\S*.*) \./$", text):
        assert all((ROOT / file).exists() for file in copied.split())
    assert re.search(r"(?m)^USER 10001:10001$", text)
    # a bare name: where it comes from is said where it is built
    assert re.search(r"(?m)^ARG BASE=[a-z0-9.:-]+$", text)
