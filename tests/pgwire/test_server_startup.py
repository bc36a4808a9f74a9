"""The login at the server, against servers that are old, odd or hostile; bytes only."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable

import pytest

from pgwire.errors import GatewayError
from pgwire.ports import ScramVerifier
from pgwire.scram import ScramServer, make_verifier, read_verifier
from pgwire.server_startup import Derive, NeedMore, Ready, Send, ServerStartup

VERIFIER = read_verifier("app", make_verifier("secret"))
OK = b"\0\0\0\0"


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def auth(code: int, rest: bytes = b"") -> bytes:
    return message(b"R", struct.pack("!i", code) + rest)


END = message(b"S", b"client_encoding\0UTF8\0") + message(b"K", struct.pack("!i", 77) + b"k" * 32) + message(b"Z", b"I")
SASL = auth(10, b"SCRAM-SHA-256\0\0")


class Server:
    """Feeds a machine: ``tell(bytes)`` and what it does about them."""

    def __init__(self, *, verified: bool = False) -> None:
        self.machine = ServerStartup("app", "secret", "db", {}, verified=verified)
        self.hello = self.machine.start()

    def tell(self, data: bytes) -> object:
        self.machine.receive(data)
        event = self.machine.next_event()
        if isinstance(event, Derive):
            event.work()
            event = self.machine.next_event()
        return event

    def scram(self, verifier: ScramVerifier = VERIFIER, change: Callable[[bytes], bytes] = lambda text: text) -> bytes:
        """An exchange up to the server's last word, which is returned."""
        begun = self.tell(SASL)
        assert isinstance(begun, Send)
        exchange = ScramServer(verifier, None)
        exchange.choose("SCRAM-SHA-256")
        proof = self.tell(auth(11, change(exchange.first(begun.data.split(b"\0", 1)[1].split(b"n,,", 1)[1].join([b"n,,", b""])))))
        assert isinstance(proof, Send)
        return auth(12, exchange.final(proof.data[5:]))


def refused(action: Callable[[], object]) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        action()
    assert caught.value.sqlstate[:2] == "08", caught.value
    return caught.value


def test_scram_and_a_long_key() -> None:
    server = Server()
    assert struct.unpack_from("!i", server.hello, 4) == (196610,)
    ready = server.tell(server.scram() + auth(0) + END + b"rest")
    assert isinstance(ready, Ready)
    assert (ready.pid, ready.key, server.machine.rest) == (77, b"k" * 32, b"rest")


def test_every_split_of_the_servers_answers() -> None:
    data = auth(0) + message(b"N", b"SNOTICE\0\0") + END
    for cut in range(len(data) + 1):
        server = Server()
        first = server.tell(data[:cut])
        assert isinstance(first, Ready) == (cut == len(data))
        assert cut == len(data) or isinstance(server.tell(data[cut:]), Ready)


def test_md5() -> None:
    answer = Server().tell(auth(5, b"salt"))
    inner = hashlib.md5(b"secretapp").hexdigest().encode()
    assert answer == Send(message(b"p", b"md5" + hashlib.md5(inner + b"salt").hexdigest().encode() + b"\0"))


def test_a_cleartext_password_goes_through_verified_tls_only() -> None:
    assert Server(verified=True).tell(auth(3)) == Send(message(b"p", b"secret\0"))
    assert "clear text" in refused(lambda: Server().tell(auth(3))).private


def test_an_older_version_is_taken() -> None:
    server = Server()
    ready = server.tell(
        message(b"v", struct.pack("!ii", 196608, 0)) + auth(0) + END.replace(b"k" * 32, b"kkkk").replace(b"\0\0\0\x28", b"\0\0\0\x0c")
    )
    assert isinstance(ready, Ready) and ready.key == b"kkkk"
    server = Server()
    refused(lambda: server.tell(message(b"v", struct.pack("!ii", 196608, 0)) + auth(0) + END))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        struct.pack("!ii", 196610, 0),
        struct.pack("!ii", 196611, 0),
        struct.pack("!ii", 131072, 0),
        struct.pack("!ii", 196608, 1) + b"_pq_.x\0",
        struct.pack("!ii", 196608, -1),
        struct.pack("!ii", 196608, 2**31 - 1),
        struct.pack("!ii", 196608, 0) + b"x",
    ],
)
def test_versions_that_were_not_asked_for(body: bytes) -> None:
    refused(lambda: Server().tell(message(b"v", body)))


