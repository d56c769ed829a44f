"""`schedule_ahead` found by looking whether orders come too late, per device and without tuning.

More hides the way to the worker and errors of prediction; less decides later, with more requests
to choose from, and commits less. The optimum is the one-way delay plus about one sigma of the
prediction error, so the delay is taken as measured, and what goes on top of it is tracked as a
quantile (Robbins and Monro): up by a step when an order reached the worker after its lane had run
dry, down by TARGET_GAP_RATE of a step when it was there in time.
"""

from typing import Final

from scheduler.device import INITIAL_DELAY_NS, DeviceMirror
from scheduler.spec import MILLISECOND_NS

# Of the orders that were held back for the lane, those that may come too late: an idle lane for
# some ten microseconds at every tenth batch costs less than deciding all of them earlier.
TARGET_GAP_RATE: Final = 0.1
STEP_NS: Final = 20_000
# So many in time, one after the other, happen by chance once in a thousand at the target rate: the
# value is far too high, after a hiccup say, and comes down by a tenth instead of by small steps.
RUN_IN_TIME: Final = 64
MAX_NS: Final = 10 * MILLISECOND_NS


class GapTracker:
    """What it learns lies with the device: one that joins anew is learnt anew."""

    def first_ns(self, configured_ns: int) -> int:
        """Low, as it comes up quickly; the setting is for policies with a fixed value."""
        return INITIAL_DELAY_NS

    def on_held(self, device: DeviceMirror, late_ns: int, now: int) -> None:
        extra_ns = device.ahead_extra_ns
        if device.note_held(late_ns):
            device.num_in_time = 0
            extra_ns += STEP_NS * (1 - TARGET_GAP_RATE)
        else:
            device.num_in_time += 1
            extra_ns -= STEP_NS * TARGET_GAP_RATE
            if device.num_in_time >= RUN_IN_TIME:
                device.num_in_time = 0
                extra_ns *= 0.9
        device.ahead_extra_ns = max(0.0, min(extra_ns, MAX_NS - device.command_delay_ns))
        device.schedule_ahead_ns = device.command_delay_ns + int(device.ahead_extra_ns)
