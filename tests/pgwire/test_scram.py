"""SCRAM on both sides: RFC 7677's example, other implementations, every downgrade, and every lie of a server."""

from __future__ import annotations

import base64
import hashlib
import statistics
import time
from typing import Any

import psycopg
import pytest
import scramp

from control.identity.passwords import ScramUser, ScramUsers
from kit.postgres import PostgresServer
from pgwire.ports import Principal
from pgwire.scram import (
    PLAIN,
    PLUS,
    ScramClient,
    ScramError,
    ScramKeys,
    ScramRefused,
    ScramServer,
    make_verifier,
    read_verifier,
)

NONCE = "rOprNGfwEbeRWgbNEkqO"
SERVER_NONCE = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
FIRST = b"r=" + (NONCE + SERVER_NONCE).encode() + b",s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
SALT = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
BINDING = bytes(range(32))


def exchange(client: ScramClient, server: ScramServer) -> None:
    server.choose(client.mechanism)
    client.read(server.first(client.first()))
    client.check(server.final(client.final()))


def test_the_example_of_rfc_7677() -> None:
    client = ScramClient("pencil", nonce=NONCE)
    client.read(FIRST)
    # The RFC's example names the user; PostgreSQL's clients do not, so the proof is made anew with the name in place.
    client._bare = b"n=user,r=" + NONCE.encode()
    assert client.final().endswith(b",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
    client.check(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")
    server = ScramServer(read_verifier("user", make_verifier("pencil", 4096, SALT)), None, nonce=SERVER_NONCE)
    server.choose(PLAIN)
    assert server.first(b"n,,n=user,r=" + NONCE.encode()) == FIRST
    final = b"c=biws,r=" + (NONCE + SERVER_NONCE).encode() + b",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    assert server.final(final) == b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


@pytest.mark.parametrize("binding", [None, BINDING])
@pytest.mark.parametrize("password", ["secret", "pässwörd", "\N{ROMAN NUMERAL NINE}", "a\N{SOFT HYPHEN}b", "x" * 300])
def test_both_sides_agree(password: str, binding: bytes | None) -> None:
    verifier = read_verifier("bob", make_verifier(password))
    exchange(ScramClient(password, binding), ScramServer(verifier, binding))
    with pytest.raises(ScramRefused) as caught:
        exchange(ScramClient(password + "x", binding), ScramServer(verifier, binding))
    assert caught.value.sqlstate == "28P01"


def test_another_implementation_logs_in_and_out() -> None:
    client = scramp.ScramClient([PLUS], "bob", "secret", channel_binding=("tls-server-end-point", BINDING))
    server = ScramServer(read_verifier("bob", make_verifier("secret")), BINDING)
    server.choose(PLUS)
    client.set_server_first(server.first(client.get_client_first().encode()).decode())
    client.set_server_final(server.final(client.get_client_final().encode()).decode())


def test_verifiers_are_postgresqls(postgres: PostgresServer) -> None:
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE scram_made LOGIN PASSWORD '{make_verifier('gemacht')}'")
        psycopg.connect(postgres.dsn(user="scram_made", password="gemacht")).close()
        connection.execute("ALTER ROLE scram_made PASSWORD 'von ihm'")
        row = connection.execute("SELECT rolpassword FROM pg_authid WHERE rolname = 'scram_made'").fetchone()
        connection.execute("DROP ROLE scram_made")
    assert row is not None
    exchange(ScramClient("von ihm"), ScramServer(read_verifier("scram_made", row[0]), None))


GOOD = make_verifier("x")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "md5" + "0" * 32,
        "SCRAM-SHA-256$0:AAAA$AAAA:AAAA",
        GOOD[:-2],
        GOOD.replace("4096", "99999999999"),
        GOOD + "x",
        GOOD.replace("$", "%"),
    ],
)
def test_no_other_verifier_is_read(text: str) -> None:
    with pytest.raises(ValueError):
        read_verifier("bob", text)


def first(flag: bytes, bare: bytes = b"n=,r=abc", mechanism: str = PLAIN, binding: bytes | None = BINDING) -> bytes:
    server = ScramServer(read_verifier("bob", GOOD), binding)
    server.choose(mechanism)
    return server.first(flag + b",," + bare)


def test_downgrades_are_refused() -> None:
    assert first(b"n") and first(b"y", binding=None) and first(b"p=tls-server-end-point", mechanism=PLUS)
    # "I could bind, but you can't": we can, so somebody took the offer away.
    with pytest.raises(ScramRefused) as caught:
        first(b"y")
    assert caught.value.sqlstate == "28000"
    wrong = [(b"n", PLUS), (b"y", PLUS), (b"p=tls-server-end-point", PLAIN), (b"p=tls-unique", PLUS), (b"x", PLAIN), (b"", PLAIN)]
    for flag, mechanism in wrong:
        with pytest.raises(ScramError):
            first(flag, mechanism=mechanism)
    with pytest.raises(ScramError):
        ScramServer(read_verifier("bob", GOOD), None).choose(PLUS)
    with pytest.raises(ScramError):
        ScramServer(read_verifier("bob", GOOD), BINDING).choose("SCRAM-SHA-1")


