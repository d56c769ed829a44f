"""What a request asks for beside its tensors: `do_not_queue`, `dry_run`, `priority`.

It owns their names and what may be written there. It must never act on them.
"""

from collections.abc import Mapping

from gateway.errors import bad_request
from gateway.inference.body import InferBody
from gateway.tenants.tenant import Tenant
from scheduler.priority import LOW, NORMAL

DO_NOT_QUEUE = b"x-do-not-queue"
DRY_RUN = b"x-dry-run"

_FLAGS = {b"1": True, b"true": True, b"0": False, b"false": False}


def do_not_queue(request: InferBody, special: Mapping[bytes, bytes]) -> bool:
    """Body or `parameters.do_not_queue`, or header `x-do-not-queue`: any of them asks."""
    parameters = request.parameters
    is_asked = request.do_not_queue or (parameters is not None and parameters.do_not_queue)
    return flag_of_header(special, DO_NOT_QUEUE) or is_asked


def dry_run(request: InferBody, special: Mapping[bytes, bytes]) -> bool:
    """Body or `parameters.dry_run`, or header `x-dry-run`: any of them asks."""
    parameters = request.parameters
    is_asked = request.dry_run or (parameters is not None and parameters.dry_run)
    return flag_of_header(special, DRY_RUN) or is_asked


def priority_of(request: InferBody, of_model: int, tenant: Tenant | None) -> int:
    """The request's class (scheduler.priority): what it asks for, or its model's, and never above
    its tenant's. `parameters.priority` is the protocol's: 1 is the highest, 2 the usual, more is
    low, and 0 asks for nothing.
    """
    parameters = request.parameters
    asked = 0 if parameters is None else parameters.priority
    wanted = of_model if asked == 0 else min(asked - 1, LOW)
    if tenant is None:
        return wanted
    if asked == 0 and of_model == NORMAL:
        return tenant.priority
    return max(wanted, tenant.priority)


def flag_of_header(headers: Mapping[bytes, bytes], name: bytes) -> bool:
    """False where there is none. Raises RequestError(bad_request) naming header and value."""
    value = headers.get(name)
    if value is None:
        return False
    flag = _FLAGS.get(value.strip().lower())
    if flag is None:
        raise bad_request(
            f"header {name.decode()} is '{value[:60].decode('latin-1')}': expected true or false"
        )
    return flag
