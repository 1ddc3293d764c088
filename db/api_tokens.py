"""Tokens with which programs read the list; the database holds their digests."""

from datetime import timedelta

from sqlalchemy import delete, or_, select
from sqlalchemy.orm import Session

from db import audit
from db.base import DocumentedError, database_now
from db.models import ApiToken, WebUser


class TokenNameTaken(DocumentedError, ValueError):
    """This user has a token of that name; name the new one otherwise, or revoke the old one first."""


class UnknownToken(DocumentedError, LookupError):
    """This user has no token of that name."""


def issue(session: Session, user: WebUser, *, name: str, digest: str, days: int | None, by: str) -> None:
    """Keep a token's digest; without `days` the token has no end. Raises TokenNameTaken."""
    named = select(ApiToken.id).where(ApiToken.user_id == user.id, ApiToken.name == name)
    if session.scalar(named) is not None:
        raise TokenNameTaken
    now = database_now(session)
    ends = None if days is None else now + timedelta(days=days)
    token = ApiToken(user_id=user.id, name=name, token_digest=digest, created_at=now, created_by=by, expires_at=ends)
    session.add(token)
    audit.record(session, actor=by, action="token issued", user=user.name, token=name)


def revoke(session: Session, user: WebUser, *, name: str, by: str) -> None:
    """End a token. Raises UnknownToken."""
    gone = delete(ApiToken).where(ApiToken.user_id == user.id, ApiToken.name == name).returning(ApiToken.id)
    if session.scalar(gone) is None:
        raise UnknownToken
    audit.record(session, actor=by, action="token revoked", user=user.name, token=name)


def user_of(session: Session, digest: str) -> WebUser | None:
    """The user whose token this is, if both are valid now."""
    open_ended = or_(ApiToken.expires_at.is_(None), ApiToken.expires_at > database_now(session))
    holder = select(WebUser).join(ApiToken, ApiToken.user_id == WebUser.id)
    return session.scalar(holder.where(ApiToken.token_digest == digest, open_ended, WebUser.disabled_at.is_(None)))
