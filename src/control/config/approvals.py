"""How held statements are told of: notices to the client that waits, webhooks to who may approve.

Never add here: who may approve, or for how long something waits; the policy says that.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from control.config.values import Groups, Name, Secret, Section, Url

__all__ = ["ApprovalSettings", "WebhookSettings"]


class WebhookSettings(Section):
    """Where changes of approvals are posted. ``secret`` signs them; ``states`` and ``databases`` narrow what is told."""

    name: Name
    url: Url
    secret: Secret
    format: Literal["standard", "slack"] = "standard"
    states: tuple[Literal["PENDING", "APPROVED", "DENIED", "EXPIRED", "CANCELLED", "VOIDED"], ...] = ("PENDING",)
    databases: Groups = ()
    timeout: Annotated[float, Field(gt=0, le=60)] = 10.0
    give_up_after: Annotated[float, Field(gt=0, le=7 * 86400)] = 86400.0


class ApprovalSettings(Section):
    """Seconds between notices to a client whose statement is held, and the webhooks."""

    notice_interval: Annotated[float, Field(ge=0.1, le=3600)] = 30.0
    webhooks: tuple[WebhookSettings, ...] = ()
