"""What a body asks, to the dispatcher: the checks of what stands in it, and the ways from there.

It owns the order of those: model, tensors, SLO, then who may have the answer already, and the
tenant's device time. It must never wait: its caller has read the body, and answers what it raises.
"""

import functools
from collections.abc import Mapping

from gateway.dispatcher import OnDone
from gateway.errors import RequestError, bad_request
from gateway.http.single_headers import CONTENT_ENCODING
from gateway.inference import slo
from gateway.inference.answer_sharing import Ask
from gateway.inference.arrival import arrival_of
from gateway.inference.body import HEADER_LENGTH, decode_body
from gateway.inference.exchange import Exchange
from gateway.inference.plans import Plans
from gateway.inference.questions import Questions
from gateway.inference.raw_input import raw_request
from gateway.inference.request_flags import do_not_queue, dry_run, priority_of
from gateway.inference.target import QUOTE, Target
from gateway.inference.tensors import Inputs, ModelPlan, ShapeClass
from gateway.metrics.metrics import Metrics
from gateway.replicas.asked import MODEL_HEADER
from gateway.replicas.forwarding import Forwarding
from gateway.tenants.device_time import DeviceTime
from gateway.tenants.tenant import Tenant
from gateway.variants.feedback import Feedback
from gateway.variants.groups import Groups
from gateway.variants.variants import Variants
from gateway.views import Clock, OnNamed, RequestSink
from scheduler.events import RequestArrived

_MAX_LENGTH_DIGITS = 12  # of a length that any body has; int() refuses thousands of them
_RAW = b"0"  # a header length that says: no JSON at all


