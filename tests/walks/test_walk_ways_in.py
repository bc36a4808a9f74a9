"""Ways in: several addresses, IPv6, Unix sockets, the PROXY protocol, SCRAM users with real drivers."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import shutil
import socket
import ssl
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import asyncpg
import pg8000.dbapi
import psycopg
import pytest

from fixtures.door import Door
from kit.postgres import PostgresServer
from kit.tls import Certificates, make_certificates
from kit.wire import WireClient, error_fields, message
from pgleash.demo.stage import Stage
from pgwire.listener import UnixPlace
from pgwire.ports import Peer

LOOPBACK = [ipaddress.ip_network("127.0.0.1")]
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
IPV6 = Path("/proc/net/if_inet6").exists() and "00000000000000000000000000000001" in Path("/proc/net/if_inet6").read_text()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("ways-tls"), ["localhost", "127.0.0.1", "::1"])


def door(postgres: PostgresServer, **more: object) -> Door:
    return Door(port=postgres.port, password=postgres.password, **{"users": {"bob": "secret"}, **more})  # type: ignore[arg-type]


def one(dsn: str) -> object:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute("SELECT 1").fetchone()
        assert row is not None
        return row[0]


def told(raw: socket.socket) -> bytes:
    """The first byte, or none when the other side hangs up, in whatever way."""
    try:
        return raw.recv(1)
    except ConnectionError:
        return b""


# -- addresses -------------------------------------------------------------------------------------------------------


def test_several_addresses_share_one_port(postgres: PostgresServer) -> None:
    with door(postgres, hosts=("127.0.0.1", "127.0.0.2")) as both:
        for host in ("127.0.0.1", "127.0.0.2"):
            if host == "127.0.0.1":
                assert one(f"host={host} port={both.port} user=bob password=secret dbname=db") == 1
            with socket.create_connection((host, both.port), timeout=5):
                pass


@pytest.mark.skipif(not IPV6, reason="this machine has no IPv6 loopback")
def test_ipv6(postgres: PostgresServer, certificates: Certificates) -> None:
    with door(postgres, hosts=("127.0.0.1", "::1"), certificates=certificates) as both:
        for host in ("127.0.0.1", "::1"):
            dsn = f"host={host} port={both.port} user=bob password=secret dbname=db sslmode=verify-full sslrootcert={certificates.ca}"
            assert one(dsn) == 1
        assert {str(fields["peer"]).rpartition(":")[0] for fields in both.kinds("session.opened")} == {"127.0.0.1", "[::1]"}


def test_an_address_that_is_not_ours_is_told(postgres: PostgresServer) -> None:
    with pytest.raises(OSError), door(postgres, hosts=("127.0.0.1", "192.0.2.1")):
        pass


# -- Unix sockets ----------------------------------------------------------------------------------------------------


def test_a_unix_socket(postgres: PostgresServer, certificates: Certificates) -> None:
    with door(postgres, unix_mode=0o700, certificates=certificates, plaintext=False) as local:
        status = local.unix_socket.lstat()
        assert stat.S_ISSOCK(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o700
        assert one(f"host={local.home} port={local.port} user=bob password=secret dbname=db sslmode=prefer") == 1
        opened = local.kinds("session.opened")[0]
        assert opened["peer"] == "local" and opened["tls"] is False
        assert opened["account"] == f"uid={os.getuid()} gid={os.getgid()} pid={os.getpid()}"
        # As with PostgreSQL there is no TLS here, neither asked for nor direct.
        for first, answer in ((struct.pack("!ii", 8, 80877103), b"N"), (b"\x16\x03\x01\x00\x05", b"")):
            with socket.socket(socket.AF_UNIX) as raw:
                raw.settimeout(5)
                raw.connect(str(local.unix_socket))
                raw.sendall(first)
                assert told(raw) == answer
    assert not local.unix_socket.exists()


@pytest.mark.parametrize("plaintext", [False, True])
def test_a_token_crosses_a_unix_socket_only_where_it_may_cross_loopback(postgres: PostgresServer, plaintext: bool) -> None:
    certificates = make_certificates(Path(os.path.realpath("/tmp")) / f"pgleash-ways-{os.getpid()}")
    try:
        with door(postgres, users=None, unix_mode=0o777, plaintext=plaintext, certificates=certificates) as local:
            with pytest.raises(psycopg.OperationalError) as caught:
                psycopg.connect(f"host={local.home} port={local.port} user=x password=y dbname=db")
            expected = "not a token that the gateway understands" if plaintext else "a token is taken by TLS only"
            assert expected in str(caught.value)
    finally:
        shutil.rmtree(certificates.ca.parent)


def test_a_socket_left_behind_is_replaced_and_a_live_one_never(tmp_path: Path) -> None:
    directory = tmp_path.resolve()
    if len(str(directory)) > 70:
        pytest.skip("the temporary directory's path is too long for a socket")
    path = directory / ".s.PGSQL.5"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    first = UnixPlace(directory, 5)
    listening = first.open(0o600)
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(path))
        with pytest.raises(OSError, match="another gateway"):
            UnixPlace(directory, 5).open(0o600)
    finally:
        listening.close()
        first.close()
    assert list(directory.iterdir()) == []
    # Not ours, but alive: PostgreSQL itself, for example.
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(OSError, match="another server"):
            UnixPlace(directory, 5).open(0o600)
        assert path.exists()
    path.unlink()
    path.write_text("precious")
    with pytest.raises(OSError, match="no socket"):
        UnixPlace(directory, 5).open(0o600)
    assert path.read_text() == "precious" and list(directory.iterdir()) == [path]


# -- the PROXY protocol ----------------------------------------------------------------------------------------------


def header(address: str = "203.0.113.9", port: int = 4711, command: int = 1, values: bytes = b"\xe0\0\2ab") -> bytes:
    there = ipaddress.ip_address(address)
    family = 0x11 if there.version == 4 else 0x21
    rest = (
        there.packed + ipaddress.ip_address("127.0.0.1" if there.version == 4 else "::1").packed + struct.pack("!HH", port, 6432) + values
    )
    return SIGNATURE + bytes([0x20 | command, family]) + struct.pack("!H", len(rest)) + rest


@pytest.fixture(scope="module")
def proxied(postgres: PostgresServer, certificates: Certificates) -> Iterator[Door]:
    with door(postgres, trusted=LOOPBACK, certificates=certificates) as made:
        yield made


@pytest.mark.parametrize(("address", "shown"), [("203.0.113.9", "203.0.113.9:4711"), ("2001:db8::7", "[2001:db8::7]:4711")])
@pytest.mark.parametrize("direct", [False, True])
def test_the_clients_own_address_is_audited(proxied: Door, certificates: Certificates, address: str, shown: str, direct: bool) -> None:
    with WireClient("127.0.0.1", proxied.port) as client:
        for byte in header(address):
            client.send(bytes([byte]))
        client.secure(str(certificates.ca), direct=direct)
        assert client.login("bob", "db", "secret")[-1].kind == "Z"
    opened = proxied.kinds("session.opened")[-1]
    assert (opened["peer"], opened["proxy"]) == (shown, "127.0.0.1")


def test_in_one_piece_with_what_follows(proxied: Door, certificates: Certificates) -> None:
    with WireClient("127.0.0.1", proxied.port) as client:
        client.send(header(command=0) + struct.pack("!ii", 8, 80877103))
        assert client.exactly(1) == b"S"


def test_without_a_header_nobody_comes_through_the_proxy(proxied: Door) -> None:
    for data in (
        struct.pack("!ii", 8, 80877103) + bytes(8),
        b"PROXY TCP4 203.0.113.9 127.0.0.1 4711 6432\r\n",
        header(command=2),
        header()[:20],
    ):
        with socket.create_connection(("127.0.0.1", proxied.port), timeout=5) as raw:
            raw.sendall(data)
            try:
                raw.shutdown(socket.SHUT_WR)
            except OSError:
                continue  # it has hung up already
            assert told(raw) == b""


@pytest.mark.parametrize("command", [0, 1])
def test_who_comes_through_a_proxy_is_never_local(proxied: Door, command: int) -> None:
    """The door takes plaintext from loopback, and the header says loopback: it is a stranger's word all the same."""
    with WireClient("127.0.0.1", proxied.port) as client:
        client.send(header("127.0.0.1", command=command))
        client.startup("bob", "db")
        told = error_fields(client.receive().body)
        assert told["C"] == "28000" and "TLS only" in told["M"]


