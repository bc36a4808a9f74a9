"""What people's and bots' requests about grants, approvals and sessions can fail with.

Never add here: refusals to agents on the wire (those are ``pgwire.ports.Refused``).
"""

from __future__ import annotations

__all__ = ["DryRunRefused", "InvalidArgument", "NotAllowed", "NotFound", "WrongState"]


class NotFound(Exception):
    """There is no such grant, approval or session."""


class WrongState(Exception):
    """It exists, but is past the point where this can be done to it."""


class DryRunRefused(Exception):
    """The held statement is not tried: not all that it may do would end with a rollback; the message says what would not."""


class NotAllowed(Exception):
    """This principal may not do it."""


class InvalidArgument(Exception):
    """The request itself is wrong; the message says what would be right."""
