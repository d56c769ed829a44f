"""When one serial lane (exec or load) of a device will be free, as far as the scheduler knows."""


class WorkTracker:
    """The outstanding actions of one lane with their expected durations, in the order sent.

    Re-anchored at every completion: `free_at = end of the last finished + what is outstanding`
    (without that, prediction errors add up; reference: Clockwork's WorkTracker, and the finding
    that anchoring only when the lane drains turns 0 % late into 20 %). The end of the head is heard
    of `lag_ns` later; if it is overdue by more than that, it counts as having ended so long ago.
    """

    __slots__ = ("_durations", "_head_ns", "_total_ns", "lag_ns", "last_end_ns")

    def __init__(self) -> None:
        self._durations: dict[int, int] = {}
        self._head_ns = 0  # duration of the first of them; 0 where there is none
        self._total_ns = 0
        self.last_end_ns = 0
        self.lag_ns = 0

    def __len__(self) -> int:
        return len(self._durations)

    def __contains__(self, action_id: int) -> bool:
        return action_id in self._durations

    @property
    def outstanding_ns(self) -> int:
        return self._total_ns

    def add(self, action_id: int, *, start_ns: int, duration_ns: int) -> None:
        """An action was sent; on an idle lane it is expected to start at `start_ns`."""
        if not self._durations:
            self.last_end_ns = max(self.last_end_ns, start_ns)
            self._head_ns = duration_ns
        self._durations[action_id] = duration_ns
        self._total_ns += duration_ns

    def finish(self, action_id: int, end_ns: int) -> None:
        """The action ended at `end_ns`, whatever its outcome. Unknown ids are a caller's bug."""
        is_head = next(iter(self._durations)) == action_id
        self._total_ns -= self._durations.pop(action_id)
        # An action that overtook the head used the lane while the head waited or ran beside it:
        # the head's own anchor stays.
        if is_head:
            self._head_ns = next(iter(self._durations.values()), 0)
            if end_ns > self.last_end_ns:
                self.last_end_ns = end_ns

    def free_at(self, now: int) -> int:
        """Predicted end of everything outstanding; not before now."""
        end_ns = self.last_end_ns + self._total_ns
        if self._durations:
            overdue_ns = now - self.lag_ns - self.last_end_ns - self._head_ns
            if overdue_ns > 0:
                end_ns += overdue_ns
        return end_ns if end_ns > now else now

    def is_overdue(self, now: int) -> bool:
        """The head should have been heard of: `free_at` goes on with the clock until it is."""
        return bool(self._durations) and self.last_end_ns + self._head_ns < now - self.lag_ns
