"""The journal's records by every SHA-256 that it can use, held against an independent reader.

Never add here: crashes and tampering of whole gateways (tests/walks).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgwire.hot import journal

SOURCES = ((True, True), (False, True), (False, False))


@pytest.fixture(params=SOURCES, ids=("processor", "library", "built in"))
def source(request: pytest.FixtureRequest) -> Iterator[str]:
    """What hashes: the best there is with some of them forbidden."""
    hardware, library = request.param
    yield journal._choose_sha(hardware, library)
    journal._choose_sha(True, True)


def test_chain_is_sha256_of_what_lies_before(source: str, tmp_path: Path) -> None:
    """Payloads of every length round SHA-256's blocks, each record's hash made again by hashlib from docs/audit-format.md."""
    with_all = journal.Journal(str(tmp_path), 1 << 20)
    payloads = [bytes([65 + size % 26]) * size for size in (*range(260), 4093, 65536)]
    for payload in payloads:
        with_all.append(1, payload, 7)
    last = with_all.head()[1]
    with_all.close()
    found, link = 0, b""
    data = (tmp_path / "00000001.seg").read_bytes()
    link = hashlib.sha256(b"\x10" + data[:96]).digest()
    at = 96
    while at < len(data):
        length, payload_len = int.from_bytes(data[at : at + 4], "little"), int.from_bytes(data[at + 12 : at + 16], "little")
        record = data[at : at + length]
        assert record[40 : 40 + payload_len] == payloads[found]
        link = hashlib.sha256(b"\x11" + link + record[:-32]).digest()
        assert record[-32:] == link
        found, at = found + 1, at + length
    assert found == len(payloads)
    assert link == last


def test_sources_differ(tmp_path: Path) -> None:
    """Forbidding one really takes another."""
    names = {journal._choose_sha(*each) for each in SOURCES[1:]}
    assert "built in" in names
    assert journal._choose_sha(True, True) == journal.SHA256_SOURCE
