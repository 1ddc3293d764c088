"""The people who may use the web page, and what each may do."""

from collections.abc import Sequence

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from db import audit
from db.base import DocumentedError, database_now
from db.models import ApiToken, Role, WebSession, WebUser
from db.reading import LONGEST_NAME

PROVIDER = "OpenID provider"  # as the audit names it


class NameTaken(DocumentedError, ValueError):
    """There is a user of this name already; choose another."""


class WrongName(ValueError):
    """A name that no user can have; the text says why."""


class UnknownUser(DocumentedError, LookupError):
    """No user has this name; `nightread users list` shows those there are."""


def proper_name(name: str) -> str:
    """The name as it is kept. Raises WrongName."""
    name = " ".join(name.split())
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise WrongName(f"a name has 1 to {LONGEST_NAME} letters, which can be seen")
    return name


def add(
    session: Session,
    *,
    name: str,
    role: Role,
    by: str,
    password_hash: str | None = None,
    oidc_subject: str | None = None,
) -> WebUser:
    """A new user. Raises NameTaken; names differ in more than the case of their letters."""
    if session.scalar(select(WebUser.id).where(func.lower(WebUser.name) == name.lower())) is not None:
        raise NameTaken
    user = WebUser(
        name=name,
        role=role,
        password_hash=password_hash,
        oidc_subject=oidc_subject,
        created_at=database_now(session),
        created_by=by,
    )
    session.add(user)
    audit.record(session, actor=by, action="user added", user=name, role=role)
    session.flush()
    return user


def by_name(session: Session, name: str) -> WebUser:
    """The user with this name. Raises UnknownUser."""
    user = session.scalars(select(WebUser).where(WebUser.name == name)).one_or_none()
    if user is None:
        raise UnknownUser
    return user


def with_password(session: Session, name: str) -> WebUser | None:
    """The user of this name, in any case of its letters, who may sign in with a password."""
    named = (func.lower(WebUser.name) == name.lower(), WebUser.disabled_at.is_(None))
    return session.scalars(select(WebUser).where(*named, WebUser.password_hash.is_not(None))).one_or_none()


def everyone(session: Session) -> Sequence[WebUser]:
    """All users, by name."""
    return session.scalars(select(WebUser).order_by(func.lower(WebUser.name))).all()


def any_there(session: Session) -> bool:
    """Whether there is any user at all."""
    return session.scalar(select(WebUser.id).limit(1)) is not None


def set_password(session: Session, user: WebUser, password_hash: str, *, by: str) -> None:
    """A new password, which ends the user's sessions and lets a disabled user in again."""
    user.password_hash, user.disabled_at = password_hash, None
    session.execute(delete(WebSession).where(WebSession.user_id == user.id))
    audit.record(session, actor=by, action="password set", user=user.name)


def set_role(session: Session, user: WebUser, role: Role, *, by: str) -> None:
    """Another role, for the sessions and tokens of the user that run too."""
    if user.role != role:
        user.role = role
        audit.record(session, actor=by, action="role changed", user=user.name, role=role)


def disable(session: Session, user: WebUser, *, by: str) -> None:
    """Let a user in no more: sessions and tokens end at once, what was read and reviewed stays."""
    user.disabled_at = database_now(session)
    for table in (WebSession, ApiToken):
        session.execute(delete(table).where(table.user_id == user.id))
    audit.record(session, actor=by, action="user disabled", user=user.name)


def of_provider(session: Session, *, subject: str, name: str, role: Role) -> WebUser:
    """The user that an OpenID provider vouches for, made at the first sign-in; the role is today's.

    Raises NameTaken where another user has the name.
    """
    user = session.scalars(select(WebUser).where(WebUser.oidc_subject == subject)).one_or_none()
    if user is None:
        return add(session, name=name, role=role, by=PROVIDER, oidc_subject=subject)
    set_role(session, user, role, by=PROVIDER)
    return user
