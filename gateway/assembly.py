"""Assembly: the parts of a gateway process, wired together, from `open` to `close`.

Owns who is told of what, and the order in which parts start and end. It must never decide about a
request, nor when to stop: `serve` does that.
"""

import asyncio
import gc
import logging
import os
import socket
import time
from datetime import datetime
from pathlib import Path

from gateway import draining
from gateway.app import create_app
from gateway.command import host_process
from gateway.command.host_process import ServeError
from gateway.config import MEBIBYTE, GatewayConfig
from gateway.dispatcher import Dispatcher, Observer
from gateway.http import docs_page
from gateway.http.server import http_server
from gateway.lifecycle import Lifecycle
from gateway.metrics.loop_lag import LoopLag
from gateway.metrics.metrics import Metrics
from gateway.metrics.scaling_sampler import ScalingSampler
from gateway.observability.answered import OnAnswered
from gateway.observability.request_log import RequestLog
from gateway.observability.traces import OtlpSink, Traces, TracesError
from gateway.programs import program
from gateway.recorder import RecordedCore, Recorder
from gateway.replicas.forwarding import Forwarding
from gateway.replicas.peer import Peer
from gateway.tenants.device_time import DeviceTime
from gateway.tenants.keyring import Keyring
from gateway.tenants.tenants_file import Tenants, weights_of
from gateway.variants.groups import Groups
from gateway.variants.groups_file import Groups as GroupSpecs
from gateway.variants.groups_file import GroupsError, members_of
from gateway.versions.reloading import Reloading
from gateway.versions.repository_watch import states_of
from gateway.versions.versions import Versions
from gateway.workers.curve_keys import GatewayKeys
from gateway.workers.link import BindError, WorkerLink
from gateway.workers.supervisor import (
    CompileError,
    Supervisor,
    WorkerExit,
    run_compile,
    run_devices,
)
from scheduler import __version__
from scheduler.event_log import Header
from scheduler.events import Event, ModelAdded, WorkerJoined
from scheduler.scaling import Scaling
from scheduler.scheduler import Scheduler
from scheduler.shards import told_together
from scheduler.spec import MILLISECOND_NS, SECOND_NS, ModelSpec, SchedulerConfig

logger = logging.getLogger(__name__)

CPU = "cpu"
ONLY_GATEWAY = "gateway"  # its name to workers where it is the only one

# On SIGTERM a worker finishes its batch: the demo's longest takes a second.
WORKER_GRACE_S = 5.0
# A worker that ends this often before any has joined will not join at all.
MAX_FAILED_STARTS = 4
# Objects made, less those freed, between two looks for cyclic garbage, of which a request makes
# none: at Python's 700 some hundred requests in flight were looked at again and again.
GC_THRESHOLDS = (20_000, 20, 20)
# Of every SLO, kept for what the gateway does not see: the way to its first read and from its last
# write. 1.5 ms keeps 99.9 % of the answers in time by the client's clock on one busy core.
REPLY_MARGIN_NS = 1_500_000
# Of what a worker sends, the largest part is one output of one request, which may be larger than
# the request (FP16 in, FP32 out, or an upscaled picture); small ones travel together, and so do all
# models in its Hello.
OUTPUT_BODIES, MIN_FRAME_BYTES = 4, 64 * MEBIBYTE
COMPILE_NICE = 19  # of a version that comes while others serve: it has time, requests have not
# Entries of the scheduler's log for each request that /requests keeps: it came, its batch ended.
# What breaks is told from the log too, so that it is never shorter than that.
LOG_PER_REQUEST, MIN_LOG_LENGTH = 2, 512


