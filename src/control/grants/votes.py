"""Who may decide on an approval, and when enough have. Pure.

Never add here: storage, or what a decision sets going.
"""

from __future__ import annotations

from collections.abc import Sequence

from control.grants.errors import NotAllowed, WrongState
from control.grants.records import ApprovalRecord, Vote
from pgwire.ports import Principal

__all__ = ["approvals_of", "check_may_decide", "check_votes_once", "earlier_vote"]


def check_may_decide(record: ApprovalRecord, by: Principal) -> None:
    """Raises ``NotAllowed``: nobody decides on their own request, by subject or by the human acted for, nor on others' turf."""
    own = {record.subject, record.acts_for} - {None}
    if own & {by.subject, by.acts_for}:
        raise NotAllowed("nobody decides on their own request, nor on that of an agent that acts for them")
    if record.approvers and not (set(record.approvers) & (by.groups | {by.subject})):
        raise NotAllowed(f"{record.name} is for {', '.join(record.approvers)} to decide")


def earlier_vote(record: ApprovalRecord, by: Principal, approve: bool, request_id: str | None) -> Vote | None:
    """The vote that this one repeats. Raises ``WrongState`` when the same request said something else before."""
    for vote in record.votes:
        if request_id and vote.request_id == request_id and vote.subject == by.subject:
            if vote.approve != approve:
                raise WrongState(f"{record.name}: this request_id said {'yes' if vote.approve else 'no'} before")
            return vote
    return None


def check_votes_once(record: ApprovalRecord, by: Principal) -> None:
    """Raises ``WrongState`` when this person has approved already, under any of the names they go by. One person counts once."""
    names = {by.subject, by.acts_for} - {None}
    for vote in record.votes:
        if vote.approve and names & {vote.subject, vote.acts_for}:
            missing = record.needed - len(approvals_of(record.votes))
            raise WrongState(f"{record.name} has this person's approval already; {missing} more must come from others")


def approvals_of(votes: Sequence[Vote]) -> tuple[Vote, ...]:
    """The votes in favour."""
    return tuple(vote for vote in votes if vote.approve)
