"""Startup parameters: what passes, what is refused, and ``options`` read as PostgreSQL reads them, held against PostgreSQL."""

from __future__ import annotations

import psycopg
import pytest

from kit.postgres import PostgresServer
from kit.wire import WireClient, error_fields, row_values
from pgwire.errors import GatewayError
from pgwire.parameters import as_statement, server_parameters, split_options

# Each sets application_name, or is refused.
OPTIONS = [
    "-c application_name=plain",
    "-capplication_name=glued",
    "--application_name=long",
    "--application-name=dashes-in-values-stay",
    "-c application-name=short",
    r"-c application_name=two\ words",
    r"-c application_name=back\\slash",
    "-c application_name='quoted'",
    '-c application_name="double"',
    "-c application_name='two words'",
    "-c application_name=a=b",
    "-c application_name=",
    "-c application_name",
    "--application_name",
    "--application_name long",
    "-c",
    "  -c\tapplication_name=tab\n",
    "-c application_name=first -c application_name=second",
    "-c APPLICATION_NAME=upper",
    "-c application_name =x",
    r"-c application_name=end\ ".rstrip(" "),
    r"-c application_name=\ ",
    "-c -c application_name=x",
    "junk -c application_name=x",
    "-c application_name=x junk",
    "-x application_name=x",
    "",
    "   ",
    "- -c application_name=x",
    "-c =x",
    "-c application_name=#x;y",
    "-c application_name=\N{LATIN SMALL LETTER A WITH DIAERESIS}",
    "-c\vapplication_name=vt",
    "-c application_name=x -c datestyle=German,\\ DMY",
    "-c nosuch=1 -c application_name=x",
    "-c application_name=x -c work_mem=bad",
]


def direct(postgres: PostgresServer, options: str) -> str | None:
    """What PostgreSQL makes of it: the setting, or None when it refuses the connection."""
    with WireClient(postgres.host, postgres.port) as client:
        told = client.login(postgres.superuser, "postgres", postgres.password, options=options)[-1]
        if told.kind == "E":
            return None
        rows = [one for one in client.run("SELECT current_setting('application_name')") if one.kind == "D"]
        value = row_values(rows[0].body)[0]
        assert value is not None
        return value.decode()


@pytest.mark.parametrize("options", OPTIONS)
def test_options_mean_what_they_mean_to_postgresql(postgres: PostgresServer, options: str) -> None:
    theirs = direct(postgres, options)
    try:
        ours = server_parameters(options, ()).get("application_name", "")
    except GatewayError as refused:
        # The allow-list may refuse what PostgreSQL takes; what names only application_name is never refused where it is good.
        assert theirs is None or "nosuch" in options or "work_mem" in options, refused
        return
    if "nosuch" in options or "work_mem" in options:
        return  # they are sent on, and the server refuses what it does not have
    assert theirs is not None, "laxer than PostgreSQL"
    # PostgreSQL shows what is not printable ASCII as escapes (pg_clean_ascii); what is sent on is the text itself.
    assert theirs == "".join(c if c.isascii() else "".join(f"\\x{byte:02x}" for byte in c.encode()) for c in ours)


def test_words_are_split_at_blanks_only() -> None:
    assert split_options(r" a 'b c' d\ e \\ \x f\ ") == ["a", "'b", "c'", "d e", "\\", "x", "f "]
    assert split_options(" " * 10_000) == []
    assert split_options("\\" * 10_001) == ["\\" * 5000]


@pytest.mark.parametrize(
    "name", ["role", "session_authorization", "Session_Replication_Role", "row_security", "standard_conforming_strings", "USER"]
)
def test_what_changes_meaning_is_refused_with_a_hint(name: str) -> None:
    for options, settings in (("", ((name, "x"),)), (f"-c {name}=x", ())):
        with pytest.raises(GatewayError) as caught:
            server_parameters(options, settings)
        assert caught.value.sqlstate == "0A000" and caught.value.hint and name.lower() in caught.value.message.lower()


def test_every_other_setting_is_judged_as_the_set_that_it_is() -> None:
    passed = server_parameters("-c Search_Path=a,b", (("app.name", "it's"), ("TimeZone", "UTC")))
    assert passed == {"client_encoding": "UTF8", "search_path": "a,b", "app.name": "it's", "TimeZone": "UTC"}
    asked = [as_statement(name, value) for name, value in passed.items()]
    assert asked == [None, b"SET \"search_path\" TO 'a,b'", b"SET \"app\".\"name\" TO 'it''s'", None]


@pytest.mark.parametrize("value", ["UTF8", "utf-8", "'utf-8'", "UNICODE", "Utf_8"])
def test_utf8_by_any_name(value: str) -> None:
    assert server_parameters("", (("client_encoding", value),)) == {"client_encoding": "UTF8"}


@pytest.mark.parametrize("value", ["LATIN1", "SQL_ASCII", "", "utf16", "UTF8X"])
def test_another_encoding_is_refused(value: str) -> None:
    for settings in ((("client_encoding", value),), (("client_encoding", value), ("client_encoding", "UTF8"))):
        with pytest.raises(GatewayError) as caught:
            server_parameters("", settings)
        assert caught.value.sqlstate == "0A000" and caught.value.hint == "Use UTF8."


def test_a_setting_given_twice(postgres: PostgresServer) -> None:
    twice = (("application_name", "one"), ("TimeZone", "UTC"), ("timezone", "CET"), ("application_name", "two"))
    assert server_parameters("-c timezone=EST", twice) == {"client_encoding": "UTF8", "application_name": "two", "TimeZone": "CET"}
    with psycopg.connect(postgres.dsn(), options="-c timezone=EST -c timezone=UTC") as connection:
        assert connection.execute("SHOW timezone").fetchone() == ("UTC",)


def test_errors_have_postgresqls_classes(postgres: PostgresServer) -> None:
    for options, state in (("-c x", "42601"), ("junk", "42601"), ("-c =x", "42704")):
        with pytest.raises(GatewayError) as caught:
            server_parameters(options, ())
        assert caught.value.sqlstate == state
        with WireClient(postgres.host, postgres.port) as client:
            told = client.login(postgres.superuser, "postgres", postgres.password, options=options)[-1]
            assert error_fields(told.body)["C"][:2] == state[:2]
