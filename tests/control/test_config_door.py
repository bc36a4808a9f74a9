"""The settings of listen, server and identity that belong to the door: what is taken, and what each mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from control.config import ConfigurationError, Settings, load
from pgwire.scram import make_verifier

BASE = {
    "listen": {"tls": {"certificate": "c", "key": "k"}},
    "api": {"tls": {"certificate": "c", "key": "k"}},
    "identity": {"issuers": [{"issuer": "https://idp.example.com", "audience": "x"}]},
    "databases": {"shop": {"server": {"host": "db"}, "credentials": {"kind": "static", "user": "u", "password": "env:P"}}},
}


def settings(tmp_path: Path, section: str, **more: object) -> Settings:
    document = {**BASE, section: {**BASE[section], **more}}
    if section == "databases":
        document["databases"] = {"shop": {**BASE["databases"]["shop"], "server": more}}  # type: ignore[dict-item]
    with (tmp_path / "pgleash.yaml").open("w") as file:
        YAML().dump(document, file)
    return load(tmp_path / "pgleash.yaml")


def problem(tmp_path: Path, section: str, **more: object) -> str:
    with pytest.raises(ConfigurationError) as caught:
        settings(tmp_path, section, **more)
    return str(caught.value)


def test_hosts(tmp_path: Path) -> None:
    assert settings(tmp_path, "listen").listen.host == ("127.0.0.1",)
    assert settings(tmp_path, "listen", host="0.0.0.0").listen.host == ("0.0.0.0",)
    assert settings(tmp_path, "listen", host=["127.0.0.1", "::1"]).listen.host == ("127.0.0.1", "::1")
    assert "listen.host" in problem(tmp_path, "listen", host=[])
    assert "loopback" in problem(tmp_path, "listen", host=["127.0.0.1", "10.0.0.1"], plaintext_on_loopback=True)


def test_unix_sockets(tmp_path: Path) -> None:
    listen = settings(tmp_path, "listen", unix_socket="run").listen
    assert listen.unix_socket is not None
    assert (listen.unix_socket.directory, listen.unix_socket.mode) == (tmp_path.resolve() / "run", 0o777)
    listen = settings(tmp_path, "listen", unix_socket={"directory": "run", "mode": "0770"}).listen
    assert listen.unix_socket is not None and listen.unix_socket.mode == 0o770
    for mode in (770, "8", "rwx", "1777", "-77"):
        assert "in quotes" in problem(tmp_path, "listen", unix_socket={"directory": "run", "mode": mode})
    assert "at most 80 bytes" in problem(tmp_path, "listen", unix_socket="/" + "x" * 80)


def test_proxies(tmp_path: Path) -> None:
    listen = settings(tmp_path, "listen", proxy_protocol={"trusted": ["10.0.0.0/8", "fd00::1"]}).listen
    assert listen.proxy_protocol is not None
    assert [str(network) for network in listen.proxy_protocol.trusted] == ["10.0.0.0/8", "fd00::1/128"]
    assert "proxy_protocol.trusted" in problem(tmp_path, "listen", proxy_protocol={"trusted": []})
    for wrong in ("10.0.0.1/8", "lb.example.com", 7):
        assert "write an address or a network" in problem(tmp_path, "listen", proxy_protocol={"trusted": [wrong]})


def test_scram_users(tmp_path: Path) -> None:
    user = {"user": "bob", "verifier": "env:V", "groups": ["agents"]}
    identity = settings(tmp_path, "identity", issuers=[], scram_users=[user]).identity
    assert identity.scram_users[0].databases is None and identity.scram_users[0].groups == ("agents",)
    assert "issuers, scram_users or both" in problem(tmp_path, "identity", issuers=[])
    assert "bob stands here twice" in problem(tmp_path, "identity", scram_users=[user, user])
    assert "user name token" in problem(tmp_path, "identity", scram_users=[{**user, "user": "token"}])
    secret = make_verifier("x")
    told = problem(tmp_path, "identity", scram_users=[{**user, "verifier": secret}])
    assert "scram_users[0].verifier" in told and secret not in told


def test_servers(tmp_path: Path) -> None:
    server = (
        settings(tmp_path, "databases", host="db", tls={"negotiation": "direct", "certificate": "c", "key": "k"}).databases["shop"].server
    )
    assert (server.tls.negotiation, server.tls.certificate) == ("direct", tmp_path.resolve() / "c")
    assert (
        settings(tmp_path, "databases", host="/run/postgresql", tls={"mode": "disable"}).databases["shop"].server.host == "/run/postgresql"
    )
    assert "no TLS on a Unix socket" in problem(tmp_path, "databases", host="/run/postgresql")
    assert "certificate and key together" in problem(tmp_path, "databases", host="db", tls={"certificate": "c"})
    assert "not disable" in problem(tmp_path, "databases", host="db", tls={"mode": "disable", "negotiation": "direct"})
