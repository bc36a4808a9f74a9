"""The first bytes of a connection: answered like PostgreSQL 18 answers them, never laxer, in bounded time; cancel requests."""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Iterator

import pytest

from fixtures.door import Door
from kit.postgres import PostgresServer
from kit.tls import Certificates, make_certificates
from kit.wire import PROTOCOL_3_0, PROTOCOL_3_2, WireClient, error_fields, query

SSL = struct.pack("!ii", 8, 80877103)
GSS = struct.pack("!ii", 8, 80877104)
USER = "postgres"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("door-tls"))


@pytest.fixture(scope="module")
def plain(postgres: PostgresServer) -> Iterator[Door]:
    """Without TLS, as the packaged PostgreSQL is built."""
    with Door(port=postgres.port, password=postgres.password, users={USER: "secret"}) as door:
        yield door


@pytest.fixture(scope="module")
def secured(postgres: PostgresServer, certificates: Certificates) -> Iterator[Door]:
    with Door(port=postgres.port, password=postgres.password, users={USER: "secret"}, certificates=certificates) as door:
        yield door


def packet(*pairs: str, version: int = PROTOCOL_3_0, end: bytes = b"\0") -> bytes:
    body = b"".join(text.encode() + b"\0" for text in pairs) + end
    return struct.pack("!ii", len(body) + 8, version & 0xFFFFFFFF if version < 2**31 else version - 2**32) + body


def raw(length: int, rest: bytes = struct.pack("!i", PROTOCOL_3_0) + b"user\0postgres\0\0") -> bytes:
    return struct.pack("!I", length) + rest


PACKETS: dict[str, list[bytes]] = {
    **{f"length {length}": [raw(length)] for length in (0, 1, 4, 5, 7, 8, 9, 10, 10004, 10005, 2**31 - 1, 2**31, 2**32 - 1)},
    **{f"version {v >> 16}.{v & 0xFFFF}": [packet("user", USER, version=v)] for v in
       (0, 1, 65536, 131072, 196608, 196609, 196610, 196611, 196608 + 9999, 262144, 196608 + 65535, 80877105, 2**32 - 1)},
    "longest": [packet("user", USER, "application_name", "x" * (10000 - 4 - 14 - 19))],
    "too long": [packet("user", USER, "application_name", "x" * (10001 - 4 - 14 - 19))],
    "empty": [packet(end=b"")],
    "no user": [packet()],
    "empty user": [packet("user", "", "database", "x")],
    "user twice": [packet("user", "", "user", USER)],
    "user emptied": [packet("user", USER, "user", "")],
    "database empty": [packet("user", USER, "database", "")],
    "no end": [packet("user", USER, end=b"")],
    "two ends": [packet("user", USER, end=b"\0\0")],
    "bytes behind the end": [packet("user", USER, end=b"\0x")],
    "a name without a value": [packet("user", USER, "application_name")],
    "an open value": [packet("user", USER, "application_name", end=b"open")],
    "an empty name": [packet("user", USER, "", "x")],
    "options _pq_": [packet("user", USER, "_pq_.one", "1", "_pq_.two", "2")],
    "options _pq_ twice": [packet("user", USER, "_pq_.one", "1", "_pq_.one", "2")],
    "options _pq_ and 3.2": [packet("_pq_.one", "1", "user", USER, version=PROTOCOL_3_2)],
    "options _pq_ and 3.1": [packet("_pq_.one", "1", "user", USER, version=PROTOCOL_3_0 + 1)],
    "options _pq_ and 3.9": [packet("_pq_.", "", "user", USER, version=PROTOCOL_3_0 + 9)],
    **{f"replication {value!r}": [packet("user", USER, "replication", value)]
       for value in ("", "false", "FALSE", "off", "of", "o", "0", "no", "n", "maybe", "f", "2", "truex")},
    "gss, gss": [GSS, GSS],
    "ssl, ssl": [SSL, SSL],
    "gss, ssl, startup": [GSS, SSL, packet("user", USER)],
    "ssl, gss, startup": [SSL, GSS, packet("user", USER)],
    "ssl with a body": [struct.pack("!ii", 12, 80877103) + b"body"],
    "ssl with bytes behind": [SSL + packet("user", USER)],
    "gss with bytes behind": [GSS + b"\0"],
    **{f"cancel of {size}": [struct.pack("!ii", size, 80877102) + bytes(size - 8)] for size in (8, 11, 12, 13, 16, 44, 268, 269, 10004)},
    "http": [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"],
    "tls without tls": [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600)],
    "half a length": [b"\0\0"],
    "nothing": [],
}  # fmt: skip


