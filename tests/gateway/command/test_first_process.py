"""A process of its own, since signals are the process's."""

import signal
import subprocess
import sys

from tests.gateway.running import ROOT, environment

STORY = """
import signal, sys
from gateway.command.first_process import end_on_sigterm
end_on_sigterm(int(sys.argv[1]))
print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, flush=True)
signal.pause()
"""


def ended_by_sigterm(pid: int) -> tuple[str, int]:
    """Whether it was left to the kernel, and the exit code."""
    process = subprocess.Popen(
        [sys.executable, "-c", STORY, str(pid)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        process.send_signal(signal.SIGTERM)
        return said, process.wait(timeout=60)
    finally:
        process.kill()
        process.communicate()


def test_the_first_process_hears_sigterm_and_ends_as_others_do() -> None:
    assert ended_by_sigterm(1) == ("False", 128 + signal.SIGTERM)


def test_any_other_leaves_it_to_the_kernel() -> None:
    assert ended_by_sigterm(4711) == ("True", -signal.SIGTERM)
