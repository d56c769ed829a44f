import subprocess
import sys

from loadtest.__main__ import PARTS


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "loadtest", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_names_every_part():
    text = run("--help").stdout
    assert all(name in text for name in PARTS)


def test_an_unknown_part_is_a_usage_error():
    done = run("underload")
    assert done.returncode == 2
    assert "underload" in done.stderr
