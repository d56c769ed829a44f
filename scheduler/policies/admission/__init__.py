"""Who is let in, and who is refused at the door."""

import msgspec


class Admission(msgspec.Struct, frozen=True, gc=False):
    """The predicted end of the request's execution; whether another copy of the weights is due.

    `worker_id` is the device of that prediction; None where the policy lets in without one, and
    `finish_ns` means nothing then. Which device really executes the request is decided late.

    `deadline_ns`, where given, is what the scheduler plans with in place of the request's own
    deadline (Clockwork's internal deadline); the client's stays what it is.
    """

    finish_ns: int
    wants_replica: bool = False
    deadline_ns: int | None = None
    worker_id: str | None = None
