"""LaneTimes: how long the lanes of one worker were busy, and idle although there was work.

It owns sums in nanoseconds, by spans as the worker reports them. It must never count an instant
twice: phases of two batches may overlap on a GPU.
"""


class LaneTimes:
    __slots__ = ("_exec_end_ns", "_load_end_ns", "exec_ns", "idle_with_work_ns", "load_ns")

    def __init__(self) -> None:
        self.exec_ns = 0
        self.load_ns = 0
        self.idle_with_work_ns = 0
        self._exec_end_ns = 0  # of the latest batch; 0 before the first, and after a loss
        self._load_end_ns = 0

    def executed(self, begin_ns: int, end_ns: int) -> int:
        """A batch was in some phase from `begin_ns` to `end_ns`. Returns how long the lane had been
        idle before it, 0 where that is not known.
        """
        last_ns = self._exec_end_ns
        if end_ns > last_ns:
            self.exec_ns += end_ns - (begin_ns if begin_ns > last_ns else last_ns)
            self._exec_end_ns = end_ns
        return begin_ns - last_ns if 0 < last_ns < begin_ns else 0

    def loaded(self, begin_ns: int, end_ns: int) -> None:
        last_ns = self._load_end_ns
        if end_ns > last_ns:
            self.load_ns += end_ns - (begin_ns if begin_ns > last_ns else last_ns)
            self._load_end_ns = end_ns

    def lose(self) -> None:
        """The worker is gone: what its lanes do until it is back is nobody's idleness."""
        self._exec_end_ns = self._load_end_ns = 0