class Assembly:
    """Made on the running event loop; nothing happens before `open`. Raises ServeError."""

    def __init__(
        self,
        config: GatewayConfig,
        *,
        directory: Path,
        log_level: str,
        tenants: Tenants | None = None,
        groups: GroupSpecs | None = None,
    ) -> None:
        emulation = host_process.emulation_of(config)
        keys, cors = host_process.worker_keys_of(config), host_process.cors_of(config)
        self._certificate = host_process.certificate_of(config)
        self._config = config
        self._emulation = emulation
        self._directory = directory
        self._log_level = log_level
        self._workers_address = f"ipc://{directory}/workers"
        self._num_workers = config.workers if emulation is None else emulation.num_devices
        self._device = CPU  # until `start` knows better
        self._worker_grace_s = WORKER_GRACE_S
        self._has_worker = asyncio.Event()
        self._failed_starts = 0
        # Done when we cannot go on: a part of ours ended that must not, or workers never start.
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.catalog: dict[str, ModelSpec] = {}  # filled once, when compiling is done
        # The HTTP side's: there models are unloaded, while a worker that joins may still have them.
        self._shown: dict[str, ModelSpec] = {}
        self._shards = shards = host_process.shards_of(config, groups or {})
        ours = {
            name: group
            for name, group in (groups or {}).items()
            if shards is None or shards.has(name)
        }
        self._groups = Groups(ours, self._shown)
        self._told_together = told_together(members_of(groups or {}))
        self._lifecycle = Lifecycle()
        self._weights = weights_of(tenants or {})
        scheduler = Scheduler(
            SchedulerConfig(
                reply_margin_ns=REPLY_MARGIN_NS,
                tenant_weights=self._weights,
                story_length=max(MIN_LOG_LENGTH, LOG_PER_REQUEST * config.recent_requests),
            ),
            policy=host_process.policy_of(config),
        )
        self._recorder = self._open_recorder(scheduler)
        metrics = Metrics(version=__version__, page_bytes=config.page_mb * MEBIBYTE)
        addresses = [self._workers_address]
        if config.worker_bind is not None:
            addresses.append(config.worker_bind)
        try:
            self._link = WorkerLink(
                addresses,
                self.catalog,
                clock=time.monotonic_ns,
                keys=keys,
                max_frame_bytes=max(MIN_FRAME_BYTES, OUTPUT_BODIES * config.max_body_mb * MEBIBYTE),
                gateway=config.replica or ONLY_GATEWAY,
                wall_ms=lambda: time.time_ns() // MILLISECOND_NS,
            )
        except BindError as error:
            raise ServeError(str(error)) from error
        metrics.watch_link(self._link)
        self._loop_lag = LoopLag(
            clock=time.monotonic_ns, call_later=asyncio.get_running_loop().call_later
        )
        metrics.watch_loop(self._loop_lag)
        scaling = Scaling(
            horizon_ns=int(config.scaling_horizon_s * SECOND_NS),
            target_utilisation=config.scaling_target_utilisation,
        )
        self._scaling = ScalingSampler(
            scaling,
            scheduler,
            metrics.totals,
            clock=time.monotonic_ns,
            call_later=asyncio.get_running_loop().call_later,
        )
        metrics.watch_scaling(scaling)
        observers: list[Observer] = [metrics]
        self._keyring = device_time = None
        if tenants is not None:
            self._keyring = Keyring(tenants, clock=time.monotonic_ns)
            metrics.watch_tenants(self._keyring)
            device_time = DeviceTime(self._keyring, self.catalog)
            observers.append(device_time)
        self._traces = _traces_of(config)
        if self._traces is not None:
            observers.append(self._traces)
        self._dispatcher = Dispatcher(
            scheduler if self._recorder is None else RecordedCore(scheduler, self._recorder),
            self._link,
            clock=time.monotonic_ns,
            timer=asyncio.get_running_loop(),
            on_fatal=self._on_fatal,
            observers=observers,
            call_soon=asyncio.get_running_loop().call_soon,
        )
        self._supervisor = Supervisor(
            self._num_workers, self._worker_command, on_exit=self._on_worker_exit
        )
        self._watching: asyncio.Task[None] | None = None
        self._reloading = self._make_reloading(scheduler, metrics)
        listeners: list[OnAnswered] = [RequestLog().note]
        if self._traces is not None:
            listeners.append(self._traces.note)
        self._forwarding = self._make_forwarding(scheduler)
        if self._forwarding is not None:
            metrics.watch_replicas(self._forwarding)
        app = create_app(
            config,
            self._dispatcher,
            scheduler,
            self._shown,
            metrics=metrics,
            lifecycle=self._lifecycle,
            on_named=None if self._recorder is None else self._recorder.named,
            keyring=self._keyring,
            device_time=device_time,
            reloading=self._reloading,
            groups=self._groups,
            on_answered=listeners,
            begin_trace=None if self._traces is None else self._traces.begin,
            forwarding=self._forwarding,
        )
        self._server = http_server(app, config, certificate=self._certificate, cors=cors)

    def open(self, listener: socket.socket) -> None:
        """From now on HTTP is answered and workers are heard."""
        if self._traces is not None:
            self._traces.start()
        self._link.start(
            on_event=self._on_event, on_report=self._dispatcher.report, on_fatal=self._on_fatal
        )
        self._loop_lag.start()
        self._scaling.start()
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        self._serving.add_done_callback(self._on_server_ended)

    async def start(self) -> None:
        """Compiles, starts the workers and waits for the first. Raises ServeError."""
        await self._find_devices()
        docs_page.contract_json()  # now, and not while somebody waits for an answer
        if self._reloading is not None and self._config.models_dir is not None:
            # Before it is compiled: what changes meanwhile has changed since.
            models_dir = Path(self._config.models_dir)
            self._reloading.start(await asyncio.to_thread(states_of, models_dir))
        for spec in await self._compile():
            self.catalog[spec.name] = self._shown[spec.name] = spec
            self._dispatcher.feed(ModelAdded(spec))
        try:
            self._groups.check()
        except GroupsError as error:
            text = f"groups file {self._config.groups_file}: {error}"
            raise ServeError(text, exit_code=2) from error
        logger.info("%d models are known: workers may join", len(self.catalog))
        self._link.know_models()
        self._supervisor.start()
        if self._num_workers and self.catalog:
            await self._has_worker.wait()
        # What is here now stays until the end: no use in looking at it in every collection.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        self._lifecycle.serve()
        if self._reloading is not None and self._config.repository_poll_s > 0:
            watching = self._reloading.watch(self._config.repository_poll_s)
            self._watching = asyncio.create_task(watching)
            self._watching.add_done_callback(self._on_watch_ended)

    def replace_tenants(self, tenants: Tenants) -> str:
        """From the next request on; what was used stays used. Returns what there is now, in words.

        Weights are the scheduler's from its start: a change of them is said and waits for the next.
        """
        if self._keyring is None:
            raise ValueError("this gateway was started without tenants")
        if weights_of(tenants) != self._weights:
            logger.warning("weights of tenants have changed: the next start will use them")
        self._keyring.replace(tenants)
        num_tenants, num_keys = len(self._keyring.tenants), self._keyring.num_keys
        return (
            f"{num_tenants} tenant{'s' * (num_tenants > 1)}, {num_keys} key{'s' * (num_keys > 1)}"
        )

    def replace_worker_keys(self, keys: GatewayKeys) -> None:
        """Who may be a worker from now on; others are sent away."""
        self._link.admit_only(keys)

    def read_certificate_again(self) -> None:
        """Raises TlsError, and keeps the old one."""
        if self._certificate is not None:
            self._certificate.read_again()

    async def drain(self) -> None:
        """/readyz says no, then everything new is refused, then what was admitted is answered."""
        self._lifecycle.drain()
        await self._end_reloading()
        # Forwarded ones first: some may come back to be served here.
        unanswered: list[draining.Unanswered] = [self._dispatcher]
        if self._forwarding is not None:
            unanswered.insert(0, self._forwarding)
        await draining.drain(
            self._lifecycle,
            draining.InTurn(unanswered),
            drain_s=self._config.drain_s,
            answer_grace_s=self._config.answer_grace_s,
        )

    def hurry(self) -> None:
        """What is left of `close` must not wait for anybody."""
        self._server.force_exit = True
        self._worker_grace_s = 0.0

    async def close(self) -> None:
        """Ends HTTP, workers and link; nothing of them is left."""
        self._server.should_exit = True
        await self._end_reloading()
        self._dispatcher.close()
        if self._forwarding is not None:
            self._forwarding.close()
        self._loop_lag.close()
        self._scaling.close()
        # Both at once: a worker that says goodbye to the link has not died to the supervisor.
        leaving = asyncio.gather(
            self._supervisor.stop(self._worker_grace_s), self._link.dismiss("the gateway stops")
        )
        try:
            await leaving
        finally:
            await asyncio.wait({self._serving})
            self._link.close("the gateway stops")
            if self._recorder is not None:
                self._recorder.close("the gateway stops")
            if self._traces is not None:
                self._traces.close()
            if self.broken.done():
                self.broken.exception()  # asked for, as it may not have been

    def _open_recorder(self, scheduler: Scheduler) -> Recorder | None:
        """Made with the scheduler: a recording starts with the first event, or is none."""
        file = self._config.record
        if file is None:
            return None
        header = Header(
            product_version=__version__,
            policy=self._config.policy,
            schedule_ahead_ms=self._config.schedule_ahead_ms,
            started_at=datetime.now().astimezone().isoformat(timespec="seconds"),
            config=scheduler.state.config,
        )
        try:
            return Recorder(Path(file), header, loop=asyncio.get_running_loop())
        except OSError as error:
            raise ServeError(f"--record {file}: {error.strerror}", exit_code=2) from error

    async def _find_devices(self) -> None:
        """What `device` stands for here, so that a GPU that cannot be served on stops us now."""
        if self._emulation is not None or self._config.device == CPU:
            self._device = CPU
            return
        file = self._directory / "devices.json"
        command = [*program("gpuworker"), "devices", "--device", self._config.device]
        command += ["--out", str(file), "--log-level", self._log_level]
        command += ["--log-format", self._config.log_format]
        try:
            devices = await run_devices(command, file)
        except CompileError as error:
            raise ServeError(str(error), exit_code=error.exit_code) from error
        self._device = devices[0]
        if self._device == CPU or not self._num_workers:
            return
        if self._num_workers > 1:
            raise ServeError(
                f"--workers {self._num_workers}: on GPUs there is one for each"
                f" ({', '.join(devices)}); --device cpu serves on the CPU",
                exit_code=2,
            )
        # One process starts the others, one for each GPU, and keeps them running.
        self._device = "all" if len(devices) > 1 else devices[0]

    def _make_forwarding(self, scheduler: Scheduler) -> Forwarding | None:
        """None where this gateway is the only one."""
        shards = self._shards
        if shards is None:
            return None
        call_later = asyncio.get_running_loop().call_later
        return Forwarding(
            shards,
            {
                replica.name: Peer(replica, clock=time.monotonic_ns, call_later=call_later)
                for replica in shards.replicas.values()
                if replica.name != shards.own_name
            },
            clock=time.monotonic_ns,
            call_later=call_later,
            can_serve=lambda: bool(scheduler.devices),
        )

    def _make_reloading(self, scheduler: Scheduler, metrics: Metrics) -> Reloading | None:
        """None where there is no repository."""
        if self._config.models_dir is None or self._emulation is not None:
            return None
        return Reloading(
            Versions(self._shown, self.catalog),
            models_dir=Path(self._config.models_dir),
            keep=self._config.keep_versions,
            feed=self._dispatcher.feed,
            scheduler=scheduler,
            link=self._link,
            metrics=metrics,
            compile_model=self._compile_one,
            is_ours=lambda model: self._shards is None or self._shards.has(model),
        )

    async def _end_reloading(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
        if self._reloading is not None:
            await self._reloading.close()

    async def _compile_one(self, name: str) -> ModelSpec:
        """The highest version of a model, beside everything that serves. Raises CompileError."""
        file = self._directory / "reload.json"
        command = [*program("gpuworker"), "compile", "--catalog-out", str(file)]
        command += ["--device", self._device, f"--model={name}", "--nice", str(COMPILE_NICE)]
        (spec,) = await run_compile([*command, *self._common_flags()], file)
        return spec

    async def _compile(self) -> list[ModelSpec]:
        file = self._directory / "catalog.json"
        command = [*program("gpuworker"), "compile", "--catalog-out", str(file)]
        command += ["--device", self._device]
        try:
            specs = await run_compile([*command, *self._common_flags()], file)
        except CompileError as error:
            raise ServeError(str(error), exit_code=error.exit_code) from error
        if not specs and self._shards is not None:
            logger.warning(
                "replica %s has none of the models: it only forwards", self._shards.own_name
            )
        elif all(spec.unavailable_reason is not None for spec in specs):
            reasons = "; ".join(f"{spec.name}: {spec.unavailable_reason}" for spec in specs)
            raise ServeError(f"no model can be served: {reasons}")
        return specs

    def _worker_command(self, index: int) -> list[str]:
        command = [*program("gpuworker"), "run", "--connect", self._workers_address]
        command += ["--name", f"local-{index}", "--device", self._device]
        if self._config.cache_mb is not None:
            command += ["--cache-mb", str(self._config.cache_mb)]
        return [*command, "--die-with-parent", str(os.getpid()), *self._common_flags()]

    def _common_flags(self) -> list[str]:
        flags = ["--page-mb", str(self._config.page_mb), "--log-level", self._log_level]
        flags += ["--log-format", self._config.log_format]
        flags += ["--cache-dir", str(host_process.cache_dir(self._config))]
        if self._config.models_dir is not None:
            flags += ["--models", self._config.models_dir]
        if self._emulation is not None:
            flags += ["--emulate", self._emulation.name]
        if self._config.intra_op_threads > 1:
            flags += ["--intra-op-threads", str(self._config.intra_op_threads)]
        if self._config.replica is not None and self._config.replicas is not None:
            flags += ["--replica", self._config.replica, "--replicas", self._config.replicas]
            flags += ["--replica-copies", str(self._config.replica_copies)]
            flags += [text for told in self._told_together for text in ("--together", told)]
        return flags

    def _on_event(self, event: Event) -> None:
        self._dispatcher.feed(event)
        if isinstance(event, WorkerJoined):
            self._has_worker.set()

    def _on_worker_exit(self, ended: WorkerExit) -> None:
        self._link.probe()
        if self._has_worker.is_set():
            return
        self._failed_starts += 1
        if ended.restart_delay_ns is None or self._failed_starts >= MAX_FAILED_STARTS:
            self._break(
                ServeError(
                    f"workers do not start: exit code {ended.exit_code}, see the lines above"
                )
            )

    def _on_fatal(self, error: Exception) -> None:
        self._break(ServeError(f"stopped by a fault of its own: {type(error).__name__}: {error}"))

    def _on_watch_ended(self, watching: asyncio.Task[None]) -> None:
        if not watching.cancelled() and watching.exception() is not None:
            logger.error("the repository is watched no more", exc_info=watching.exception())

    def _on_server_ended(self, serving: asyncio.Task[None]) -> None:
        if not self._server.should_exit:
            error = None if serving.cancelled() else serving.exception()
            self._break(ServeError(f"the HTTP server ended by itself: {error!r}"))

    def _break(self, error: ServeError) -> None:
        if not self.broken.done():
            self.broken.set_exception(error)


def _traces_of(config: GatewayConfig) -> Traces | None:
    """Raises ServeError where there can be none."""
    if config.otlp_endpoint is None:
        return None
    try:
        sink = OtlpSink(config.otlp_endpoint, clock=time.monotonic_ns)
    except TracesError as error:
        raise ServeError(str(error), exit_code=2) from error
    return Traces(sink, ratio=config.trace_ratio)
