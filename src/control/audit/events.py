"""The audit port: control-plane events become records of the journal.

Never add here: what events there are, or reading.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any, Protocol

from control.audit.format import EVENT
from pgwire.ports import Refused

__all__ = ["Appends", "AuditLog"]

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str)
_log = logging.getLogger(__name__)


class Appends(Protocol):
    """The part of a journal that is needed here."""

    def append(self, type: int, payload: bytes, session: int = 0, flags: int = 0) -> int:
        """Keep one record; its sequence number. Raises ``OSError``."""
        ...


class AuditLog:
    """Implements ``pgwire.ports.Audit``."""

    def __init__(self, journal: Appends) -> None:
        self._journal = journal

    def record(self, kind: str, fields: Mapping[str, Any], session: int = 0) -> int:
        """Append one event and return its sequence number. Raises ``Refused`` 58030: then nothing may happen."""
        try:
            payload = _ENCODER.encode({"kind": kind, **fields})
            return self._journal.append(EVENT, payload.encode("utf-8", "backslashreplace"), session)
        except (OSError, ValueError, TypeError, RecursionError) as error:
            _log.error("the audit log did not keep %s: %s", kind, error)
            raise Refused("58030", "the audit log can't be written", hint="Tell the gateway's operator.", private=str(error)) from error
