"""Flags of the `remontoir` command: their names, metavars and help, once.

Owns words only. Where a flag has no default here, the setting's own default (gateway/config.py)
counts, and the help shows that one.
"""

from pathlib import Path
from typing import Annotated

import typer

from gateway.config import GatewayConfig

DEFAULTS = GatewayConfig()
DEFAULT_URL = "http://127.0.0.1:8000"

ModelsDir = Annotated[
    Path | None,
    typer.Option(
        "--models",
        metavar="DIR",
        help="Model repository: DIR/<model>/<version>/model.onnx, and an optional "
        "DIR/<model>/config.yaml (Triton's layout).",
    ),
]
CatalogOut = Annotated[
    Path | None,
    typer.Option(
        "--catalog-out",
        metavar="FILE",
        dir_okay=False,
        help="Also write what was measured, as JSON: `profile: {catalogue: FILE, model: NAME}` "
        "of a scenario plays it.",
    ),
]
CacheDir = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir",
        metavar="DIR",
        help="Where compiled models are kept between starts.",
        show_default="$REMONTOIR_CACHE_DIR, else ~/.cache/remontoir",
    ),
]
Host = Annotated[
    str | None, typer.Option("--host", help="Address to listen on.", show_default=DEFAULTS.host)
]
Port = Annotated[
    int | None,
    typer.Option(
        "--port", help="Port to listen on; 0 takes a free one.", show_default=str(DEFAULTS.port)
    ),
]
TlsCert = Annotated[
    Path | None,
    typer.Option(
        "--tls-cert",
        metavar="FILE",
        help="Serve HTTPS with this certificate: PEM, with its chain. Read again on SIGHUP.",
    ),
]
TlsKey = Annotated[
    Path | None,
    typer.Option(
        "--tls-key",
        metavar="FILE",
        help="Its private key: PEM, not encrypted.",
        show_default="in the file of --tls-cert",
    ),
]
CorsOrigins = Annotated[
    str | None,
    typer.Option(
        "--cors-origins",
        metavar="ORIGIN,...",
        help="Pages of these sites may ask and read answers: https://app.example.com, or * for "
        "any site.",
        show_default="none",
    ),
]
GroupsFile = Annotated[
    Path | None,
    typer.Option(
        "--groups",
        metavar="FILE",
        help="Models for one task under one name: of those that meet a request's SLO, the most "
        "accurate answers (docs/variants.md).",
        show_default="none",
    ),
]
WorkerGroupsFile = Annotated[
    Path | None,
    typer.Option(
        "--groups",
        metavar="FILE",
        help="With --replicas: the gateways' groups file, since models of a group are together.",
        show_default="none",
    ),
]
TenantsFile = Annotated[
    Path | None,
    typer.Option(
        "--tenants",
        metavar="FILE",
        help="Who may ask, for what, and how much: API keys (their hashes), models, SLOs, quotas "
        "(docs/security.md). Read again on SIGHUP.",
        show_default="nobody needs a key",
    ),
]
Insecure = Annotated[
    bool,
    typer.Option(
        "--insecure",
        help="Listen on other addresses than this machine's own without keys: whoever reaches "
        "the port may use and unload every model, or, at --worker-bind, be a worker.",
    ),
]
OpenMetrics = Annotated[
    bool, typer.Option("--open-metrics", help="With --tenants: /metrics needs no key.")
]
TritonMetrics = Annotated[
    bool,
    typer.Option(
        "--triton-metrics",
        help="/metrics has Triton's names too (nv_inference_*), for its dashboards, HPA rules and "
        "perf_analyzer --collect-metrics.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="cpu|cuda:N|all|auto",
        help="What to serve on: auto is all GPUs, a worker for each, or the CPU where there is "
        "none.",
        show_default=DEFAULTS.device,
    ),
]
CompileDevice = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="cpu|cuda:N|auto",
        help="What to compile for: auto is the first GPU, or the CPU where there is none.",
        show_default=DEFAULTS.device,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        help="Worker processes on this machine's CPU (on GPUs there is one for each); 0 where all "
        "join from elsewhere.",
        show_default=str(DEFAULTS.workers),
    ),
]
IntraOpThreads = Annotated[
    int | None,
    typer.Option(
        "--intra-op-threads",
        min=1,
        help="CPUs that share one execution of a worker on the CPU: a shorter wait for one large "
        "model, where more workers serve more requests. Models are measured with as many.",
        show_default=str(DEFAULTS.intra_op_threads),
    ),
]
CacheMb = Annotated[
    int | None,
    typer.Option(
        "--cache-mb",
        help="Weights cache of each worker, MiB; models page in and out of it.",
        show_default="1024 on the CPU, all that is free on a GPU",
    ),
]
PageMb = Annotated[
    int | None,
    typer.Option(
        "--page-mb",
        help="Page of the weights cache, MiB; the same for gateway and workers.",
        show_default=str(DEFAULTS.page_mb),
    ),
]
Replica = Annotated[
    str | None,
    typer.Option(
        "--replica",
        metavar="NAME",
        help="Of several gateways that share the models, which one this is, or is for.",
        show_default="the only one",
    ),
]
Replicas = Annotated[
    str | None,
    typer.Option(
        "--replicas",
        metavar="NAME=URL,...",
        help="All of them, this one too, the same text for each and for their workers; "
        ";weight=W after a URL for one with more devices (docs/scale.md).",
        show_default="none",
    ),
]
ReplicaCopies = Annotated[
    int | None,
    typer.Option(
        "--replica-copies",
        min=1,
        help="How many replicas have a model ready: its owner, and who stands in for it.",
        show_default=str(DEFAULTS.replica_copies),
    ),
]
DefaultSloMs = Annotated[
    float | None,
    typer.Option(
        "--default-slo-ms",
        help="SLO of requests that name none, where their model has none either.",
        show_default=f"{DEFAULTS.default_slo_ms:.0f}",
    ),
]
Policy = Annotated[
    str | None,
    typer.Option(
        "--policy",
        metavar="NAME[:OPTION=VALUE,...]",
        help="Who goes next: remontoir, or a baseline to compare with (docs/policies.md): "
        "clockwork, clipper, symphony, nexus, triton, edf, fifo.",
        show_default=DEFAULTS.policy,
    ),
]
ScheduleAheadMs = Annotated[
    float | None,
    typer.Option(
        "--schedule-ahead-ms",
        help="How long before a device is predicted free its next action is sent.",
        show_default="the policy's own rule",
    ),
]
DrainS = Annotated[
    float | None,
    typer.Option(
        "--drain-s",
        help="After SIGTERM or Ctrl-C: seconds in which /readyz says no and requests are still "
        "served, so that a load balancer turns away first. A second Ctrl-C ends at once.",
        show_default=f"{DEFAULTS.drain_s:.0f}",
    ),
]
RepositoryPollS = Annotated[
    float | None,
    typer.Option(
        "--repository-poll-s",
        help="Seconds between looks at the model directory: a new version, or a new model, whose "
        "files two looks have seen alike is compiled beside what serves, and takes over. 0: only "
        "when told, by POST /models/NAME/reload.",
        show_default=f"{DEFAULTS.repository_poll_s:.0f}",
    ),
]
KeepVersions = Annotated[
    int | None,
    typer.Option(
        "--keep-versions",
        help="Versions of each model kept beside the one that serves, to go back to at once by "
        "POST /models/NAME/rollback. Each costs its copy in the host's memory.",
        show_default=str(DEFAULTS.keep_versions),
    ),
]
WorkerBind = Annotated[
    str | None,
    typer.Option(
        "--worker-bind",
        metavar="tcp://HOST:PORT",
        help="Let workers of other machines join here: with --curve-keys.",
    ),
]
CurveKeys = Annotated[
    Path | None,
    typer.Option(
        "--curve-keys",
        metavar="DIR",
        help="Keys that gateway and workers prove themselves with, and encrypt what they say: the "
        "directory that `remontoir keys curve` made for this side.",
    ),
]
Emulate = Annotated[
    str | None,
    typer.Option(
        "--emulate",
        metavar="NAME:N",
        help="In place of real devices, N emulated ones: durations of a published table, zeros "
        "for answers. NAME is clockwork-v100.",
    ),
]
EmulateOne = Annotated[
    str | None,
    typer.Option("--emulate", metavar="NAME", help="An emulated device: clockwork-v100."),
]
Record = Annotated[
    Path | None,
    typer.Option(
        "--record",
        metavar="FILE",
        help="Write every event and decision of the scheduler to FILE, for `remontoir replay` and "
        "`remontoir explain`. No inputs or outputs are in it. A FILE of an earlier run is kept as "
        "FILE.previous.",
    ),
]
OtlpEndpoint = Annotated[
    str | None,
    typer.Option(
        "--otlp-endpoint",
        metavar="http://HOST:PORT",
        help="Send traces of requests to an OpenTelemetry collector there (OTLP over HTTP, port "
        "4318): pip install 'remontoir[otel]'.",
    ),
]
TraceRatio = Annotated[
    float | None,
    typer.Option(
        "--trace-ratio",
        help="With --otlp-endpoint: the share of requests that are traced, of those whose caller "
        "has not decided it (traceparent).",
        show_default=f"{DEFAULTS.trace_ratio:g}",
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Settings as YAML; REMONTOIR_* in the environment and flags go before it.",
    ),
]
LogForm = Annotated[
    str | None,
    typer.Option(
        "--log-format",
        metavar="pretty|json",
        help="Of the log: for a person, or one JSON object a line; its workers' too.",
        show_default=DEFAULTS.log_format,
    ),
]
LogLevel = Annotated[
    str,
    typer.Option("--log-level", help="debug, info, warning or error; the log goes to stderr."),
]
Connect = Annotated[
    str,
    typer.Option(
        "--connect", metavar="tcp://HOST:PORT", help="What the gateway has as --worker-bind."
    ),
]
WorkerName = Annotated[
    str | None,
    typer.Option("--name", help="Shown in metrics.", show_default="this machine's name"),
]
HealthPort = Annotated[
    int | None,
    typer.Option(
        "--health-port",
        min=0,
        max=65535,
        help="Answer probes there: /startz when its models are ready, /livez, /readyz when it has "
        "joined the gateway.",
        show_default="none",
    ),
]
Cpu = Annotated[int | None, typer.Option("--cpu", help="Run on this CPU only.")]
Url = Annotated[
    str,
    typer.Option(
        "--url",
        help="Where the gateway listens. If it needs an API key: that of REMONTOIR_API_KEY is "
        "sent.",
    ),
]
CaCert = Annotated[
    Path | None,
    typer.Option(
        "--ca-cert",
        metavar="FILE",
        help="For https: the authority to trust, PEM; a self-signed certificate is its own.",
        show_default="the system's",
    ),
]
Once = Annotated[
    bool, typer.Option("--once", help="Print one picture, after three frames, and end.")
]
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.")]
InputFile = Annotated[
    Path | None,
    typer.Option(
        "--file",
        metavar="F",
        help="Input: .npy, .npz or .json; for magika, any file whose type to name.",
    ),
]
InputJson = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="TEXT",
        help="Input: nested lists by input name, or the list alone where there is one input.",
    ),
]
SloMs = Annotated[
    float | None,
    typer.Option(
        "--slo-ms", help="The answer is wanted within this long.", show_default="the model's"
    ),
]
RecentId = Annotated[
    str | None,
    typer.Argument(
        metavar="REQUEST_ID", help="The x-request-id of its answer: tell this one's story."
    ),
]
Worst = Annotated[
    int | None,
    typer.Option(
        "--worst",
        metavar="N",
        min=1,
        max=1000,
        help="The N with the least slack.",
        show_default="the latest 20",
    ),
]
WithOutcome = Annotated[
    str | None,
    typer.Option(
        "--outcome", metavar="OUTCOME", help="Only served, rejected, expired, failed and so on."
    ),
]
AskedModel = Annotated[
    str | None, typer.Option("--model", metavar="MODEL", help="Only of this model.")
]
QuoteCount = Annotated[
    int, typer.Option("--count", min=1, help="So many requests, as if they came together.")
]
QuoteRows = Annotated[int, typer.Option("--rows", min=1, help="Rows of each.")]
DemoModelNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="[MODEL]...", help="Only these.", show_default="all six"),
]
Into = Annotated[
    Path, typer.Option("--into", metavar="DIR", help="Model repository to put them into.")
]
