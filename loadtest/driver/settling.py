"""Between two measurements on one server: is it done with what the one before has left there?

Owns the question. After an overload many servers go on for half a minute with requests whose
clients have hung up; the next measurement would be of that.
"""

import ssl
import time

from loadtest.driver.shooting import Group, Plan
from loadtest.http1 import Shot
from loadtest.messages import reason_of
from loadtest.openloop import Load, play, run_client
from loadtest.refusals import is_refusal
from loadtest.workloads import Ask
from scheduler.spec import SECOND_NS

MOST_S = 30.0
# One that refuses at once is not busy: it may refuse this request for ever.
MOST_REFUSED_S, PAUSE_S = 5.0, 0.1


def settle(plan: Plan) -> bool:
    """Ask each model once, until it answers; False where one does not within MOST_S. Nobody is
    waited for who takes no connection.
    """
    firsts = {group.model: group for group in reversed(plan.groups)}
    return all(_settled(plan, group) for group in firsts.values())


def _settled(plan: Plan, group: Group) -> bool:
    begin_s = time.monotonic()
    while (waited_s := time.monotonic() - begin_s) < MOST_S:
        try:
            shot = _asked(plan, group, MOST_S - waited_s)
        except OSError:
            return True  # the measurement will say so
        is_no = is_refusal(shot.status, reason_of(shot))
        if shot.status and (not is_no or waited_s > MOST_REFUSED_S):
            return True
        time.sleep(PAUSE_S)
    return False


def _asked(plan: Plan, group: Group, most_s: float) -> Shot:
    load = Load(
        host=plan.host,
        port=plan.port,
        arrivals=[Ask(0, group.model, round(most_s * SECOND_NS), 0)],
        requests=[group.requests[:1]],
        connections=1,
        give_up_s=most_s,
        tls=ssl.create_default_context() if plan.is_tls else None,
    )
    (shot,) = run_client(play(load)).shots
    return shot
