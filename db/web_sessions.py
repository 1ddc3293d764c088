"""Browsers that are signed in, and sign-ins that failed."""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from db.base import database_now
from db.models import LoginFailure, WebSession, WebUser

FAILURES_KEPT_MINUTES = 15
KEPT = timedelta(minutes=FAILURES_KEPT_MINUTES)


def begin(session: Session, user: WebUser, *, digest: str, hours: float) -> None:
    """A session that ends after `hours`, whatever happens in it; sessions that ended before are forgotten."""
    now = database_now(session)
    session.execute(delete(WebSession).where(WebSession.expires_at <= now))
    ends = now + timedelta(hours=hours)
    session.add(WebSession(token_digest=digest, user_id=user.id, created_at=now, expires_at=ends))


def user_of(session: Session, digest: str) -> WebUser | None:
    """The user who is signed in with this cookie, if the session still runs."""
    signed_in = select(WebUser).join(WebSession, WebSession.user_id == WebUser.id)
    valid = (WebSession.expires_at > database_now(session), WebUser.disabled_at.is_(None))
    return session.scalar(signed_in.where(WebSession.token_digest == digest, *valid))


def end(session: Session, digest: str) -> None:
    """Sign a browser out."""
    session.execute(delete(WebSession).where(WebSession.token_digest == digest))


# ------------------------------------------------------------------------------------------------ sign-ins that failed


@dataclass(frozen=True)
class Failures:
    """Sign-ins that failed in the last minutes: of one name from one address, and from the address with any name."""

    of_both: int
    of_address: int


def failures(session: Session, *, name_digest: str, address_digest: str) -> Failures:
    """How often somebody failed lately."""
    recent = LoginFailure.at > database_now(session) - KEPT
    address = select(func.count()).where(LoginFailure.address_digest == address_digest, recent)
    both = address.where(LoginFailure.name_digest == name_digest)
    return Failures(session.scalar(both) or 0, session.scalar(address) or 0)


def record_failure(session: Session, *, name_digest: str, address_digest: str) -> None:
    """Note a sign-in that failed, and forget those that count no longer."""
    now = database_now(session)
    session.execute(delete(LoginFailure).where(LoginFailure.at <= now - KEPT))
    session.add(LoginFailure(name_digest=name_digest, address_digest=address_digest, at=now))


def forget_failures(session: Session, *, name_digest: str, address_digest: str) -> None:
    """A sign-in that worked clears what failed before it."""
    same = (LoginFailure.name_digest == name_digest, LoginFailure.address_digest == address_digest)
    session.execute(delete(LoginFailure).where(*same))
