"""`sslmode=verify-full` in DATABASE_URL: whose certificate is not right gets no password."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from app.config import Settings
from app.errors import TransportError
from app.stores.ledger_queries import open_reader

_SSL_REQUEST_BYTES = 8


@asynccontextmanager
async def server(certificate: trustme.LeafCert | None) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Stand in for PostgreSQL up to its first question; without a certificate it has no TLS.

    Gives its port, and what clients said once they were connected.
    """
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readexactly(_SSL_REQUEST_BYTES)
            writer.write(b"N" if certificate is None else b"S")
            await writer.drain()
            if certificate is not None:
                context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
                certificate.configure_cert(context)
                await writer.start_tls(context)
                heard.append(await reader.read(1000))
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has gone, which is what is tried
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        yield listening.sockets[0].getsockname()[1], heard


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    """Give an authority whose certificate is in the file `ca.pem`."""
    made = trustme.CA()
    made.cert_pem.write_to_path(tmp_path / "ca.pem")
    return made


@pytest.mark.parametrize(
    ("certificate", "is_right"),
    [
        (lambda ca: ca.issue_cert("127.0.0.1"), True),
        (lambda _: trustme.CA().issue_cert("127.0.0.1"), False),
        (lambda ca: ca.issue_cert("db.example"), False),
        (lambda _: None, False),
    ],
    ids=["right", "unknown authority", "another name", "no TLS"],
)
async def test_nobody_else_is_talked_to(
    authority: trustme.CA,
    tmp_path: Path,
    certificate: Callable[[trustme.CA], trustme.LeafCert | None],
    *,
    is_right: bool,
) -> None:
    """Only the server with a certificate of that authority, for that name, hears who we are."""
    async with server(certificate(authority)) as (port, heard):
        url = (
            f"postgresql://reader:secret@127.0.0.1:{port}/trades"
            f"?sslmode=verify-full&sslrootcert={tmp_path / 'ca.pem'}"
        )
        settings = Settings.from_env({"DATABASE_URL": url})
        assert settings.database_url is not None
        with pytest.raises(TransportError):
            async with open_reader(settings.database_url.get_secret_value()):
                pass
        assert any(b"reader" in said for said in heard) is is_right
