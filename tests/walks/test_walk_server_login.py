"""The gateway's own login at servers: every method of PostgreSQL 15, Unix sockets, direct TLS, and servers that lie."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from fixtures.door import Door, FakeServer
from kit.postgres import PostgresServer
from kit.tls import Certificates, make_certificates
from kit.wire import PROTOCOL_3_0, PROTOCOL_3_2, WireClient, error_fields, query, row_values
from pgwire.ports import ServerTls

DEBIAN = pytest.mark.skipif(not Path("/usr/lib/postgresql/15/bin/postgres").exists(), reason="Debian's PostgreSQL 15 is not installed")
SSL = struct.pack("!ii", 8, 80877103)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("leg-tls"))


@pytest.fixture(scope="module")
def client_certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("client-tls"), client=True)


@pytest.fixture(scope="module")
def old(certificates: Certificates, client_certificates: Certificates) -> Iterator[PostgresServer]:
    """PostgreSQL 15 with TLS, one role for each method, and the client's certificate wanted for one of them."""
    with PostgresServer(15, certificate=certificates.certificate, key=certificates.key) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("SET password_encryption = 'md5'")
            for name in ("by_md5", "by_password", "by_trust", "localhost", "by_reject"):
                connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'the secret'")
            connection.execute("SET password_encryption = 'scram-sha-256'")
            connection.execute("CREATE ROLE by_scram LOGIN PASSWORD 'the secret'")
            shutil.copy(client_certificates.ca, server.data_directory / "root.crt")
            os.chmod(server.data_directory / "root.crt", 0o644)
            (server.data_directory / "pg_hba.conf").write_text(
                "host all by_md5 127.0.0.1/32 md5\nhost all by_password 127.0.0.1/32 password\nhost all by_trust 127.0.0.1/32 trust\n"
                "host all by_reject 127.0.0.1/32 reject\nhostssl all localhost 127.0.0.1/32 cert\nhost all all 127.0.0.1/32 scram-sha-256\n"
            )
            connection.execute("ALTER SYSTEM SET ssl_ca_file = 'root.crt'")
            connection.execute("SELECT pg_reload_conf()")
        time.sleep(0.3)
        yield server


def door(port: int, user: str = "by_scram", tls: ServerTls | None = None, **more: object) -> Door:
    given = {"password": "the secret", "users": {"bob": "secret"}, **more}
    return Door(port=port, user=user, server_tls=tls, **given)  # type: ignore[arg-type]


def logged_in(made: Door) -> str:
    """Who the server thinks we are."""
    with WireClient("127.0.0.1", made.port) as client:
        told = client.login("bob", "db", "secret")
        assert told[-1].kind == "Z", error_fields(told[-1].body)
        rows = [one for one in client.run("SELECT current_user") if one.kind == "D"]
        value = row_values(rows[0].body)[0]
        assert value is not None
        return value.decode()


def refused(made: Door) -> dict[str, str]:
    with WireClient("127.0.0.1", made.port) as client:
        told = client.login("bob", "db", "secret")
        assert told[-1].kind == "E"
        return error_fields(told[-1].body)


def verified(certificates: Certificates, mode: str = "verify-full", **more: str) -> ServerTls:
    return ServerTls(mode, str(certificates.ca), **more)  # type: ignore[arg-type]


@DEBIAN
@pytest.mark.parametrize("mode", ["disable", "require", "verify-ca", "verify-full"])
@pytest.mark.parametrize("user", ["by_scram", "by_md5", "by_trust"])
def test_methods(old: PostgresServer, certificates: Certificates, user: str, mode: str) -> None:
    with door(old.port, user, verified(certificates, mode) if mode != "disable" else None) as made:
        assert logged_in(made) == user
        assert logged_in(made) == user
        assert len(made.parts.scram_keys) == (1 if user == "by_scram" else 0)