class Submission:
    """Part of gateway.inference.endpoint.InferEndpoint, which has looked at the door."""

    def __init__(
        self,
        sink: RequestSink,
        plans: Plans,
        *,
        clock: Clock,
        metrics: Metrics,
        default_slo_ns: int,
        groups: Groups,
        feedback: Feedback,
        device_time: DeviceTime | None,
        forwarding: Forwarding | None,
        on_named: OnNamed | None,
    ) -> None:
        self._sink = sink
        self._clock = clock
        self._metrics = metrics
        self._default_slo_ns = default_slo_ns
        self._device_time = device_time
        self._forwarding = forwarding
        self._on_named = on_named
        self._plan_of = plans.plan_of
        self._variants = Variants(
            groups, sink, plans.plan_of, self._give, metrics, feedback, clock=clock
        )
        self._questions = Questions(
            sink,
            plans.plan_of,
            metrics,
            default_slo_ns=default_slo_ns,
            hold_device_time=self._hold_device_time,
            variants=self._variants,
        )

    def submit(
        self,
        exchange: Exchange,
        body: bytes,
        special: Mapping[bytes, bytes],
        target: Target,
    ) -> None:
        if target is QUOTE:
            self._questions.quote(exchange, body, special)
            return
        name = target.model
        tenant = exchange.tenant
        header_length = special.get(HEADER_LENGTH)
        if name is None:
            request, binary = decode_body(body, header_length)
            name = request.model
            if MODEL_HEADER in special:
                name = _agreed_model(name, special[MODEL_HEADER].decode("latin-1"))
            if name is None:
                raise bad_request("the body names no model: member `model` is missing")
            if tenant is not None:
                tenant.check_model(name)
            plan = self._plan_of(name)
            exchange.tallies = self._metrics.of_model(name)
            exchange.key = plan.key
        else:
            if tenant is not None:
                tenant.check_model(name)
            plan = self._plan_of(name, target.version)
            exchange.tallies = self._metrics.of_model(name)
            exchange.key = plan.key
            if header_length == _RAW:
                request, binary = raw_request(plan.spec, body)
            else:
                request, binary = decode_body(body, header_length)
        default_ns = plan.spec.default_slo_ns or self._default_slo_ns
        if tenant is not None:
            default_ns = tenant.default_slo(default_ns)
        exchange.slo_ns = slo.find_slo_ns(request, special, default_ns=default_ns)
        if tenant is not None:
            tenant.check_slo(exchange.slo_ns)
        exchange.priority = priority_of(request, plan.spec.priority, tenant)
        parameters = request.parameters
        exchange.choices = plan.choose_outputs(
            request.outputs, all_binary=parameters is not None and parameters.binary_data_output
        )
        inputs = plan.read_inputs(request.inputs, binary)
        exchange.plan = plan
        exchange.rows = inputs.rows
        exchange.client_id = request.id
        is_impatient = do_not_queue(request, special)
        if dry_run(request, special):
            if plan.group is not None:
                self._variants.choose(exchange, plan.group, inputs, is_impatient)
            if tenant is not None and tenant.has_device_quota:
                self._hold_device_time(exchange, tenant, inputs)
            self._questions.ask(exchange, inputs, inputs.batch_key, is_impatient, count=1)
        elif plan.is_plain:
            self._enter(exchange, plan, inputs, is_impatient, exchange.on_done)
        elif plan.group is not None:
            self._variants.submit(exchange, plan.group, inputs, is_impatient)
        else:
            self._give(exchange, plan, inputs, is_impatient, exchange.on_done)

    def _give(
        self,
        exchange: Exchange,
        plan: ModelPlan,
        inputs: Inputs,
        is_impatient: bool,
        on_done: OnDone,
    ) -> None:
        """What others asked may be its answer. What must start at once waits for nobody."""
        sharing = plan.sharing
        exchange.ask = exchange.cache = None  # those of another variant, which was refused
        if sharing is None:
            self._enter(exchange, plan, inputs, is_impatient, on_done)
            return
        before_ns = self._clock()
        key = sharing.key_of(inputs, "" if exchange.tenant is None else exchange.tenant.name)
        if is_impatient and not sharing.has(key):
            self._enter(exchange, plan, inputs, is_impatient, on_done)
            return
        submit = functools.partial(self._enter, exchange, plan, inputs, False)
        lookup_ns = self._clock() - before_ns
        exchange.ask = ask = Ask(exchange, submit, on_done, lookup_ns=lookup_ns)
        sharing.ask(key, ask)

    def _enter(
        self,
        exchange: Exchange,
        plan: ModelPlan,
        inputs: Inputs,
        is_impatient: bool,
        on_done: OnDone,
    ) -> int:
        """To the dispatcher; returns its id. Raises RequestError(quota_exceeded)."""
        tenant = exchange.tenant
        if tenant is not None and tenant.has_device_quota:
            self._hold_device_time(exchange, tenant, inputs)
        sink_id = exchange.sink_id = self._sink.next_id()
        arrived = arrival_of(exchange, plan, inputs, inputs.batch_key, is_impatient, sink_id)
        self._sink.submit(arrived, inputs.tensors, inputs.buffers, on_done)
        if self._on_named is not None:
            self._on_named(sink_id, exchange.request_id)
        return sink_id

    def _hold_device_time(
        self, exchange: Exchange, tenant: Tenant, work: Inputs | ShapeClass
    ) -> None:
        """Until it is answered. Raises RequestError(quota_exceeded)."""
        if self._device_time is None:
            return
        if exchange.held_device_ns:  # of another variant, which was refused
            tenant.release(exchange.held_device_ns)
            exchange.held_device_ns = 0
        predicted_ns = self._device_time.predict_ns(
            exchange.plan.spec,
            rows=work.rows,
            shape_key=work.shape_key,
            elements=work.elements,
        )
        exchange.held_device_ns = tenant.hold(predicted_ns, self._clock())

    def foresee(
        self, exchange: Exchange, begin: bytes, special: Mapping[bytes, bytes], target: Target
    ) -> None:
        """A no that is certain goes out before the tensors are read: reading them would cost the
        core more than saying it. Only the binary framing says first what it is about; what cannot
        be judged here is judged when the body is complete.
        """
        header_length = special.get(HEADER_LENGTH, b"")
        if (
            CONTENT_ENCODING in special
            or not header_length.isdigit()
            or len(header_length) > _MAX_LENGTH_DIGITS
            or not 0 < int(header_length) <= len(begin)
        ):
            return
        try:
            request, _ = decode_body(begin[: int(header_length)], header_length)
            if target is QUOTE or dry_run(request, special):
                return
            name = target.model or request.model
            if self._forwarding is not None and name and self._forwarding.has_elsewhere(name):
                return
            tenant = exchange.tenant
            if tenant is not None and name is not None:
                tenant.check_model(name)
            plan = self._plan_of(name, target.version) if name is not None else None
            shape_class = plan.shape_class(request.inputs) if plan is not None else None
            if name is None or plan is None or shape_class is None or not plan.is_plain:
                return  # who answers, or has already, shows when all of the body is there
            default_ns = plan.spec.default_slo_ns or self._default_slo_ns
            if tenant is not None:
                default_ns = tenant.default_slo(default_ns)
            slo_ns = slo.find_slo_ns(request, special, default_ns=default_ns)
            if tenant is not None:
                tenant.check_slo(slo_ns)
        except RequestError:
            return
        refusal = self._sink.foresee(
            RequestArrived(
                0,
                plan.key,
                exchange.arrival_ns,
                exchange.arrival_ns + slo_ns,
                shape_class.rows,
                shape_class.shape_key,
                shape_class.shape_key,
                shape_class.elements,
                tenant="" if tenant is None else tenant.name,
                priority=priority_of(request, plan.spec.priority, tenant),
            )
        )
        if refusal is not None:
            exchange.tallies = self._metrics.of_model(name)
            exchange.key = plan.key
            exchange.slo_ns, exchange.rows = slo_ns, shape_class.rows
            if self._on_named is not None:
                self._on_named(0, exchange.request_id)
            exchange.on_done(refusal, None)


def _agreed_model(in_body: str | None, in_header: str) -> str:
    """By the header a router has chosen where it goes. Raises RequestError(bad_request)."""
    if in_body is not None and in_body != in_header:
        raise bad_request(
            f"the body names model {in_body[:200]!r}, header x-remontoir-model {in_header[:200]!r}"
        )
    return in_header