def answer(port: int, pieces: list[bytes], *, single: bool = False) -> tuple[object, ...]:
    """What comes back, as far as it tells: single bytes, versions, the kind of request for a proof, SQLSTATEs, the end."""
    seen: list[object] = []
    kept = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream = connection.makefile("rb")
        try:
            for piece in pieces:
                for part in [piece[at : at + 1] for at in range(len(piece))] if single else [piece]:
                    connection.sendall(part)
                if piece in (SSL, GSS) and (reply := stream.read(1)) != b"N":
                    kept = reply
                    break
                if piece in (SSL, GSS):
                    seen.append(reply)
            connection.shutdown(socket.SHUT_WR)
            while head := kept + stream.read(5 - len(kept)):
                kept = b""
                if head[:1] == b"E" and head[1]:
                    # In the form of protocol 2, for a client that speaks it.
                    seen.append(("E", "0A000" if b"unsupported frontend protocol" in head + stream.read(60) else "?"))
                    break
                if head[:1] in b"NS" and len(head) < 5:
                    seen.append(head)
                    break
                if head[:1] == b"N":  # the answer to a request for encryption, with an error behind it
                    seen.append(head[:1])
                    head = head[1:] + stream.read(1)
                body = stream.read(struct.unpack("!i", head[1:])[0] - 4)
                if head[:1] == b"E":
                    seen.append(("E", error_fields(body)["C"]))
                elif head[:1] == b"R":
                    seen.append(("R", body[:4]))
                else:
                    seen.append((head[:1], body))
        except OSError:
            pass
    # Where bytes came too early PostgreSQL says N and then ends it; to end it at once is no laxer.
    return tuple(one for one in seen if one != b"N" or not any(isinstance(other, tuple) and other[0] == "E" for other in seen))


@pytest.mark.parametrize("name", sorted(PACKETS))
def test_answered_as_postgresql_answers(postgres: PostgresServer, plain: Door, name: str) -> None:
    theirs = answer(postgres.port, PACKETS[name])
    began = time.monotonic()
    ours = answer(plain.port, PACKETS[name])
    assert ours == theirs
    assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    "name", ["version 3.0", "options _pq_ and 3.9", "gss, ssl, startup", "no user", "cancel of 44", "length 7", "no end"]
)
def test_one_byte_at_a_time_is_the_same(plain: Door, name: str) -> None:
    assert answer(plain.port, PACKETS[name], single=True) == answer(plain.port, PACKETS[name])


def test_every_split_of_a_login_ends_in_the_same_welcome(plain: Door) -> None:
    data = packet("user", USER, "database", "db", "application_name", "split")
    welcomes = set()
    for cut in range(0, len(data), 3):
        with WireClient("127.0.0.1", plain.port) as client:
            client.send(data[:cut])
            client.send(data[cut:])
            first = client.receive()
            assert first.kind == "R"
            welcomes.add("".join(one.kind for one in client.scram(USER, "secret")))
    assert len(welcomes) == 1 and welcomes.pop().endswith("KZ")


# -- TLS -------------------------------------------------------------------------------------------------------------


def handshake(port: int, *, direct: bool, alpn: list[str], ca: str) -> ssl.SSLSocket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    try:
        if not direct:
            connection.sendall(SSL)
            assert connection.recv(1) == b"S"
        context = ssl.create_default_context(cafile=ca)
        if alpn:
            context.set_alpn_protocols(alpn)
        return context.wrap_socket(connection, server_hostname="localhost")
    except BaseException:
        connection.close()
        raise


@pytest.mark.parametrize("direct", [False, True])
def test_alpn(secured: Door, certificates: Certificates, direct: bool) -> None:
    ca = str(certificates.ca)
    for offered in (["postgresql"], ["h2", "postgresql"]):
        with handshake(secured.port, direct=direct, alpn=offered, ca=ca) as connection:
            assert connection.selected_alpn_protocol() == "postgresql"
            connection.sendall(packet("user", USER))
            assert connection.recv(1) == b"R"
    with (
        pytest.raises((ssl.SSLError, ConnectionError)),
        handshake(secured.port, direct=direct, alpn=["h2", "http/1.1"], ca=ca) as connection,
    ):
        connection.recv(1)
    # Without any ALPN: fine after an SSLRequest, the end of a direct connection.
    with handshake(secured.port, direct=direct, alpn=[], ca=ca) as connection:
        if direct:
            try:
                connection.sendall(packet("user", USER))
                assert connection.recv(1) == b""
            except (ssl.SSLError, ConnectionError):
                pass
        else:
            connection.sendall(packet("user", USER))
            assert connection.recv(1) == b"R"


def test_tls_within_tls_is_not_offered(secured: Door, certificates: Certificates) -> None:
    with handshake(secured.port, direct=True, alpn=["postgresql"], ca=str(certificates.ca)) as connection:
        connection.sendall(SSL)
        assert connection.recv(1) == b"N"
        connection.sendall(packet("user", USER))
        assert connection.recv(1) == b"R"
    with handshake(secured.port, direct=False, alpn=[], ca=str(certificates.ca)) as connection:
        connection.sendall(SSL)
        assert connection.recv(1) == b"E"


