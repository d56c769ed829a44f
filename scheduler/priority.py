"""Classes of requests: who goes first when there is more to do than the devices can."""

from typing import Final, Literal

# Plain numbers: each request is compared with them on its way in and out of a queue.
HIGH: Final = 0
NORMAL: Final = 1
LOW: Final = 2

# As configurations have them.
PRIORITIES: Final = {"high": HIGH, "normal": NORMAL, "low": LOW}
PriorityName = Literal["high", "normal", "low"]
