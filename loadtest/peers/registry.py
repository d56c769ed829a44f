"""The peers, and how each is started: as its own documentation says, and as well without.

Owns what is particular to each of them. Their programs are in servers/; FastAPI's is the baseline
of `make bench`, too.
"""

import json
from pathlib import Path

from loadtest.peers.peer import BASELINES, SERVERS, Peer, Started, Tuning, Wire


def _program(name: str) -> str:
    return str(SERVERS / name)


def _fastapi(python: Path, port: int, scratch: Path, tuning: Tuning) -> Started:
    command = [str(python), "-m", "uvicorn", "fastapi_ort:app", "--app-dir", str(BASELINES)]
    command += ["--port", str(port), "--no-access-log", "--log-level", "warning"]
    models = tuning.models.items()
    environ = {"BASELINE_MODELS": ",".join(f"{name}={model.path}" for name, model in models)}
    if tuning.is_tuned:
        environ["BASELINE_LIMITS"] = ",".join(f"{name}={model.limit}" for name, model in models)
    return Started(command, "/ready", environ=environ)


def _litserve(python: Path, port: int, scratch: Path, tuning: Tuning) -> Started:
    return Started([str(python), _program("serve_litserve.py")], "/health")


def _bentoml(python: Path, port: int, scratch: Path, tuning: Tuning) -> Started:
    command = [str(python), "-m", "bentoml", "serve", "serve_bentoml:Peer", "--port", str(port)]
    command += ["--host", "127.0.0.1", "--working-dir", str(SERVERS)]
    environ = {"BENTOML_HOME": str(scratch / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
    return Started(command, "/readyz", environ=environ)


def _ray_serve(python: Path, port: int, scratch: Path, tuning: Tuning) -> Started:
    return Started(
        [str(python), _program("serve_ray.py")],
        f"/{list(tuning.models)[-1]}",  # it is deployed last; earlier, others answer without it
        environ={
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_SERVE_LOG_TO_STDERR": "0",
            # Its own 30 s are too few where its eleven processes begin on one core.
            "RAY_raylet_start_wait_time_s": "180",
        },
    )


def _mosec(python: Path, port: int, scratch: Path, tuning: Tuning) -> Started:
    command = [str(python), _program("serve_mosec.py"), "--address", "127.0.0.1"]
    command += ["--port", str(port), "--path", str(scratch / "mosec"), "--log-level", "warning"]
    if tuning.is_tuned:
        command += ["--timeout", str(max(1, round(tuning.timeout_ms)))]
        command += ["--capacity", str(tuning.limit)]
    return Started(command, "/")


def _kserve(python: Path, port: int, scratch: Path, tuning: Tuning) -> Started:
    return Started([str(python), _program("serve_kserve.py")], "/v2/health/ready")


def _mlserver(python: Path, port: int, scratch: Path, tuning: Tuning) -> Started:
    settings = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": port + 1,
        "metrics_port": port + 2,
        "parallel_workers": 1,
        "debug": False,
    }
    files = {"settings.json": json.dumps(settings)}
    for name, model in tuning.models.items():
        of_model: dict[str, object] = {"name": name, "implementation": "serve_mlserver.OrtRuntime"}
        if tuning.is_tuned:
            of_model["max_batch_size"] = model.max_batch
            of_model["max_batch_time"] = tuning.batch_wait_ms / 1e3
        files[f"{name}/model-settings.json"] = json.dumps(of_model)
    command = [str(python.parent / "mlserver"), "start", str(scratch)]
    return Started(command, "/v2/health/ready", files)


def _torchserve(python: Path, port: int, scratch: Path, tuning: Tuning) -> Started:
    models = {}
    archives = scratch / "archives"
    files = {}
    for name, model in tuning.models.items():
        manifest = {
            "createdOn": "01/01/2000 00:00:00",
            "runtime": "python",
            "model": {
                "modelName": name,
                "handler": "serve_torchserve.py:handle",
                "modelVersion": "1.0",
            },
            "archiverVersion": "0.12.0",
        }
        folder = f"archives/{name}"
        files[f"{folder}/MAR-INF/MANIFEST.json"] = json.dumps(manifest)
        files[f"{folder}/serve_torchserve.py"] = (SERVERS / "serve_torchserve.py").read_text()
        settings: dict[str, object] = {
            "defaultVersion": True,
            "marName": name,
            "minWorkers": 1,
            "maxWorkers": 1,
            "batchSize": model.max_batch if tuning.is_tuned else 1,
            "maxBatchDelay": max(1, round(tuning.batch_wait_ms)),
            "responseTimeout": 120,
        }
        if tuning.is_tuned:
            settings["clientTimeoutInMills"] = max(1, round(model.timeout_ms))
        models[name] = {"1.0": settings}
    lines = [
        f"inference_address=http://127.0.0.1:{port}",
        f"management_address=http://127.0.0.1:{port + 1}",
        f"metrics_address=http://127.0.0.1:{port + 2}",
        f"grpc_inference_port={port + 3}",
        f"grpc_management_port={port + 4}",
        f"model_store={archives}",
        "load_models=" + ",".join(tuning.models),
        "disable_token_authorization=true",
        "default_workers_per_model=1",
        f"models={json.dumps(models)}",
    ]
    if tuning.is_tuned:
        lines.append(f"job_queue_size={tuning.limit}")
    files["config.properties"] = "\n".join(lines) + "\n"
    command = [str(python.parent / "torchserve"), "--start", "--foreground", "--ncs"]
    command += ["--model-store", str(archives), "--ts-config", str(scratch / "config.properties")]
    path = f"{python.parent}:/usr/local/bin:/usr/bin:/bin"
    environ = {"PATH": path, "LOG_LOCATION": str(scratch), "METRICS_LOCATION": str(scratch)}
    return Started(command, "/ping", files, environ)


def _triton(python: Path, port: int, scratch: Path, tuning: Tuning) -> Started:
    package = next(python.parent.parent.glob("lib/python3*/site-packages/pytriton"))
    home = package / "tritonserver"
    # The program that runs a model.py has to be of this Python, and lie where Triton looks for it;
    # PyTriton puts it there as well. The environment is this peer's own.
    version = package.parent.parent.name.removeprefix("python")
    stub = home / "backends" / "python" / "triton_python_backend_stub"
    if not stub.is_symlink():
        stub.symlink_to(home / "python_backend_stubs" / version / stub.name)
    # Its Python reads no PYTHONPATH.
    program = f"import sys; sys.path[:0] = {[str(SERVERS), str(package.parent)]}\n"
    program += "from serve_triton import TritonPythonModel\n"
    files = {}
    for name in tuning.models:
        files[f"models/{name}/1/model.py"] = program
        files[f"models/{name}/config.pbtxt"] = _triton_config(name, tuning)
    command = [str(home / "bin" / "tritonserver"), "--model-repository", str(scratch / "models")]
    command += ["--backend-directory", str(home / "backends"), "--http-address", "127.0.0.1"]
    command += ["--http-port", str(port), "--allow-grpc", "false", "--allow-metrics", "false"]
    command += ["--http-thread-count", "2"]
    return Started(command, "/v2/health/ready", files)


def _triton_config(name: str, tuning: Tuning) -> str:
    model = tuning.models[name]
    input_name, datatype, shape, output_name, output_shape = _signature(Path(model.path))
    text = (
        f'name: "{name}"\nbackend: "python"\n'
        f"max_batch_size: {model.max_batch if tuning.is_tuned else 1}\n"
        f'input [{{ name: "{input_name}" data_type: TYPE_{datatype} dims: {shape} }}]\n'
        f'output [{{ name: "{output_name}" data_type: TYPE_FP32 dims: {output_shape} }}]\n'
        "instance_group [{ kind: KIND_CPU count: 1 }]\n"
    )
    if tuning.is_tuned:
        text += (
            "dynamic_batching {\n  default_queue_policy {\n    timeout_action: REJECT\n"
            f"    default_timeout_microseconds: {round(model.queue_timeout_ms * 1e3)}\n"
            "    allow_timeout_override: false\n  }\n}\n"
        )
    return text


def _signature(path: Path) -> tuple[str, str, list[int], str, list[int]]:
    from loadtest.reference import session_of

    session = session_of(path)
    tensor, answer = session.get_inputs()[0], session.get_outputs()[0]
    datatype = "UINT8" if tensor.type == "tensor(uint8)" else "FP32"
    output_shape = [size if isinstance(size, int) else -1 for size in answer.shape[1:]]
    return tensor.name, datatype, list(tensor.shape[1:]), answer.name, output_shape


PEERS = (
    Peer(
        "triton", "Triton", "nvidia-pytriton", Wire.V2_BINARY, "/v2/models/{model}/infer", _triton,
        "its Python backend; dynamic batching as soon as it is free, and a queue timeout of the "
        "SLO less the largest batch",
        needs_system_python=True,
    ),
    Peer(
        "litserve", "LitServe", "litserve", Wire.BASE64, "/{model}", _litserve,
        "max_batch_size, batch_timeout, and timeout of the SLO",
    ),
    Peer(
        "bentoml", "BentoML", "bentoml", Wire.BASE64_LIST, "/{model}", _bentoml,
        "batchable with max_latency_ms of the SLO; max_concurrency",
    ),
    Peer(
        "ray_serve", "Ray Serve", "ray", Wire.RAW, "/{model}", _ray_serve,
        "@serve.batch, max_ongoing_requests, max_queued_requests, request_timeout_s of the SLO",
    ),
    Peer(
        "mlserver", "MLServer", "mlserver", Wire.V2_BASE64, "/v2/models/{model}/infer", _mlserver,
        "adaptive batching; it has no limits",
    ),
    Peer(
        "kserve", "KServe", "kserve", Wire.V2_BINARY, "/v2/models/{model}/infer", _kserve,
        "its model server has neither batching nor limits; both are in its sidecars",
        can_be_tuned=False,
    ),
    Peer(
        "torchserve", "TorchServe", "torchserve", Wire.RAW, "/predictions/{model}", _torchserve,
        "batchSize, maxBatchDelay, job_queue_size, clientTimeoutInMills of the SLO",
        needs="java",
    ),
    Peer(
        "mosec", "mosec", "mosec", Wire.RAW, "/{model}", _mosec,
        "max_batch_size, max_wait_time, timeout of the SLO, capacity",
    ),
    Peer(
        "fastapi_ort", "FastAPI + ONNX Runtime", "fastapi", Wire.RAW, "/raw/{model}", _fastapi,
        "at most so many outstanding requests per model as fit into its SLO, else 503 at once",
    ),
)  # fmt: skip


def by_name(name: str) -> Peer:
    """Raises ValueError, naming those that there are."""
    for peer in PEERS:
        if peer.name == name:
            return peer
    raise ValueError(f"no peer {name!r}; there are {', '.join(peer.name for peer in PEERS)}")