def test_a_header_from_others_is_no_header(postgres: PostgresServer) -> None:
    with door(postgres, trusted=[ipaddress.ip_network("10.0.0.0/8")]) as made, WireClient("127.0.0.1", made.port) as client:
        client.send(header())
        assert told(client.socket) == b""
    assert not made.audit.records


# -- SCRAM toward the client -----------------------------------------------------------------------------------------


def test_one_text_for_every_wrong_password(postgres: PostgresServer, certificates: Certificates) -> None:
    with door(postgres, certificates=certificates) as made:
        told = []
        for user, password in (("bob", "wrong"), ("bob", ""), ("nobody", "secret"), ("eve", "wrong")):
            with pytest.raises(psycopg.OperationalError) as caught:
                psycopg.connect(
                    f"host=127.0.0.1 port={made.port} user={user} password='{password or ' '}' dbname=db sslmode=require",
                )
            told.append(str(caught.value).rpartition("FATAL:")[2].replace(user, "USER").strip())
        assert set(told) == {'pgleash: password authentication failed for user "USER"'}
        assert {fields["sqlstate"] for fields in made.kinds("session.refused")} == {"28P01"}


def test_a_client_that_says_something_else_instead_of_a_proof(postgres: PostgresServer) -> None:
    begun = message(b"p", b"SCRAM-SHA-256\0" + struct.pack("!i", 8) + b"n,,n=,r=")
    for data, state in (
        (message(b"Q", b"SELECT 1\0"), "08P01"),
        (message(b"p", b"PLAIN\0" + struct.pack("!i", 0)), "08P01"),
        (begun, "08P01"),
        (message(b"p", b"secret\0"), "08P01"),
    ):
        with door(postgres) as made, WireClient("127.0.0.1", made.port) as client:
            client.startup("bob", "db")
            client.receive()
            client.send(data)
            assert error_fields(client.receive().body)["C"] == state
            assert client.socket.recv(10) == b""


