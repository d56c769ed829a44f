"""Locust with latency objectives: `locust -f loadtest/locustfile.py --host http://...`

Owns the users and the shape of the load; the numbers are in loadtest/locust_load/. Every request
carries an SLO, and Locust counts as a failure what was not answered within it: late, refused,
expired, failed. docs/locust.md has examples.
"""

import logging
import math
import random
import time
from collections.abc import Mapping
from itertools import count
from typing import Any

import gevent
import gevent.event
from geventhttpclient.client import HTTPClientPool
from locust import FastHttpUser, LoadTestShape, events, task
from locust.runners import MasterRunner, WorkerRunner

from loadtest.locust_load.mix import choose, choose_slo_ms
from loadtest.locust_load.models_there import NoModels, models_there
from loadtest.locust_load.options import (
    Options,
    OptionsError,
    add_options,
    read_options,
    read_shape,
)
from loadtest.locust_load.payloads import Payload, PayloadError, payloads_of, pick
from loadtest.locust_load.slo_counts import Outcome, outcome_of
from loadtest.locust_load.steps import Step, Steps
from loadtest.locust_load.tally import Tally

NUM_PAYLOADS = 8  # per model: as many different inputs, so that no cache answers for all
BAD_OPTIONS_EXIT = 2
WEIGHTS_MESSAGE = "remontoir_weights"  # from the shape to whoever sends

logger = logging.getLogger(__name__)


class Plan:
    """Of one test in one process: what is sent, and what is on its way."""

    def __init__(self, options: Options, models: list[dict[str, Any]], worker_index: int) -> None:
        """Raises OptionsError, PayloadError."""
        by_name = {model["name"]: model for model in models}
        asked = options.mix.models or dict.fromkeys(by_name, 1.0)
        unknown = sorted({*asked, *options.mix.slos} - {*by_name, ""})
        if unknown or not asked:
            have = ", ".join(sorted(by_name)) or "none"
            raise OptionsError(f"no model {', '.join(unknown)} there; it has {have}")
        self.options = options
        self.weights: Mapping[str, float] = asked
        self.payloads = {
            name: payloads_of(
                by_name[name],
                protocol=options.protocol,
                rows=options.rows,
                dynamic_size=options.dynamic_size,
                count=NUM_PAYLOADS,
                seed=options.seed,
            )
            for name in asked
        }
        self.worker_index = worker_index
        self.user_numbers = count()
        self.outstanding: set[gevent.Greenlet] = set()
        self.is_stopping = False


class _Process:
    """What Locust makes only one of in a process: its users reach this by the module."""

    tally: Tally
    plan: Plan | None = None  # None where the test cannot be
    is_ending = False
    options: Options  # of the present test
    trace_weights: Mapping[str, float] = {}  # of the present step of a trace, where there is one


@events.init_command_line_parser.add_listener
def _(parser: Any) -> None:
    add_options(parser)


@events.init.add_listener
def _(environment: Any, **_: Any) -> None:
    # Locust's --run-time is a timer from the event loop's last look at the clock, and what was
    # imported since then would be taken off the run.
    gevent.get_hub().loop.update_now()
    runner = environment.runner
    _Process.tally = Tally(environment)
    if not isinstance(runner, MasterRunner):
        runner.register_message(WEIGHTS_MESSAGE, _on_weights)
    if environment.parsed_options.shape == "users":
        environment.shape_class = None  # Locust takes any shape of a locustfile as asked for
    if environment.host is None and not isinstance(runner, WorkerRunner):
        environment.host = "http://127.0.0.1:8000"  # where `make serve` is


@events.test_start.add_listener
def _(environment: Any, **_: Any) -> None:
    runner = environment.runner
    _Process.plan = None
    _Process.is_ending = False
    try:
        _Process.options = options = read_options(vars(environment.parsed_options))
        if isinstance(runner, MasterRunner):
            return
        models = _ask_for_models(environment, options)
        index = runner.worker_index if isinstance(runner, WorkerRunner) else 0
        _Process.plan = Plan(options, models, index)
    except (OptionsError, PayloadError, NoModels) as error:
        _say_no_test(environment, error)


@events.test_stopping.add_listener
def _(environment: Any, **_: Any) -> None:
    """What is on its way still counts: nothing new, and a wait for what there is."""
    plan = _Process.plan
    if plan is not None:
        plan.is_stopping = True
        gevent.joinall(list(plan.outstanding), timeout=plan.options.give_up_s)


@events.test_stop.add_listener
def _(environment: Any, **_: Any) -> None:
    _Process.trace_weights = {}  # here, since the next test's first ones come before its start


def _on_weights(environment: Any, msg: Any, **_: Any) -> None:
    _Process.trace_weights = msg.data


