"""HTTPS: the short way over TLS, certificates that do not work, and a new one while it serves."""

import asyncio
import shutil
import signal
import ssl
from pathlib import Path

import httpx
import pytest

from gateway.command.client import Client, ClientError
from gateway.http.tls import Certificate, TlsError
from scheduler.spec import TensorSpec
from tests.gateway.http_doubles import fp32, mlp_body, model_spec, outputs, served
from tests.gateway.listening import Connection, Gateway, body_of, listening, run
from tests.gateway.running import running_gateway

FILES = Path(__file__).parent / "tls"
MLP_OUTPUTS = outputs(((1, 2), fp32(0.5, 0.25)))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The two certificates and keys, as a careful person keeps them."""
    for file in FILES.glob("*.pem"):
        (tmp_path / file.name).touch(mode=0o600)
        shutil.copyfile(file, tmp_path / file.name)
    return tmp_path


def certificate(files: Path) -> Certificate:
    return Certificate(files / "first-cert.pem", files / "first-key.pem")


def trusting(*files: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for file in files:
        context.load_verify_locations(file)
    return context


async def answered(gateway: Gateway, connection: Connection) -> int:
    (await gateway.submitted.get()).on_done(served(), MLP_OUTPUTS)
    return (await connection.answer())[0]


def test_the_short_way_goes_over_tls_too(files: Path) -> None:
    async def story() -> None:
        async with listening(True, certificate=certificate(files)) as gateway:
            connection = await gateway.connect(trusting(files / "first-cert.pem"))
            for _ in range(2):
                connection.send(body_of(mlp_body()))
                request = await gateway.submitted.get()
                assert not gateway.server.server_state.tasks
                request.on_done(served(), MLP_OUTPUTS)
                assert (await connection.answer())[0] == 200

    run(story)


def test_a_large_body_over_tls_does_not_wait_for_bytes_that_are_here_already(files: Path) -> None:
    """The kernel would be asked for more than is still to come."""

    async def story() -> None:
        size = 300_000
        spec = model_spec(
            inputs=(TensorSpec("x", "UINT8", (-1, size)),),
            outputs=(TensorSpec("y", "FP32", (-1, 2)),),
        )
        tensor = {
            "name": "x",
            "shape": [1, size],
            "datatype": "UINT8",
            "parameters": {"binary_data_size": size},
        }
        header = body_of({"model": "mlp", "slo_ms": 80, "inputs": [tensor]})
        async with listening(True, spec, certificate=certificate(files)) as gateway:
            connection = await gateway.connect(trusting(files / "first-cert.pem"))
            body = header + bytes(size)
            connection.send(
                body[:70_000],
                length=len(body),
                headers=f"Inference-Header-Content-Length: {len(header)}\r\n",
            )
            memory = gateway.app.infer.memory
            while memory.num_bytes < 70_000:  # noqa: ASYNC110  # no event says so
                await asyncio.sleep(0)
            [protocol] = gateway.server.server_state.connections
            assert protocol._low_water == 1  # type: ignore[union-attr]
            connection.writer.write(body[70_000:])
            assert await answered(gateway, connection) == 200

    run(story)


def test_a_refusal_reaches_the_client_before_tls_ends(files: Path) -> None:
    async def story() -> None:
        async with listening(True, certificate=certificate(files)) as gateway:
            connection = await gateway.connect(trusting(files / "first-cert.pem"))
            connection.writer.write(b"NO HTTP\r\n\r\n")
            assert (await connection.answer())[0] == 400
            assert await connection.is_closed()

    run(story)


def test_a_new_certificate_is_for_connections_from_then_on(files: Path) -> None:
    async def story() -> None:
        ours = certificate(files)
        async with listening(True, certificate=ours) as gateway:
            trust_first = trusting(files / "first-cert.pem")
            old = await gateway.connect(trust_first)
            for kind in ("cert", "key"):
                shutil.copyfile(files / f"second-{kind}.pem", files / f"first-{kind}.pem")
            ours.read_again()
            with pytest.raises(ssl.SSLCertVerificationError):
                await gateway.connect(trust_first)
            new = await gateway.connect(trusting(files / "second-cert.pem"))
            for connection in (old, new):
                connection.send(body_of(mlp_body()))
                assert await answered(gateway, connection) == 200

    run(story)


def test_one_that_does_not_work_changes_nothing(files: Path) -> None:
    async def story() -> None:
        ours = certificate(files)
        async with listening(True, certificate=ours) as gateway:
            shutil.copyfile(files / "second-cert.pem", files / "first-cert.pem")
            with pytest.raises(TlsError, match="is not the key of"):
                ours.read_again()
            connection = await gateway.connect(trusting(FILES / "first-cert.pem"))
            connection.send(body_of(mlp_body()))
            assert await answered(gateway, connection) == 200

    run(story)


def test_files_that_do_not_work_are_named(files: Path) -> None:
    cert, key = files / "first-cert.pem", files / "first-key.pem"
    both = files / "both.pem"
    both.touch(mode=0o600)
    both.write_text(cert.read_text() + key.read_text())
    Certificate(both)
    with pytest.raises(TlsError, match=r"--tls-cert .*/no\.pem: No such file"):
        Certificate(files / "no.pem")
    with pytest.raises(TlsError, match=r"--tls-key .*/first-cert\.pem: no private key in PEM form"):
        Certificate(cert)
    with pytest.raises(TlsError, match=r"--tls-cert .*/first-key\.pem: no certificate in PEM form"):
        Certificate(key, cert)
    with pytest.raises(TlsError, match=r"second-key\.pem is not the key of --tls-cert"):
        Certificate(cert, files / "second-key.pem")
    cert.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(TlsError, match=r"--tls-cert .* --tls-key "):
        Certificate(cert, key)


def test_an_encrypted_key_is_not_asked_about_at_the_terminal(files: Path) -> None:
    key = files / "first-key.pem"
    key.write_text(
        "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n"
        "DEK-Info: AES-128-CBC,00112233445566778899AABBCCDDEEFF\n\n"
        + "A" * 64
        + "\n-----END EC PRIVATE KEY-----\n"
    )
    with pytest.raises(TlsError, match="is encrypted, and nobody is there to give a password"):
        Certificate(files / "first-cert.pem", key)


def test_a_process_serves_https_and_reads_its_certificate_again(files: Path) -> None:
    cert, key = files / "first-cert.pem", files / "first-key.pem"
    flags = ("--emulate", "clockwork-v100", "--tls-cert", str(cert), "--tls-key", str(key))
    with running_gateway(*flags, "--drain-s", "0", scratch=files / "gateway") as gateway:
        assert gateway.url.startswith("https://127.0.0.1:")
        assert f"--cacert {cert} {gateway.url}/models" in gateway.announcement
        with Client(gateway.url, ca_cert=cert) as client:
            assert client.models()
        with Client(gateway.url) as client, pytest.raises(ClientError, match="--ca-cert FILE"):
            client.models()
        plain = gateway.url.replace("https", "http")
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{plain}/livez")
        for kind in ("cert", "key"):
            shutil.copyfile(files / f"second-{kind}.pem", files / f"first-{kind}.pem")
        gateway.process.send_signal(signal.SIGHUP)
        assert gateway.read_line() == (
            f"Read {cert} again: a certificate, for connections from now on.\n"
        )
        with Client(gateway.url, ca_cert=files / "second-cert.pem") as client:
            assert client.models()
        gateway.process.send_signal(signal.SIGTERM)
        code, output = gateway.wait()
        assert (code, "Traceback" in output) == (0, False)


def test_a_client_is_told_what_is_wrong_with_the_authority(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match=r"--ca-cert .*: No such file"):
        Client("https://127.0.0.1:1", ca_cert=tmp_path / "no.pem")
    (tmp_path / "empty.pem").touch()
    with pytest.raises(ClientError, match=r"--ca-cert .*: no certificate in PEM form"):
        Client("https://127.0.0.1:1", ca_cert=tmp_path / "empty.pem")
