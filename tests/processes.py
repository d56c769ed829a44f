"""What /proc tells of another process, for tests from outside."""

from pathlib import Path

# Reading of a process that ends meanwhile fails in either way: before and after the file is opened.
GONE = (FileNotFoundError, ProcessLookupError)


def is_alive(pid: int) -> bool:
    """False too where it has ended and nobody has asked for its exit code yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except GONE:
        return False


def child_pids(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
