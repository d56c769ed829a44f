"""TokenBucket: a rate with a burst, in whole numbers, so that the wait it names is exact.

It owns one level. It must never read a clock, and never round in anybody's favour twice.
"""


class TokenBucket:
    """Fills by `rate` units per nanosecond up to `capacity` units; full at first.

    What is charged after the fact may take it below zero: that debt is waited for, too.
    """

    __slots__ = ("_as_of_ns", "_capacity", "_level", "_rate")

    def __init__(self, *, rate: int, capacity: int, now: int) -> None:
        self._rate = rate
        self._capacity = capacity
        self._level = capacity
        self._as_of_ns = now

    def take(self, amount: int, now: int) -> int:
        """Takes it and returns 0; or takes nothing and returns after how many ns to ask again.

        More than the bucket holds is let in when it is full, and leaves a debt: it would never be
        otherwise.
        """
        passed_ns = now - self._as_of_ns
        if passed_ns > 0:
            self._as_of_ns = now
            level = self._level + passed_ns * self._rate
            self._level = level if level < self._capacity else self._capacity
        missing = (amount if amount < self._capacity else self._capacity) - self._level
        if missing > 0:
            return -(-missing // self._rate)
        self._level -= amount
        return 0

    def give_back(self, amount: int) -> None:
        """What was taken and not used."""
        self._level = min(self._capacity, self._level + amount)

    def charge(self, amount: int) -> None:
        """What was used, whether or not it was there."""
        self._level -= amount

    def change(self, *, rate: int, capacity: int, now: int) -> None:
        """From now on. What is there stays, as far as it fits."""
        self.take(0, now)
        self._rate = rate
        self._capacity = capacity
        self._level = min(self._level, capacity)
