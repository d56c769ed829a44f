"""What each peer is as a target of the driver, and its requests and replies by that.

Owns which form is whose; the forms are the driver's (loadtest/driver/protocols.py). It never sends
anything.
"""

import msgspec

from loadtest.driver import protocols
from loadtest.driver.job import usual_protocol
from loadtest.driver.job_target import V2, Remontoir, Spoken, Url
from loadtest.http1 import Shot
from loadtest.messages import Answer, ReadAnswer, Tensor
from loadtest.peers.peer import Wire


def target_of(wire: Wire, path: str, *, port: int) -> Spoken:
    """A server of this form that listens on 127.0.0.1:port; `path` may have {model}."""
    url = f"http://127.0.0.1:{port}"
    match wire:
        case Wire.RAW:
            return Url(url=url, path=path, body="raw", output="float32")
        case Wire.BASE64:
            return Url(url=url, path=path, body='{"data": "{base64}"}', output="base64:data")
        case Wire.BASE64_LIST:
            return Url(url=url, path=path, body='{"data": ["{base64}"]}', output="base64:0")
        case Wire.V2_BASE64:
            tensor = '{"name": "{input}", "shape": [1, 1], "datatype": "BYTES", "data": '
            body = f'{{"inputs": [{tensor}["{{base64}}"]}}]}}'
            return Url(url=url, path=path, body=body, output="base64:outputs.0.data.0")
        case Wire.V2_BINARY:
            return V2(url=url, slo="none")
        case Wire.REMONTOIR:
            return Remontoir(url=url)


def request(
    wire: Wire, path: str, *, model: str, tensor: str, row: Tensor, port: int, slo_ms: float
) -> bytes:
    """One row. Only ours is told the SLO: no peer has a place for it."""
    target = target_of(wire, path, port=port)
    return protocols.request(
        usual_protocol(target),
        target,
        host=f"127.0.0.1:{port}",
        model=model,
        inputs={tensor: row},
        slo_ms=slo_ms,
    )


def reader(wire: Wire) -> ReadAnswer:
    """Its answers raise ValueError where a 200 is not what was asked for."""
    read = protocols.reader(target_of(wire, "/", port=1))

    def checked(shot: Shot) -> Answer:
        try:
            (output,) = (read(shot).outputs or {}).values()
        except (msgspec.MsgspecError, ValueError, TypeError) as error:
            raise ValueError(f"not an answer of {wire}: {error!r}") from error
        return Answer(output)

    return checked