@DEBIAN
@pytest.mark.parametrize(("mode", "good"), [("disable", False), ("require", False), ("verify-ca", True), ("verify-full", True)])
def test_a_cleartext_password(old: PostgresServer, certificates: Certificates, mode: str, good: bool) -> None:
    with door(old.port, "by_password", verified(certificates, mode) if mode != "disable" else None) as made:
        if good:
            assert logged_in(made) == "by_password"
        else:
            assert refused(made)["C"] == "08004"


@DEBIAN
def test_a_client_certificate(old: PostgresServer, certificates: Certificates, client_certificates: Certificates) -> None:
    files = {"certificate_file": str(client_certificates.certificate), "key_file": str(client_certificates.key)}
    with door(old.port, "localhost", verified(certificates, **files)) as made:
        assert logged_in(made) == "localhost"
    with door(old.port, "localhost", verified(certificates)) as made:
        assert refused(made)["C"] == "08004"
    # One that is no client's certificate: the server breaks the connection off, which is told as its doing, not as ours.
    files = {"certificate_file": str(certificates.certificate), "key_file": str(certificates.key)}
    with door(old.port, "localhost", verified(certificates, **files)) as made:
        assert refused(made)["C"] == "08001"


@DEBIAN
def test_a_refusal_says_nothing_of_the_login(old: PostgresServer) -> None:
    for user, password in (("by_reject", "the secret"), ("by_scram", "wrong"), ("by_md5", "wrong"), ("nobody_here", "x")):
        with door(old.port, user, password=password) as made:
            told = refused(made)
            assert told["C"] == "08004" and user not in str(told) and password not in str(told)


def test_a_servers_unix_socket(postgres: PostgresServer) -> None:
    home = Path(tempfile.mkdtemp(prefix="pgleash-unix-"))
    home.chmod(0o777)
    try:
        with PostgresServer(18, settings={"unix_socket_directories": str(home)}) as server:
            with Door(host=str(home), port=server.port, password=server.password, users={"bob": "secret"}) as made:
                assert logged_in(made) == "postgres"
            with Door(host=str(home / "nowhere"), port=server.port, users={"bob": "secret"}) as made:
                assert refused(made)["C"] == "08001"
    finally:
        shutil.rmtree(home)


# -- direct TLS, and servers that lie --------------------------------------------------------------------------------


def pass_both_ways(here: socket.socket, behind: socket.socket) -> None:
    """Bytes of one connection to the other and back, until one ends."""

    def back() -> None:
        with contextlib.suppress(OSError):
            while data := behind.recv(65536):
                here.sendall(data)

    reader = threading.Thread(target=back, daemon=True)
    reader.start()
    with contextlib.suppress(OSError):
        while data := here.recv(65536):
            behind.sendall(data)
    behind.shutdown(socket.SHUT_RDWR)
    reader.join(5)


def passes_on(postgres: PostgresServer, certificates: Certificates, alpn: list[str]) -> Callable[[socket.socket], None]:
    """A server of direct TLS: the handshake at once, and PostgreSQL behind it."""

    def script(connection: socket.socket) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates.certificate, certificates.key)
        if alpn:
            context.set_alpn_protocols(alpn)
        with (
            context.wrap_socket(connection, server_side=True) as secured,
            socket.create_connection((postgres.host, postgres.port)) as behind,
        ):
            pass_both_ways(secured, behind)

    return script


def test_direct_tls_toward_the_server(postgres: PostgresServer, certificates: Certificates) -> None:
    direct = verified(certificates, "verify-ca", negotiation="direct")
    with (
        FakeServer(passes_on(postgres, certificates, ["postgresql"])) as server,
        door(server.port, "postgres", direct, password=postgres.password) as made,
    ):
        assert logged_in(made) == "postgres"
    with FakeServer(passes_on(postgres, certificates, [])) as server, door(server.port, "postgres", direct) as made:
        told = refused(made)
        assert told["C"] == "08001" and "tls.negotiation" in told["H"]


