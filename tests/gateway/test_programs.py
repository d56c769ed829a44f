"""Which code a program of ours runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from gateway.programs import program
from tests.gateway.running import ROOT


def test_a_folder_of_the_same_name_in_the_current_directory_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gpuworker").mkdir()
    (tmp_path / "gpuworker" / "__main__.py").write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(sys, "path", [str(ROOT)])
    done = subprocess.run([*program("gpuworker"), "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "not ours" not in done.stderr


def test_python_m_gateway_in_a_checkout_that_is_not_installed_runs_the_checkout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [str(ROOT)])
    assert program("gpuworker") == [sys.executable, "-m", "gpuworker"]
