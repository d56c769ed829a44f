"""Which answers are an honest no, for every driver alike.

Owns the statuses and reasons (docs/adr/0007). It reads no reply.
"""

# Not now, and not here at the present load.
STATUSES = (429, 503)
# Of a 422: "not with this SLO" and "not on this server", ever. Any other 422 is about the form of a
# request, which is the mistake of whoever sent it.
NEVER = ("slo_infeasible_ever", "larger_than_cache")


def is_refusal(status: int, reason: str) -> bool:
    """`reason` is the member of that name in the body of an error; "" where there is none."""
    return status in STATUSES or (status == 422 and reason in NEVER)