def says(*answers: bytes) -> Callable[[socket.socket], None]:
    def script(connection: socket.socket) -> None:
        for answer in answers:
            connection.recv(65536)
            connection.sendall(answer)
        with contextlib.suppress(OSError):
            while connection.recv(65536):
                pass

    return script


def error(text: bytes) -> bytes:
    body = b"SFATAL\0C28000\0M" + text + b"\0\0"
    return b"E" + struct.pack("!i", len(body) + 4) + body


@pytest.mark.parametrize("answer", [b"S" + error(b"injected"), b"SS", error(b"injected"), b"N", b"G", b"X" * 100, b""])
def test_answers_to_an_ssl_request(certificates: Certificates, answer: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with FakeServer(says(answer) if answer else lambda connection: None) as server, door(server.port, tls=verified(certificates)) as made:
        told = refused(made)
    assert told["C"] == "08001"
    assert "injected" not in str(told) + caplog.text


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


@pytest.mark.parametrize(
    "answers",
    [
        [message(b"R", b"\0\0\0\x0aSCRAM-SHA-256\0\0"), message(b"R", bytes(4)) + message(b"Z", b"I")],
        [message(b"R", b"\0\0\0\7")],
        [message(b"E", b"Mno state\0\0")],
        [b"R\x7f\xff\xff\xff"],
        [b"\0" * 64],
        [message(b"R", bytes(4)) + message(b"S", b"x")],
    ],
)
def test_a_hostile_server_ends_its_own_session_only(postgres: PostgresServer, answers: list[bytes]) -> None:
    with door(postgres.port, "postgres", password=postgres.password) as good, WireClient("127.0.0.1", good.port) as other:
        other.login("bob", "db", "secret")
        with FakeServer(says(*answers)) as server, door(server.port) as made:
            assert refused(made)["C"][:2] == "08"
            assert refused(made)["C"][:2] == "08"
        assert other.run("SELECT 1")[-1].kind == "Z"


def test_a_pooler_that_reads_protocol_3_0_only(postgres: PostgresServer) -> None:
    """PgBouncer before 1.21 refuses a startup message of 3.2; it is asked once, and by 3.0 from then on."""
    versions: list[int] = []

    def script(connection: socket.socket) -> None:
        first = connection.recv(65536)
        versions.append(int.from_bytes(first[4:8], "big"))
        if versions[-1] != PROTOCOL_3_0:
            connection.sendall(message(b"E", b"SFATAL\0C08P01\0Mbad packet header\0\0"))
            return
        with socket.create_connection((postgres.host, postgres.port)) as behind:
            behind.sendall(first)
            pass_both_ways(connection, behind)

    with FakeServer(script) as server, door(server.port, "postgres", password=postgres.password) as made:
        assert logged_in(made) == "postgres"
        assert logged_in(made) == "postgres"
    assert versions == [PROTOCOL_3_2, PROTOCOL_3_0, PROTOCOL_3_0]
    # Who refuses both is told of as it is, and asked anew next time.
    refusal = message(b"E", b"SFATAL\0C0A000\0Mnothing works\0\0")
    with FakeServer(says(refusal)) as server, door(server.port) as made:
        assert refused(made)["C"] == "08001"
        assert not made.parts.old_servers


def test_a_server_that_is_silent_is_given_up(postgres: PostgresServer) -> None:
    with FakeServer(lambda connection: time.sleep(3)) as server, door(server.port, login_timeout=0.7) as made:
        began = time.monotonic()
        assert refused(made)["C"] == "08006"
        assert time.monotonic() - began < 2


def test_a_server_without_a_cancel_key(postgres: PostgresServer) -> None:
    """A session without one works; a cancel request for it does nothing, to nobody."""
    welcome = message(b"R", bytes(4)) + message(b"Z", b"I")
    with FakeServer(says(welcome)) as server, door(server.port) as made, WireClient("127.0.0.1", made.port) as client:
        assert client.login("bob", "db", "secret")[-1].kind == "Z"
        client.send(query("SELECT 1"))
        client.cancel()
