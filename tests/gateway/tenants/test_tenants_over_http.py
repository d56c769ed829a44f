"""Tenants over real sockets, through uvicorn's own protocol and through ours."""

import json

import pytest

from gateway.tenants.api_keys import new_key
from gateway.tenants.tenants_file import TenantSpec
from scheduler.spec import TensorSpec
from tests.gateway.http_doubles import fp32, mlp_body, model_spec, outputs, served
from tests.gateway.listening import body_of, listening, run

MLP_OUTPUTS = outputs(((1, 2), fp32(0.5, 0.25)))
KEY, LIMITED = new_key(), new_key()
TENANTS = {
    "shop": TenantSpec(keys=(KEY.line,)),
    "limited": TenantSpec(keys=(LIMITED.line,), max_concurrent=1),
}
BEARER = f"Authorization: Bearer {KEY.text}\r\n"
COUNTED = f"x-api-key: {LIMITED.text}\r\n"
LARGE = 1 << 20
BYTES_MODEL = model_spec(
    inputs=(TensorSpec("x", "UINT8", (-1, -1)),), outputs=(TensorSpec("y", "UINT8", (-1, -1)),)
)
pytestmark = pytest.mark.parametrize("is_direct", [False, True], ids=["uvicorn", "direct"])


def large_request() -> tuple[bytes, str]:
    tensor = {
        "name": "x",
        "shape": [1, LARGE],
        "datatype": "UINT8",
        "parameters": {"binary_data_size": LARGE},
    }
    header = body_of(mlp_body(inputs=[tensor], slo_ms=5000))
    return header, f"Inference-Header-Content-Length: {len(header)}\r\n"


def test_one_connection_may_carry_keys_of_several_tenants(is_direct: bool) -> None:
    async def story() -> None:
        async with listening(is_direct, tenants=TENANTS) as gateway:
            connection = await gateway.connect()
            for headers, tenant in ((BEARER, "shop"), (COUNTED, "limited"), (BEARER, "shop")):
                connection.send(body_of(mlp_body()), headers=headers)
                submitted = await gateway.submitted.get()
                assert submitted.tenant == tenant
                submitted.on_done(served(), MLP_OUTPUTS)
                assert (await connection.answer())[0] == 200
            connection.send(body_of(mlp_body()))
            status, headers_sent, body = await connection.answer()
            assert (status, json.loads(body)["reason"]) == (401, "unauthenticated")
            assert headers_sent["www-authenticate"] == 'bearer realm="remontoir"'

    run(story)


def test_who_has_no_key_hears_it_before_the_body_has_come(is_direct: bool) -> None:
    async def story() -> None:
        async with listening(is_direct, BYTES_MODEL, tenants=TENANTS) as gateway:
            header, length = large_request()
            connection = await gateway.connect()
            connection.send(header, length=len(header) + LARGE, headers=length)
            assert (await connection.answer())[0] == 401
            assert gateway.app.infer.memory.num_bytes == 0

    run(story)


def test_uploads_count_from_their_first_piece(is_direct: bool) -> None:
    async def story() -> None:
        async with listening(is_direct, BYTES_MODEL, tenants=TENANTS) as gateway:
            header, length = large_request()
            slow, other = await gateway.connect(), await gateway.connect()
            limited = gateway.bench.keyring.tenants["limited"]  # type: ignore[union-attr]
            slow.send(header, length=len(header) + LARGE, headers=length + COUNTED)
            while limited.num_open == 0:
                other.send(body_of(mlp_body(model="nobody")), headers=BEARER)
                assert (await other.answer())[0] == 404
            other.send(header, length=len(header) + LARGE, headers=length + COUNTED)
            status, _, body = await other.answer()
            assert (status, json.loads(body)["reason"]) == (429, "quota_exceeded")
            slow.writer.write(bytes(LARGE))
            submitted = await gateway.submitted.get()
            assert submitted.tenant == "limited"
            submitted.on_done(served(), outputs(((1, 2), b"ab")))
            assert (await slow.answer())[0] == 200
            assert limited.num_open == 0

    run(story)


def test_who_hangs_up_makes_room(is_direct: bool) -> None:
    async def story() -> None:
        async with listening(is_direct, tenants=TENANTS) as gateway:
            first, second = await gateway.connect(), await gateway.connect()
            first.send(body_of(mlp_body()), headers=COUNTED)
            await gateway.submitted.get()
            second.send(body_of(mlp_body()), headers=COUNTED)
            assert (await second.answer())[0] == 429
            first.close()
            await gateway.cancelled.get()
            second.send(body_of(mlp_body()), headers=COUNTED)
            (await gateway.submitted.get()).on_done(served(), MLP_OUTPUTS)
            assert (await second.answer())[0] == 200

    run(story)


def test_a_large_upload_of_a_tenant_is_served(is_direct: bool) -> None:
    async def story() -> None:
        async with listening(is_direct, BYTES_MODEL, tenants=TENANTS) as gateway:
            header, length = large_request()
            connection = await gateway.connect()
            connection.send(header + bytes(LARGE), headers=length + BEARER)
            submitted = await gateway.submitted.get()
            assert submitted.tenant == "shop"
            submitted.on_done(served(), outputs(((1, 2), b"ab")))
            assert (await connection.answer())[0] == 200

    run(story)