def test_bytes_behind_an_ssl_request_are_never_used(secured: Door) -> None:
    with WireClient("127.0.0.1", secured.port) as client:
        client.send(SSL + packet("user", USER))
        assert error_fields(client.receive().body)["C"] == "08P01"
        assert client.socket.recv(10) == b""


# -- cancelling ------------------------------------------------------------------------------------------------------


def client_of(door: Door, version: int) -> WireClient:
    client = WireClient("127.0.0.1", door.port)
    assert client.login(USER, "db", "secret", version)[-1].kind == "Z"
    return client


def cancelled(client: WireClient, **how: object) -> bool:
    client.send(query("SELECT pg_sleep(5)"))
    time.sleep(0.1)
    client.cancel(**how)  # type: ignore[arg-type]
    errors = [one for one in client.until("Z") if one.kind == "E"]
    return bool(errors) and error_fields(errors[0].body)["C"] == "57014"


@pytest.mark.parametrize(("version", "length"), [(PROTOCOL_3_0, 4), (PROTOCOL_3_0 + 1, 4), (PROTOCOL_3_2, 32), (PROTOCOL_3_0 + 99, 32)])
def test_keys_are_as_long_as_the_client_can_have_them(
    plain: Door, secured: Door, certificates: Certificates, postgres: PostgresServer, version: int, length: int
) -> None:
    with WireClient(postgres.host, postgres.port) as direct:
        direct.login(USER, "postgres", postgres.password, version)
        assert len(direct.key) == length
    with client_of(plain, version) as client:
        assert len(client.key) == length
        assert cancelled(client)
        assert cancelled(client, piecewise=True)
    # Each way in finds its own door's session only.
    with client_of(secured, version) as client:
        ca = str(certificates.ca)
        assert cancelled(client, ca_file=ca)
        assert cancelled(client, ca_file=ca, piecewise=True)
        assert cancelled(client, ca_file=ca, direct=True)


@pytest.mark.parametrize("version", [PROTOCOL_3_0, PROTOCOL_3_2])
def test_a_key_that_is_nearly_right_cancels_nothing(plain: Door, version: int) -> None:
    with client_of(plain, version) as client:
        key = client.key
        client.send(query("SELECT pg_sleep(1)"))
        for wrong in (key[:-1], key + b"\0", key[:-1] + bytes([key[-1] ^ 1]), bytes([key[0] ^ 128]) + key[1:], key + bytes(256 - len(key))):
            client.key = wrong
            client.cancel()
        client.key, client.pid = key, client.pid + 1
        client.cancel()
        assert not [one for one in client.until("Z") if one.kind == "E"]


def test_two_thousand_guesses_hit_nothing(plain: Door) -> None:
    with client_of(plain, PROTOCOL_3_0) as client:
        client.send(query("SELECT pg_sleep(4)"))
        start = int.from_bytes(client.key, "big")
        for number in range(1, 2001):
            guess = ((start + number) % 2**32).to_bytes(4, "big")
            with socket.create_connection(("127.0.0.1", plain.port), timeout=10) as connection:
                connection.sendall(struct.pack("!iii", 16, 80877102, client.pid) + guess)
        assert not [one for one in client.until("Z") if one.kind == "E"]


# -- the slow and the silent -----------------------------------------------------------------------------------------


def test_unfinished_logins_end_and_delay_nobody(postgres: PostgresServer) -> None:
    with Door(port=postgres.port, password=postgres.password, users={USER: "secret"}, login_timeout=1.5) as door:
        silent = [socket.create_connection(("127.0.0.1", door.port), timeout=10) for _ in range(60)]
        try:
            for number, connection in enumerate(silent):
                connection.sendall([b"", b"\0", packet("user", USER)[:20], packet("user", USER), SSL, b"\x16\x03\x01"][number % 6])
            began = time.monotonic()
            with client_of(door, PROTOCOL_3_0):
                assert time.monotonic() - began < 1
            for connection in silent:
                connection.settimeout(5)
                try:
                    while connection.recv(1000):
                        pass
                except ConnectionError:
                    pass
            assert 1 < time.monotonic() - began < 4
        finally:
            for connection in silent:
                connection.close()


def test_a_client_that_drips_is_over_in_time_too(postgres: PostgresServer) -> None:
    with Door(port=postgres.port, password=postgres.password, users={USER: "secret"}, login_timeout=1.0) as door:
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", door.port), timeout=5) as connection:
            try:
                for byte in packet("user", USER, "application_name", "x" * 1000):
                    connection.sendall(bytes([byte]))
                    time.sleep(0.02)
            except (ConnectionError, BrokenPipeError):
                pass
        assert time.monotonic() - began < 3
