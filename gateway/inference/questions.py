"""Questions: what would become of a request, asked in place of sending it.

It owns what `POST /quote` checks before it asks, as far as that is not what inference checks, and
how a dry run is turned into a question. It must never submit anything.
"""

import functools
from collections.abc import Callable, Mapping

from gateway.errors import bad_request
from gateway.inference import slo
from gateway.inference.arrival import arrival_of
from gateway.inference.body import InferBody
from gateway.inference.exchange import Exchange
from gateway.inference.quoting import class_asked, decode_quote
from gateway.inference.request_flags import do_not_queue, priority_of
from gateway.inference.tensors import Inputs, ModelPlan, ShapeClass
from gateway.metrics.metrics import Metrics
from gateway.tenants.tenant import Tenant
from gateway.variants.variants import Variants
from gateway.views import RequestSink

PlanOf = Callable[[str, str | None], ModelPlan]
HoldDeviceTime = Callable[[Exchange, Tenant, Inputs | ShapeClass], None]


class Questions:
    """Part of gateway.inference.submission.Submission."""

    def __init__(
        self,
        sink: RequestSink,
        plan_of: PlanOf,
        metrics: Metrics,
        *,
        default_slo_ns: int,
        hold_device_time: HoldDeviceTime,
        variants: Variants,
    ) -> None:
        self._sink = sink
        self._plan_of = plan_of
        self._metrics = metrics
        self._default_slo_ns = default_slo_ns
        self._hold_device_time = hold_device_time
        self._variants = variants

    def quote(self, exchange: Exchange, body: bytes, special: Mapping[bytes, bytes]) -> None:
        """The same checks as for a request, but those of tensors."""
        asked = decode_quote(body)
        tenant = exchange.tenant
        if tenant is not None:
            tenant.check_model(asked.model)
        plan = exchange.plan = self._plan_of(asked.model, asked.version)
        exchange.tallies = self._metrics.of_model(asked.model)
        default_ns = plan.spec.default_slo_ns or self._default_slo_ns
        if tenant is not None:
            default_ns = tenant.default_slo(default_ns)
        wishes = InferBody([], slo_ms=asked.slo_ms, parameters=asked.parameters)
        exchange.slo_ns = slo.find_slo_ns(wishes, special, default_ns=default_ns)
        if tenant is not None:
            tenant.check_slo(exchange.slo_ns)
        exchange.priority = priority_of(wishes, plan.spec.priority, tenant)
        exchange.client_id = asked.id
        shape_class = class_asked(plan, asked)
        is_impatient = asked.do_not_queue or do_not_queue(wishes, special)
        if is_impatient and asked.count > 1:
            raise bad_request(f"do_not_queue is about one request, count is {asked.count}")
        if plan.group is not None:
            key = shape_class.shape_key
            inputs = Inputs((), [], shape_class.rows, key, key, shape_class.elements)
            self._variants.choose(exchange, plan.group, inputs, is_impatient)
        if tenant is not None and tenant.has_device_quota:
            self._hold_device_time(exchange, tenant, shape_class)
        self.ask(exchange, shape_class, shape_class.shape_key, is_impatient, count=asked.count)

    def ask(
        self,
        exchange: Exchange,
        work: Inputs | ShapeClass,
        batch_key: str,
        is_impatient: bool,
        *,
        count: int,
    ) -> None:
        """What would become of it, in place of doing it."""
        self._sink.quote(
            arrival_of(exchange, exchange.plan, work, batch_key, is_impatient),
            count,
            functools.partial(exchange.on_quote, count),
        )
