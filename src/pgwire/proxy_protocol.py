"""The PROXY protocol, version 2: how a trusted load balancer tells whose connection it passes on.

Source: HAProxy, "The PROXY protocol", section 2.2 (binary header). Sans-IO: the first 16 bytes tell how many follow, so nothing
behind the header is ever read too early. Version 1 (text) is refused: its length is known only by reading on.

Never add here: who is trusted, which is the listener's to know; or the use of a TLV.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from pgwire.errors import ProtocolViolation

__all__ = ["FIRST", "ProxyHeader", "length", "read"]

FIRST = 16  # bytes to read before the length is known
_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_LONGEST = 4096  # bytes behind the first 16: addresses and TLVs
_SIZES = {0x11: 4, 0x21: 16}  # bytes of an address: TCP over IPv4, TCP over IPv6


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """Whose connection it is; ``address`` is empty when the proxy speaks for itself (LOCAL) or does not know (UNSPEC)."""

    address: str
    port: int


def length(first: bytes) -> int:
    """How many bytes follow the first 16. Raises ``ProtocolViolation`` for anything but a header of version 2."""
    if first[:12] != _SIGNATURE or first[12] >> 4 != 2:
        raise ProtocolViolation("expected a PROXY protocol header, version 2")
    if first[12] & 15 > 1:
        raise ProtocolViolation("unknown PROXY command")
    count = int.from_bytes(first[14:16], "big")
    if count > _LONGEST:
        raise ProtocolViolation("the PROXY header is too long")
    return count


def read(first: bytes, rest: bytes) -> ProxyHeader:
    """The header in its two parts. Raises ``ProtocolViolation``."""
    if first[12] & 15 == 0:
        return ProxyHeader("", 0)
    if first[13] == 0:
        return ProxyHeader("", 0)
    size = _SIZES.get(first[13])
    if size is None:
        raise ProtocolViolation("the PROXY header names neither TCP over IPv4 nor over IPv6")
    if len(rest) < 2 * size + 4:
        raise ProtocolViolation("the PROXY header is too short for its addresses")
    _skip_values(rest[2 * size + 4 :])
    return ProxyHeader(str(ipaddress.ip_address(rest[:size])), int.from_bytes(rest[2 * size : 2 * size + 2], "big"))


def _skip_values(rest: bytes) -> None:
    # Type-length-values: none is used, but they must fit.
    at = 0
    while at < len(rest):
        if at + 3 > len(rest):
            raise ProtocolViolation("a value in the PROXY header is cut off")
        at += 3 + int.from_bytes(rest[at + 1 : at + 3], "big")
    if at != len(rest):
        raise ProtocolViolation("a value in the PROXY header is cut off")