def test_the_server_must_prove_itself_too() -> None:
    server = Server()
    server.tell(SASL)
    assert "before it proved" in refused(lambda: server.tell(auth(0) + END)).private
    server = Server()
    server.scram()
    assert "before it proved" in refused(lambda: server.tell(auth(0) + END)).private
    server = Server()
    last = server.scram(ScramVerifier("app", 4096, VERIFIER.salt, VERIFIER.stored_key, bytes(32)))
    assert "signature" in refused(lambda: server.tell(last + auth(0) + END)).private


def test_methods_do_not_change_midway() -> None:
    for other in (auth(3), auth(5, b"salt"), SASL):
        server = Server(verified=True)
        server.tell(SASL)
        refused(lambda server=server, other=other: server.tell(other))  # type: ignore[misc]
    server = Server(verified=True)
    server.tell(auth(3))
    refused(lambda: server.tell(auth(5, b"salt")))
    server = Server()
    refused(lambda: server.tell(auth(0) + auth(0)))


@pytest.mark.parametrize(("code", "name"), [(2, "Kerberos V5"), (7, "GSSAPI"), (9, "SSPI"), (6, "SCM"), (99, "99"), (11, "11"), (12, "12")])
def test_other_methods_are_named(code: int, name: str) -> None:
    assert name in refused(lambda: Server().tell(auth(code))).private


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(b"i=4096", b"i=0"),
        lambda text: text.replace(b"i=4096", b"i=2147483648"),
        lambda text: text.replace(b",s=", b"x" * 5000 + b",s="),
        lambda text: b"",
        lambda text: text[3:],
    ],
)
def test_odd_challenges(change: Callable[[bytes], bytes]) -> None:
    refused(lambda: Server().scram(change=change))


def test_many_iterations_are_derived_elsewhere() -> None:
    server = Server()
    server.machine.receive(SASL)
    begun = server.machine.next_event()
    assert isinstance(begun, Send)
    nonce = begun.data.rpartition(b"r=")[2]
    server.machine.receive(auth(11, b"r=" + nonce + b"x,s=AAAA,i=100000"))
    event = server.machine.next_event()
    assert isinstance(event, Derive)
    event.work()
    assert isinstance(server.machine.next_event(), Send)
    assert isinstance(server.machine.next_event(), NeedMore)


@pytest.mark.parametrize(
    "data",
    [
        b"R\0\0\0\3",
        b"R\xff\xff\xff\xff",
        b"R\x7f\xff\xff\xff",
        message(b"R", b""),
        message(b"R", b"\0\0"),
        auth(5, b"abc"),
        auth(10, b""),
        auth(10, b"SCRAM-SHA-1\0\0"),
        message(b"Z", b"I"),
        message(b"S", b"a\0b\0"),
        message(b"D", b""),
        auth(0, b"x"),
        auth(0) + message(b"S", b"a\0b"),
        auth(0) + message(b"K", b"\0\0\0\1abc"),
        auth(0) + message(b"K", bytes(261)),
        auth(0) + message(b"K", bytes(8)) + message(b"K", bytes(8)),
        auth(0) + message(b"Z", b"T"),
        auth(0) + message(b"v", struct.pack("!ii", 196608, 0)),
        auth(0) + b"".join(message(b"S", b"p%d\0x\0" % n) for n in range(1001)),
        message(b"E", b""),
        message(b"E", b"\0"),
        message(b"E", b"Mno state\0\0"),
        message(b"E", b"C\xff\xfe\0M\xff\0\0"),
        message(b"E", b'C28P01\0Mpassword authentication failed for user "app"\0\0'),
    ],
)
def test_odd_servers_end_in_class_08(data: bytes) -> None:
    told = refused(lambda: Server().tell(data))
    assert "app" not in told.message


def test_an_unusable_default_is_told() -> None:
    with pytest.raises(GatewayError) as caught:
        Server().tell(auth(0) + END.replace(b"UTF8", b"LATI"))
    assert caught.value.sqlstate == "0A000"
