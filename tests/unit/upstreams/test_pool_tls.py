"""The HTTP client over TLS, and whose certificate it trusts."""

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.unit.upstreams.raw_server import Server, ask

from tollway.errors import Unavailable
from tollway.upstreams.pool import ConnectionPool


def certificate_for(host: str, folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(host))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


async def over_tls(certificate: Path) -> Server:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = Server()
    await server.start(context)
    return server


async def test_tls_is_spoken_with_a_server_whose_certificate_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = certificate_for("127.0.0.1", tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    server = await over_tls(certificate)
    pool = ConnectionPool(f"https://127.0.0.1:{server.port}/v1")
    for _ in range(2):
        assert (await ask(pool)).data == b"hello"
    assert server.connections == 1
    await pool.close()
    await server.stop()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"], ids=["unknown", "another's"])
async def test_a_server_whose_certificate_is_not_to_be_trusted_is_sent_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    host: str,
) -> None:
    certificate = certificate_for(host, tmp_path)
    if host != "127.0.0.1":
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    server = await over_tls(certificate)
    pool = ConnectionPool(f"https://127.0.0.1:{server.port}/v1")
    with pytest.raises(Unavailable):
        await ask(pool)
    assert server.requests == []
    assert "certificate verify failed" in caplog.text
    await pool.close()
    await server.stop()


def test_a_server_that_closes_instead_of_speaking_tls_is_told_as_that(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """uvloop, on which the gateway runs, has no words for it."""

    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.close()

    async def asked() -> int:
        server = await asyncio.start_server(close, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Unavailable):
            await ask(ConnectionPool(f"https://127.0.0.1:{port}/v1"))
        server.close()
        return port

    port = uvloop.run(asked())
    assert f"no connection to 127.0.0.1:{port}: it was closed. Does" in caplog.text
