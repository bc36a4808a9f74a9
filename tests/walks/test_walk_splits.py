"""However the bytes come, in one piece, at every split, one by one, from the client or from the server: the answers are the same."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import psycopg
import pytest

from kit.sessions import CASES
from kit.shredder import Shredder
from kit.twins import CANARIES, LINES, Twins, difference, open_stage
from kit.wire import WireClient
from pgleash.demo.stage import Stage

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
# Those that leave the session usable, so that one login serves many splits.
KEPT = [
    "errors between syncs", "flush without sync", "several statements", "PREPARE and Bind", "Bind and FETCH", "savepoints", "WITH HOLD",
    "copy in a pipeline, bad", "two copies in a text", "copy behind others", "parse fails", "implicit transaction",
]  # fmt: skip


@pytest.fixture(scope="module")
def twins_kept(open_gateway: Stage) -> Iterator[Twins]:
    with Twins(open_gateway, setup=LINES) as made:
        yield made


def segmentations(name: str, every: int) -> Iterator[tuple[int, ...]]:
    """Where the session is cut: nowhere, everywhere, at each ``every``-th single place, at random places."""
    length, rng = len(b"".join(CASES[name])), random.Random(name)
    yield ()
    yield tuple(range(1, length))
    for cut in range(1 + rng.randrange(every), length, every):
        yield (cut,)
    for _ in range(3 * length // every // 4):
        yield tuple(sorted(rng.sample(range(1, length), min(length - 1, rng.randrange(1, 12)))))


@pytest.mark.parametrize("name", KEPT if not LONG else sorted(CASES))
def test_the_clients_bytes_in_any_pieces(twins_kept: Twins, name: str) -> None:
    data, tried = b"".join(CASES[name]), 0
    for cuts in segmentations(name, 1 if LONG else 40):
        assert difference(*twins_kept.both(data, cuts=cuts)) == "", cuts
        if not twins_kept.reset():
            twins_kept.renew()
        tried += 1
    assert tried > len(data) // 40


@pytest.mark.parametrize("size", [1, 2, 3, 7] if LONG else [1])
def test_the_servers_bytes_in_pieces(size: int) -> None:
    with open_stage(relay=lambda host, port: Shredder(host, port, size=size, whole=2000)) as stage, Twins(stage, setup=LINES) as twins:
        for name in sorted(CASES) if LONG else KEPT[::2]:
            assert difference(*twins.both(b"".join(CASES[name]))) == "", name
            if "goodbye" in name or not twins.reset():
                twins.renew()


def test_masked_rows_in_single_bytes(masked_gateway: Stage) -> None:
    """The same rows whether they come whole or byte by byte; none shows what is masked."""
    seen = [masked_rows(masked_gateway)]
    with open_stage(masked=True, relay=lambda host, port: Shredder(host, port, whole=2000)) as stage:
        with psycopg.connect(stage.server.dsn("shop"), autocommit=True) as connection:
            connection.execute(CANARIES)
        seen.append(masked_rows(stage))
    assert seen[0] == seen[1] and len(seen[0]) > 30
    assert not any(b"CANARY" in body for _, body in seen[0])


def masked_rows(stage: Stage) -> list[tuple[str, bytes]]:
    with WireClient("127.0.0.1", stage.port) as client:
        client.login("agent-7", "shop", stage.token())
        got = client.prepared(
            "SELECT id, email, ssn, phone, notes, card FROM customers WHERE id BETWEEN 71 AND 85 ORDER BY id", results=(1,)
        )
        got += client.run("SELECT * FROM customers WHERE id BETWEEN 71 AND 85 ORDER BY id")
    return [(one.kind, one.body) for one in got if one.kind in "DCZ"]
