"""Signing in and out: users of this site by password, the first of them by a one-time address."""

import secrets
from ipaddress import ip_address, ip_network

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from db import audit, users, web_sessions
from db.models import WebUser
from db.session import session_scope
from worker.context import actor
from worker.web import passwords
from worker.web.passwords import digest_of, is_password, new_token
from worker.web.requests import SESSION, VISIT, Visit, local_address, see_other, set_cookie

TRIES, TRIES_OF_ADDRESS = 5, 50  # in a quarter of an hour: of one name, and of all names from one address
WRONG = "This name and password do not belong together."
TOO_MANY = f"Too many attempts failed: wait {web_sessions.FAILURES_KEPT_MINUTES} minutes, and try again."


def sign_in(visit: Visit) -> Response:
    """The page that asks for name and password."""
    return _ask(visit, address=local_address(visit.request.query_params.get("next")))


def _ask(visit: Visit, *, address: str, problem: str = "", status: int = 200) -> Response:
    provider = visit.settings.web.oidc_issuer is not None
    return visit.page("sign_in.html.j2", status=status, next=address, problem=problem, provider=provider)


def sign_in_with_password(visit: Visit) -> Response:
    """A name and a password, taken or refused."""
    address = local_address(visit.form.get("next"))
    name, password = visit.form.get("name", "").strip(), visit.form.get("password", "")
    who = {"name_digest": digest_of(name.lower()), "address_digest": digest_of(_address(visit.request))}
    engine = visit.engine
    with session_scope(engine) as session:
        failed = web_sessions.failures(session, **who)
        if failed.of_both >= TRIES or failed.of_address >= TRIES_OF_ADDRESS:
            return _ask(visit, address=address, problem=TOO_MANY, status=429)
        web_sessions.record_failure(session, **who)  # until it turns out to be none: tries side by side count too
        user = users.with_password(session, name)
    if not is_password(password, None if user is None else user.password_hash) or user is None:
        return _ask(visit, address=address, problem=WRONG, status=403)
    with session_scope(engine) as session:
        web_sessions.forget_failures(session, **who)
    return begin_session(visit, user, address=address)


def _address(request: Request) -> str:
    """Where a sign-in comes from. Of IPv6 the network of 64 bits counts: one machine may take any address in it."""
    host = request.client.host if request.client else ""
    try:
        return str(ip_network((host, 64), strict=False)) if ip_address(host).version == 6 else host
    except ValueError:
        return host


def begin_session(visit: Visit, user: WebUser, *, address: str) -> Response:
    """A new session for a user, with a cookie that was never there before."""
    token, response, hours = new_token(), see_other(address), visit.settings.web.session_hours
    with session_scope(visit.engine) as session:
        web_sessions.begin(session, user, digest=digest_of(token), hours=hours)
        audit.record(session, actor=user.name, action="signed in")
    set_cookie(response, visit.request, SESSION, token, hours=hours)
    response.delete_cookie(VISIT)
    return response


def sign_out(visit: Visit) -> Response:
    """The end of this browser's session."""
    with session_scope(visit.engine) as session:
        web_sessions.end(session, digest_of(visit.request.cookies.get(SESSION, "")))
        audit.record(session, actor=visit.me.name, action="signed out")
    response = see_other("/sign-in")
    response.delete_cookie(SESSION)
    return response


# ------------------------------------------------------------------------------------------------------ the first user


def first(visit: Visit) -> Response:
    """The page on which whoever started the service makes the first administrator."""
    _require_first_token(visit)
    return visit.page("first.html.j2", problem="", name=actor(), shortest=passwords.SHORTEST)


def make_first(visit: Visit) -> Response:
    """The first administrator, signed in at once; the address works no more."""
    _require_first_token(visit)
    name = visit.form.get("name", "").strip()
    try:
        name = users.proper_name(name)
        kept = passwords.password_hash(visit.form.get("password", ""))
        with session_scope(visit.engine) as session:
            if users.any_there(session):
                raise HTTPException(404)
            user = users.add(session, name=name, role="administrator", by=name, password_hash=kept)
    except (passwords.WeakPassword, users.WrongName) as error:
        names = {"problem": f"{error}.", "name": name, "shortest": passwords.SHORTEST}
        return visit.page("first.html.j2", status=400, **names)
    visit.site.first_token = None
    return begin_session(visit, user, address="/")


def _require_first_token(visit: Visit) -> None:
    token = visit.request.path_params["token"]
    expected = visit.site.first_token
    if expected is None or not secrets.compare_digest(token.encode(), expected.encode()):
        raise HTTPException(404)
