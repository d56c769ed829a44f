"""What a killed process has started ends with it."""

import os
import select
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Each starts a child that tells its id, and then ends by nobody but the kernel.
STARTS = {
    "a command": """
        import subprocess
        from loadtest.processes import bound_to_parent
        subprocess.Popen(bound_to_parent(["sh", "-c", "echo $$; exec sleep 600"]))
        input()
    """,
    "a process of Python": """
        import signal, subprocess, sys
        child = "import os, signal; from loadtest.processes import end_with_parent; "
        child += "end_with_parent(signal.SIGTERM); print(os.getpid(), flush=True); signal.pause()"
        process = subprocess.Popen([sys.executable, "-c", child])
        input()
    """,
}


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv of util-linux")
@pytest.mark.parametrize("program", STARTS.values(), ids=STARTS)
def test_it_ends_with_a_killed_parent(program: str):
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    child = os.pidfd_open(int(parent.stdout.readline()))
    parent.send_signal(signal.SIGKILL)
    ended, _, _ = select.select([child], [], [], 30.0)  # a pidfd can be read once it has ended
    os.close(child)
    parent.communicate()
    assert ended