def test_a_proof_bound_to_another_certificate_is_refused() -> None:
    verifier = read_verifier("bob", make_verifier("secret"))
    with pytest.raises(ScramRefused) as caught:
        exchange(ScramClient("secret", bytes(32)), ScramServer(verifier, BINDING))
    assert caught.value.sqlstate == "28000"
    # Who says "no binding" in its first message can't say otherwise in its last.
    client, server = ScramClient("secret"), ScramServer(verifier, BINDING)
    server.choose(PLAIN)
    client.read(server.first(client.first()))
    with pytest.raises(ScramRefused):
        server.final(client.final().replace(b"c=biws", b"c=eSws"))


@pytest.mark.parametrize(
    "bare", [b"", b"n=", b"n=,r=", b"r=abc", b"m=x,n=,r=abc", b"n=,r=a\x7fb", b"n=,r=a b", b"n=,r=abc,junk", b"n=,r=\xc3\xa4", b"n=,r=a\0"]
)
def test_malformed_beginnings(bare: bytes) -> None:
    with pytest.raises(ScramError):
        first(b"n", bare)


@pytest.mark.parametrize("change", [(b",p=", b",q="), (b",r=", b",r=x"), (b"c=", b"d="), (b",p=", b",p=AA"), (b",p=", b",junk,p=")])
def test_malformed_ends(change: tuple[bytes, bytes]) -> None:
    client, server = ScramClient("x"), ScramServer(read_verifier("bob", GOOD), None)
    server.choose(PLAIN)
    client.read(server.first(client.first()))
    with pytest.raises(ScramError):
        server.final(client.final().replace(*change))


def test_a_name_that_nobody_has_is_challenged_all_the_same() -> None:
    known = ScramUser(read_verifier("bob", GOOD), Principal("bob"))
    users = ScramUsers([known], only=True, secret=b"s" * 32)
    made_up = users.challenge("eve")
    assert made_up is not None and made_up.doomed and made_up == users.challenge("eve") != users.challenge("mallory")
    again = ScramUsers([known], only=True, secret=b"t" * 32).challenge("eve")
    assert again is not None and again.salt != made_up.salt
    assert (len(made_up.salt), made_up.iterations) == (len(known.verifier.salt), known.verifier.iterations)
    assert ScramUsers([known]).challenge("eve") is None
    with pytest.raises(ScramRefused) as caught:
        exchange(ScramClient("x"), ScramServer(made_up, None))
    assert caught.value.sqlstate == "28P01"


def test_who_is_not_there_takes_as_long_to_refuse_as_a_wrong_password() -> None:
    users = ScramUsers([ScramUser(read_verifier("bob", GOOD), Principal("bob"))], only=True)
    keys, took = ScramKeys(), {"bob": [], "eve": []}  # type: ignore[var-annotated]
    for _ in range(200):
        for name, times in took.items():
            began = time.perf_counter()
            verifier = users.challenge(name)
            assert verifier is not None
            server, client = ScramServer(verifier, None), ScramClient("wrong", keys=keys)
            with pytest.raises(ScramRefused):
                exchange(client, server)
            times.append(time.perf_counter() - began)
    known, unknown = (statistics.median(times) for times in took.values())
    assert 0.4 < unknown / known < 2.5


def challenged(**change: Any) -> ScramClient:
    client = ScramClient("pencil", nonce=NONCE)
    fields = {"r": NONCE + "server", "s": "W22ZaJ0SNY7soEsUEjb6gQ==", "i": "4096", **change}
    client.read(",".join(f"{name}={value}" for name, value in fields.items()).encode())
    return client


@pytest.mark.parametrize(
    "change",
    [
        {"r": NONCE}, {"r": "other" + NONCE}, {"r": NONCE + "x" * 2000}, {"r": NONCE + "\x01"}, {"s": ""}, {"s": "***"}, {"i": "0"},
        {"i": "-1"}, {"i": "2147483648"}, {"i": "4_096"}, {"i": " 4096"}, {"i": "9" * 5000}, {"i": ""},
    ],
)  # fmt: skip
def test_a_server_that_challenges_oddly_gets_no_proof(change: dict[str, str]) -> None:
    assert challenged().final()
    with pytest.raises(ScramError):
        challenged(**change)


def test_a_server_must_prove_itself() -> None:
    for lie in (b"", b"e=other-error", b"v=", b"v=AAAA", b"v=" + base64.b64encode(bytes(32)), b"x=1"):
        client = challenged()
        client.final()
        with pytest.raises(ScramError):
            client.check(lie)
    with pytest.raises(ScramError):
        challenged().check(b"v=" + base64.b64encode(bytes(32)))
    client = challenged()
    with pytest.raises(ScramError, match="twice"):
        client.read(FIRST)


def test_a_second_login_derives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = hashlib.pbkdf2_hmac

    def counted(*arguments: Any) -> bytes:
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(hashlib, "pbkdf2_hmac", counted)
    keys, verifier = ScramKeys(3), read_verifier("bob", make_verifier("hunter2"))
    others = [read_verifier("bob", make_verifier("hunter2")) for _ in range(4)]
    calls.clear()
    for _ in range(5):
        exchange(ScramClient("hunter2", keys=keys), ScramServer(verifier, None))
    assert len(calls) == 1
    # Another password, salt or count is another entry; and there are never more than the bound.
    for number, other in enumerate(others):
        exchange(ScramClient("hunter2", keys=keys), ScramServer(other, None))
        assert len(calls) == 2 + number and len(keys) <= 3
    with pytest.raises(ScramRefused):
        exchange(ScramClient("wrong", keys=keys), ScramServer(verifier, None))
    assert "hunter2" not in repr(vars(keys))
