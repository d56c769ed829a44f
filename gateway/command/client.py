"""A running gateway, as the command line sees it over HTTP.

Owns how a request is built from what a reader types (JSON, arrays in files) and how a failure
becomes one line. It must never know anything that the HTTP contract does not say: no scheduler, no
worker.
"""

import json
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import quote

import httpx
import numpy as np
import numpy.typing as npt

# Datatypes of the Open Inference Protocol that numpy has.
NUMPY_TYPES = {
    "BOOL": "|b1", "UINT8": "|u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8",
    "INT8": "|i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
    "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip

CONNECT_TIMEOUT_S = 3.0
# Above any SLO a reader waits for; the server answers at the deadline at the latest.
MARGIN_S = 30.0

Array = npt.NDArray[Any]
JsonObject = dict[str, Any]


class ClientError(Exception):
    """One line for the reader: what was asked and what came back."""


class Answer(NamedTuple):
    """A 200 to an inference. `round_trip_ms` is by this side's clock."""

    body: JsonObject
    round_trip_ms: float


class Client:
    """Calls one gateway, until the `with` block ends. Every call raises ClientError."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        ca_cert: Path | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        headers = {} if not api_key else {"authorization": f"Bearer {api_key}"}
        # A proxy in the environment is meant for the world outside, not for this server.
        self._http = httpx.Client(
            headers=headers, transport=transport, trust_env=False, verify=_trust(ca_cert)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.close()

    def get(self, path: str) -> None:
        """A probe: all that counts is that it is a 200."""
        self._call("GET", path)

    def models(self) -> list[JsonObject]:
        """GET /models."""
        models: list[JsonObject] = self._call("GET", "/models").json()["models"]
        return models

    def model(self, name: str) -> JsonObject:
        """GET /models/{name}."""
        model: JsonObject = self._call("GET", f"/models/{name}").json()
        return model

    def change_version(self, what: str, model: str) -> JsonObject:
        """POST /models/{name}/reload or /rollback. Compiling takes minutes, and longer on a GPU."""
        path = f"/models/{quote(model, safe='')}/{what}"
        timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)
        told: JsonObject = self._call("POST", path, timeout=timeout).json()
        return told

    def infer(
        self,
        model: str,
        inputs: Sequence[JsonObject],
        tensors: Sequence[bytes],
        slo_ms: float | None,
    ) -> Answer:
        """POST /infer; `tensors` are the bytes of the inputs that have no `data`, in order."""
        request: JsonObject = {"model": model, "inputs": list(inputs)}
        if slo_ms is not None:
            request["slo_ms"] = slo_ms
        header = json.dumps(request).encode()
        headers = {"content-type": "application/json"}
        if tensors:
            headers = {
                "content-type": "application/octet-stream",
                "inference-header-content-length": str(len(header)),
            }
        timeout_s = MARGIN_S + (slo_ms or 0.0) / 1e3
        begin_ns = time.perf_counter_ns()
        response = self._call(
            "POST",
            "/infer",
            content=b"".join([header, *tensors]),
            headers=headers,
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
        )
        return Answer(response.json(), (time.perf_counter_ns() - begin_ns) / 1e6)

    def refusal(self, model: str, inputs: Sequence[JsonObject], slo_ms: float) -> JsonObject:
        """POST /infer that must be refused; the body of its error, which has the status."""
        request = {"model": model, "slo_ms": slo_ms, "inputs": list(inputs)}
        response = self._send("POST", "/infer", json=request)
        call = f"POST {self._url}/infer"
        if response.status_code == 200:
            raise ClientError(f"{call}: an SLO of {slo_ms:g} ms was answered with 200")
        try:
            body: JsonObject = response.json()
            return {"status": response.status_code, "reason": body["reason"], **body}
        except (ValueError, KeyError, TypeError) as error:
            raise ClientError(_refusal(response, call)) from error

    def quote(self, model: str, *, slo_ms: float | None, rows: int, count: int) -> JsonObject:
        """POST /quote: a no is an answer, too."""
        question: JsonObject = {"model": model, "rows": rows, "count": count}
        if slo_ms is not None:
            question["slo_ms"] = slo_ms
        told: JsonObject = self._call("POST", "/quote", json=question).json()
        return told

    def requests(self, asked: Mapping[str, str | int]) -> JsonObject:
        """GET /requests: recent ones, by its parameters."""
        told: JsonObject = self._call("GET", "/requests", params=asked).json()
        return told

    def request(self, request_id: str) -> JsonObject:
        """GET /requests/{id}: what became of one."""
        told: JsonObject = self._call("GET", f"/requests/{quote(request_id, safe='')}").json()
        return told

    def events(self, path: str) -> Iterator[tuple[str, JsonObject]]:
        """Server-sent events, as (name, data), until the server closes the stream."""
        timeout = httpx.Timeout(MARGIN_S, connect=CONNECT_TIMEOUT_S)
        call = f"GET {self._url}{path}"
        try:
            with self._http.stream("GET", self._url + path, timeout=timeout) as response:
                if response.status_code != 200:
                    response.read()
                    raise ClientError(_refusal(response, call))
                name = ""
                for line in response.iter_lines():
                    field, _, value = line.partition(": ")
                    if field == "event":
                        name = value
                    elif field == "data":
                        yield name, json.loads(value)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise self._unreachable(error) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ClientError(f"{call}: {error or type(error).__name__}") from error

    def _call(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        response = self._send(method, path, **arguments)
        if response.status_code != 200:
            raise ClientError(_refusal(response, f"{method} {self._url}{path}"))
        return response

    def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        arguments.setdefault("timeout", httpx.Timeout(MARGIN_S, connect=CONNECT_TIMEOUT_S))
        try:
            return self._http.request(method, self._url + path, **arguments)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise self._unreachable(error) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ClientError(
                f"{method} {self._url}{path}: {error or type(error).__name__}"
            ) from error

    def _unreachable(self, error: Exception) -> ClientError:
        why = _tls_problem(error)
        if why is not None:
            return ClientError(f"{self._url}: {why}")
        return ClientError(
            f"no server answers at {self._url} ({error})."
            " Start one with `remontoir serve --models DIR`, or name it with --url."
        )


def _trust(ca_cert: Path | None) -> ssl.SSLContext:
    if ca_cert is None:
        return ssl.create_default_context()
    try:
        return ssl.create_default_context(cafile=ca_cert)
    except OSError as error:  # an SSLError is one
        why = "no certificate in PEM form" if isinstance(error, ssl.SSLError) else error.strerror
        raise ClientError(f"--ca-cert {ca_cert}: {why}") from error


def _tls_problem(error: Exception) -> str | None:
    """What to do about a handshake that failed; None for all else."""
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        _, _, why = text.partition("certificate verify failed: ")
        return f"its certificate is not trusted ({why or text}): --ca-cert FILE names its authority"
    if "WRONG_VERSION_NUMBER" in text or "RECORD_LAYER_FAILURE" in text:
        return "it does not speak TLS: try http://"
    return None


def _refusal(response: httpx.Response, call: str) -> str:
    try:
        body = response.json()
        line = f"{response.status_code} {body['reason']}: {body['detail']}"
    except (ValueError, KeyError, TypeError):
        return f"{call}: {response.status_code} {response.reason_phrase}, and not from Remontoir"
    retry_after_ms = body.get("retry_after_ms")
    return line if retry_after_ms is None else f"{line} (try again in {retry_after_ms:.0f} ms)"


def inputs_of_json(text: str, model: JsonObject) -> list[JsonObject]:
    """What a reader types after --json → the inputs of a request.

    Either a request as the HTTP interface has it (`{"inputs": [...]}`), or an object of nested
    lists by input name, or, for a model with one input, the nested list alone.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ClientError(f"not JSON: {error}") from error
    names = [tensor["name"] for tensor in model["inputs"]]
    if isinstance(value, dict) and isinstance(value.get("inputs"), list) and names != ["inputs"]:
        inputs: list[JsonObject] = value["inputs"]
        return inputs
    if not isinstance(value, dict):
        if len(names) != 1:
            raise ClientError(
                f"{model['name']} has the inputs {', '.join(names)}: give an object with each"
            )
        value = {names[0]: value}
    _check_names(value, names, model["name"])
    return [_json_input(value[tensor["name"]], tensor) for tensor in model["inputs"]]


def inputs_of_array_file(path: Path, model: JsonObject) -> tuple[list[JsonObject], list[bytes]]:
    """A .npy (models with one input) or .npz (arrays by input name) file → inputs, their bytes."""
    names = [tensor["name"] for tensor in model["inputs"]]
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            if len(names) != 1:
                raise ClientError(
                    f"{model['name']} has the inputs {', '.join(names)}: give an .npz with each"
                )
            arrays: dict[str, Array] = {names[0]: loaded}
        else:
            with loaded:
                arrays = {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError) as error:
        raise ClientError(f"{path}: not an .npy or .npz file: {error}") from error
    _check_names(arrays, names, model["name"])
    return binary_inputs(arrays, model)


def binary_inputs(
    arrays: Mapping[str, Array], model: JsonObject
) -> tuple[list[JsonObject], list[bytes]]:
    """Arrays by input name → inputs without `data`, and the bytes that stand for it."""
    inputs, tensors = [], []
    for tensor in model["inputs"]:
        name, datatype = tensor["name"], tensor["datatype"]
        if datatype not in NUMPY_TYPES:
            raise ClientError(f"input {name} is {datatype}, which arrays cannot hold: use --json")
        array = arrays[name]
        wanted = np.dtype(NUMPY_TYPES[datatype])
        if not np.can_cast(array.dtype, wanted, casting="same_kind"):
            raise ClientError(f"input {name} is {datatype}, the file has {array.dtype}")
        array = _with_batch_axis(array.astype(wanted), tensor)
        content = array.tobytes()
        inputs.append(
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": datatype,
                "parameters": {"binary_data_size": len(content)},
            }
        )
        tensors.append(content)
    return inputs, tensors


def _json_input(value: Any, tensor: JsonObject) -> JsonObject:
    try:
        array = np.array(value)
    except ValueError as error:
        raise ClientError(f"input {tensor['name']}: lists of unequal length") from error
    array = _with_batch_axis(array, tensor)
    return {
        "name": tensor["name"],
        "shape": list(array.shape),
        "datatype": tensor["datatype"],
        "data": array.ravel().tolist(),
    }


def _with_batch_axis(array: Array, tensor: JsonObject) -> Array:
    """One row may be given without its batch axis of 1."""
    batch_axis = tensor.get("batch_axis")
    if batch_axis is not None and array.ndim == len(tensor["shape"]) - 1:
        return np.expand_dims(array, batch_axis)
    return array


def _check_names(given: Mapping[str, Any], names: Sequence[str], model: str) -> None:
    missing = [name for name in names if name not in given]
    unknown = [name for name in given if name not in names]
    if missing or unknown:
        raise ClientError(
            f"{model} has the inputs {', '.join(names)}:"
            f" {', '.join(missing) or 'none'} missing, {', '.join(unknown) or 'none'} unknown"
        )