class InferenceUser(FastHttpUser):
    """Closed: one request at a time. Open: a Poisson process that waits for no answer."""

    def __init__(self, environment: Any) -> None:
        options = _Process.options
        self.network_timeout = self.connection_timeout = options.give_up_s
        if options.is_open:
            self.client_pool = _pool(environment, options)
        if options.api_key:
            self.default_headers = {"authorization": f"Bearer {options.api_key}"}
        self.ssl_context_factory = _trusting(options)
        super().__init__(environment)

    def on_start(self) -> None:
        plan = _Process.plan
        if plan is None:  # as was said when the test began; it is ended once, by one of us
            if not _Process.is_ending:
                _Process.is_ending = True
                runner = self.environment.runner
                # Not by this greenlet, which is among those that are stopped.
                gevent.spawn(runner.stop if self.environment.web_ui else runner.quit)
            gevent.event.Event().wait()
            raise AssertionError("nobody sets it")
        self._plan = plan
        number = next(plan.user_numbers)
        self._chance = random.Random(f"{plan.options.seed}/{plan.worker_index}/{number}")
        self._due_s = time.monotonic()

    def wait_time(self) -> float:
        options = self._plan.options
        if options.is_open or not options.think_s:
            return 0.0
        return self._chance.expovariate(1.0 / options.think_s)

    @task
    def ask(self) -> None:
        plan = self._plan
        if not plan.options.is_open:
            if not plan.is_stopping:
                self._send(time.monotonic(), *self._drawn())
            return
        self._due_s += self._chance.expovariate(plan.options.rate_per_user)
        gevent.sleep(max(0.0, self._due_s - time.monotonic()))
        if plan.is_stopping:
            return
        model, slo_ms, payload = self._drawn()
        if len(plan.outstanding) >= plan.options.max_outstanding:
            _Process.tally.count(_name(model, slo_ms), Outcome.UNSENT, 0.0)
            return
        greenlet = gevent.spawn(self._send, self._due_s, model, slo_ms, payload)
        plan.outstanding.add(greenlet)
        greenlet.link(plan.outstanding.discard)

    def _drawn(self) -> tuple[str, float, Payload]:
        plan = self._plan
        model = choose(self._chance, _Process.trace_weights or plan.weights)
        slo_ms = choose_slo_ms(self._chance, plan.options.mix.slos_of(model))
        return model, slo_ms, pick(self._chance, plan.payloads[model])

    def _send(self, due_s: float, model: str, slo_ms: float, payload: Payload) -> None:
        headers = {**payload.headers, "x-slo-ms": f"{slo_ms:g}"}
        name = _name(model, slo_ms)
        with self.client.post(
            payload.path, data=payload.body, headers=headers, name=name, catch_response=True
        ) as response:
            latency_ms = (time.monotonic() - due_s) * 1e3
            # Locust counts from the send; what was due earlier has waited since then.
            response.request_meta["response_time"] = latency_ms
            status = response.status_code or 0
            reason = "" if status == 200 else _reason(response)
            outcome = outcome_of(status, reason, latency_ms=latency_ms, slo_ms=slo_ms)
            _Process.tally.count(name, outcome, latency_ms)
            if outcome is not Outcome.IN_TIME:
                response.failure(_why(outcome, status, reason, response))


class RemontoirShape(LoadTestShape):
    """The rate of --steps or of --trace as a number of users, second by second."""

    use_common_options = True

    def __init__(self) -> None:
        super().__init__()
        self._steps: Steps | None = None
        self._models: list[str] = []
        self._step: Step | None = None

    def reset_time(self) -> None:
        super().reset_time()
        self._steps = self._step = None  # this test's options may be others

    def tick(self) -> tuple[int, float] | None:
        parsed = vars(self.runner.environment.parsed_options)
        try:
            options = read_options(parsed)
            self._steps = self._steps or read_shape(parsed)
            run_time_s = self.get_run_time()
            limit_s = parsed.get("run_time")
            step = None if self._steps is None else self._steps.at(run_time_s)
            if step is None or (limit_s and run_time_s >= float(limit_s)):
                return None
            if step.shares and not self._models:
                self._models = sorted(options.mix.models) or _names_there(
                    self.runner.environment, options
                )
        except (OptionsError, NoModels) as error:
            _say_no_test(self.runner.environment, error)
            return None
        per_user = options.rate_per_user if options.is_open else 1.0
        if step is not self._step and step.shares:
            self.runner.send_message(WEIGHTS_MESSAGE, step.weights(self._models))
        self._step = step
        users = math.ceil(step.rate_per_s / per_user)
        return users, max(1.0, float(users))


def _say_no_test(environment: Any, error: Exception) -> None:
    logger.error(str(error))
    environment.process_exit_code = BAD_OPTIONS_EXIT


def _names_there(environment: Any, options: Options) -> list[str]:
    """Raises NoModels."""
    return sorted(model["name"] for model in _ask_for_models(environment, options))


def _ask_for_models(environment: Any, options: Options) -> list[dict[str, Any]]:
    """Raises NoModels."""
    return models_there(environment.host, api_key=options.api_key, ca_cert=options.ca_cert)


_pools: dict[Any, HTTPClientPool] = {}


def _pool(environment: Any, options: Options) -> HTTPClientPool:
    """One for all users of the process, with as many connections as may be on their way."""
    key = (environment.host, options.max_outstanding, options.give_up_s, options.ca_cert)
    if key not in _pools:
        _pools[key] = HTTPClientPool(
            concurrency=options.max_outstanding,
            connection_timeout=options.give_up_s,
            network_timeout=options.give_up_s,
            insecure=options.ca_cert is None,
            ssl_context_factory=_trusting(options),
        )
    return _pools[key]


def _trusting(options: Options) -> Any:
    """Without a certificate Locust trusts anybody; a load test sends nothing that is secret."""
    if options.ca_cert is None:
        return None
    return lambda: gevent.ssl.create_default_context(cafile=str(options.ca_cert))


def _name(model: str, slo_ms: float) -> str:
    return f"{model} within {slo_ms:g} ms"


def _why(outcome: Outcome, status: int, reason: str, response: Any) -> str:
    if outcome is Outcome.LATE:
        return "late"
    if status == 0:
        return f"no answer: {response.error or 'connection lost'}"
    return f"{outcome}: {status} {reason}".rstrip()


def _reason(response: Any) -> str:
    """Of an error's body, "" where it has none."""
    try:
        return str(response.json().get("reason", ""))
    except (ValueError, AttributeError, TypeError):
        return ""