@pytest.fixture(scope="module")
def scram_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A whole gateway whose configuration has a SCRAM user, with the verifier that the command line makes."""
    done = subprocess.run(
        [sys.executable, "-m", "pgleash.cli", "token", "scram"], input="pässwörd\n", capture_output=True, text=True, check=True
    )
    path = tmp_path_factory.mktemp("scram") / "bob.verifier"
    path.write_text(done.stdout)
    users = [
        {"user": "bob", "verifier": f"file:{path}", "subject": "agent-bob", "groups": ["agents"], "acts_for": "ada@example.com"},
        {"user": "elsewhere", "verifier": f"file:{path}", "databases": ["other"]},
    ]
    with Stage(customers=1000, settings={"identity": {"scram_users": users}}) as stage:
        yield stage


QUERY = "SELECT email FROM customers WHERE id = 7"


def test_psycopg_with_channel_binding(scram_stage: Stage) -> None:
    with psycopg.connect(scram_stage.dsn("bob", "pässwörd", channel_binding="require"), autocommit=True) as connection:
        row = connection.execute(QUERY).fetchone()  # type: ignore[arg-type]
        assert row is not None and "***" in row[0]
    for more in ({"channel_binding": "disable"}, {"sslnegotiation": "direct", "channel_binding": "require"}):
        psycopg.connect(scram_stage.dsn("bob", "pässwörd", require_auth="scram-sha-256", **more)).close()


def test_asyncpg_and_pg8000(scram_stage: Stage) -> None:
    context = ssl.create_default_context(cafile=str(scram_stage.certificates.ca))

    async def walk() -> str:
        connection = await asyncpg.connect(
            host="localhost", port=scram_stage.port, user="bob", password="pässwörd", database="shop", ssl=context
        )
        try:
            return str(await connection.fetchval(QUERY))
        finally:
            await connection.close()

    assert "***" in asyncio.run(walk())
    connection = pg8000.dbapi.connect(
        user="bob", password="pässwörd", host="localhost", port=scram_stage.port, database="shop", ssl_context=context
    )
    try:
        cursor = connection.cursor()
        cursor.execute(QUERY)
        rows: Sequence[Sequence[str]] = cursor.fetchall()
        assert "***" in rows[0][0]
    finally:
        connection.close()


@pytest.mark.skipif(not Path("/usr/lib/postgresql/15/bin/psql").exists(), reason="Debian's PostgreSQL 15 is not installed")
def test_psql_15(scram_stage: Stage) -> None:
    done = subprocess.run(
        ["/usr/lib/postgresql/15/bin/psql", "-X", "-At", "-c", QUERY, scram_stage.dsn("bob", "pässwörd", channel_binding="require")],
        capture_output=True, text=True, env={**os.environ, "LC_ALL": "C.UTF-8"}, timeout=30, check=False,
    )  # fmt: skip
    assert "***" in done.stdout, done.stderr


def test_users_with_a_verifier_have_no_use_for_tokens_and_others_no_use_for_passwords(scram_stage: Stage) -> None:
    with pytest.raises(psycopg.OperationalError, match='password authentication failed for user "bob"'):
        psycopg.connect(scram_stage.dsn("bob", scram_stage.token(subject="bob")))
    with pytest.raises(psycopg.OperationalError, match="not a token"):
        psycopg.connect(scram_stage.dsn("agent-7", "pässwörd"))
    psycopg.connect(scram_stage.dsn("agent-7", scram_stage.token())).close()
    with pytest.raises(psycopg.OperationalError, match="may not connect to database"):
        psycopg.connect(scram_stage.dsn("elsewhere", "pässwörd"))
    assert "there is no such user" not in scram_stage.log.read_text()
    assert "the proof is wrong" in scram_stage.log.read_text()


def test_a_renewed_certificate_is_shown_without_a_restart(scram_stage: Stage, tmp_path: Path) -> None:
    """Noticed by itself; who is connected stays; a key that does not belong to it changes nothing, and neither does rubbish."""
    before = shown(scram_stage)
    with psycopg.connect(scram_stage.dsn("bob", "pässwörd"), autocommit=True) as connection:
        made = make_certificates(scram_stage.home / "tls")
        eventually(lambda: shown(scram_stage) != before)
        assert connection.execute("SELECT 1").fetchone() == (1,)
        psycopg.connect(scram_stage.dsn("bob", "pässwörd", channel_binding="require")).close()
    now, key = shown(scram_stage), made.key.read_bytes()
    for count, wrong in enumerate((b"rubbish", make_certificates(tmp_path).key.read_bytes()), 1):
        made.key.write_bytes(wrong)
        eventually(lambda count=count: scram_stage.log.read_text().count("the certificate is not changed") >= count)  # type: ignore[misc]
        assert shown(scram_stage) == now
    made.key.write_bytes(key)
    assert "is shown from now on" in scram_stage.log.read_text()


def shown(stage: Stage) -> bytes:
    """The certificate that the gateway shows now, in DER."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["postgresql"])
    with socket.create_connection(("127.0.0.1", stage.port)) as raw, context.wrap_socket(raw) as secured:
        return secured.getpeercert(True) or b""


def eventually(happens: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until it does."""
    until = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_peer_is_what_it_was() -> None:
    # Fields were added behind the old ones: who makes a Peer by position goes on to make the same.
    assert Peer("10.0.0.1", 5, True) == Peer(address="10.0.0.1", port=5, tls=True, via="", account="")
