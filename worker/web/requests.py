"""One request: who asks, may they, and did the form come from one of our own pages.

Handlers are plain functions from a Visit to a Response, run in a thread: the database's driver blocks.
"""

import hashlib
import hmac
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlsplit

import structlog
from anyio import CapacityLimiter, to_thread
from markupsafe import Markup
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from starlette.convertors import IntegerConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from db import web_sessions
from db.models import ROLES, Role
from db.session import is_away, read_scope
from worker.settings import Settings
from worker.web.passwords import digest_of, new_token
from worker.web.site import Site

log = structlog.get_logger()

SESSION, VISIT = "nightread_session", "nightread_visit"  # cookies: signed in, and not (yet)
FIELDS, FIELD_BYTES = 64, 4096  # of a form, at most
AWAY = "The database does not answer."
ID_DIGITS = 18  # of a row id, at most: any more might not fit into 64 bits

Handler = Callable[["Visit"], Response]


@dataclass(frozen=True)
class Person:
    """A user who is signed in."""

    name: str
    role: Role

    def may(self, role: Role) -> bool:
        """Whether this person may what somebody of `role` may."""
        return ROLES.index(self.role) >= ROLES.index(role)


@dataclass(frozen=True)
class Visit:
    """One request with what is known of it; `form` is empty but for POST."""

    request: Request
    site: Site
    person: Person | None = None
    form: Mapping[str, str] = field(default_factory=dict)

    @property
    def me(self) -> Person:
        """The person, on pages that nobody sees without signing in."""
        if self.person is None:
            raise HTTPException(401)
        return self.person

    @property
    def engine(self) -> Engine:
        """The database."""
        return self.site.context.engine

    @property
    def settings(self) -> Settings:
        """The settings of this site."""
        return self.site.context.settings

    def number(self, name: str) -> int:
        """A row id of the address."""
        value: int = self.request.path_params[name]
        return value

    def page(self, template: str, *, status: int = 200, **names: Any) -> Response:
        """A page made of a template; `visit`, `refresh_ms` and a form's hidden `csrf_field` are there in each."""
        cookies = self.request.cookies
        token = cookies.get(SESSION) or cookies.get(VISIT) or new_token()
        csrf_field = Markup('<input type="hidden" name="csrf" value="{}">').format(csrf_of(token))
        refresh_ms = int(1000 * self.settings.web.refresh_seconds)  # htmx takes a point for something else
        names |= {"visit": self, "csrf_field": csrf_field, "refresh_ms": refresh_ms}
        text = self.site.templates.get_template(template).render(names)
        response = HTMLResponse(text, status)
        if token not in (cookies.get(SESSION), cookies.get(VISIT)):
            set_cookie(response, self.request, VISIT, token)
        return response


def set_cookie(response: Response, request: Request, name: str, token: str, *, hours: float | None = None) -> None:
    """A cookie that no script reads; over TLS it never travels in the clear."""
    response.set_cookie(
        name,
        token,
        max_age=None if hours is None else int(hours * 3600),
        httponly=True,
        samesite="lax",  # a RIS may link to a study
        secure=request.url.scheme == "https",
    )


def csrf_of(token: str) -> str:
    """The form's token for a cookie: who cannot read the cookie cannot make it."""
    return hmac.new(token.encode(), b"nightread form", hashlib.sha256).hexdigest()


def see_other(address: str) -> RedirectResponse:
    """To a page after a form was taken: reloading it sends nothing twice."""
    return RedirectResponse(address, 303)


def local_address(address: str | None, otherwise: str = "/") -> str:
    """An address of this site, or `otherwise`: no link may lead a person who signs in to somebody else's page."""
    if address is None or not address.startswith("/") or address.startswith("//"):
        return otherwise
    if any(character in "\\" or ord(character) < 33 for character in address):
        return otherwise
    parts = urlsplit(address)
    return otherwise if parts.scheme or parts.netloc else address


PICTURES_AT_ONCE = 4  # of which one is drawn and the others wait: pages must not wait behind them


def route(path: str, handler: Handler, *, role: Role | None, method: str = "GET", pictures: bool = False) -> Route:
    """A page (GET) or a form's target (POST) that somebody of `role` may use; None: anybody. `pictures`: it may have to
    wait for a film to be decoded."""
    limiter = CapacityLimiter(PICTURES_AT_ONCE) if pictures else None

    async def endpoint(request: Request) -> Response:
        form = await _form_of(request) if method == "POST" else {}
        return await to_thread.run_sync(_answer, handler, role, request, form, limiter=limiter)

    return Route(path, endpoint, methods=[method], name=handler.__name__)


async def _form_of(request: Request) -> Mapping[str, str]:
    """The fields of a form, of the one kind that our pages send."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("", "application/x-www-form-urlencoded"):
        raise HTTPException(415, "Send it as a form (application/x-www-form-urlencoded).")
    parsed = await request.form(max_fields=FIELDS, max_part_size=FIELD_BYTES)
    return {name: value for name, value in parsed.items() if isinstance(value, str)}


def require_text(request: Request, form: Mapping[str, str] | None = None) -> None:
    """Refuse a NUL in an address or a form: PostgreSQL keeps and finds none."""
    given = (*request.path_params.values(), *request.query_params.values(), *(form or {}).values())
    if any("\0" in value for value in given if isinstance(value, str)):
        raise HTTPException(400, "It holds a character (NUL) that no text may hold.")


def whole_number(text: str | None) -> int | None:
    """The number that an address or a form writes in at most 18 digits, as row ids have; None where it does not."""
    return int(text) if text is not None and text.isdecimal() and len(text) <= ID_DIGITS else None


class RowId(IntegerConvertor):
    """A row id in an address. A number that no row can have is no address of ours."""

    regex = f"[0-9]{{1,{ID_DIGITS}}}"


register_url_convertor("row", RowId())


def _answer(handler: Handler, role: Role | None, request: Request, form: Mapping[str, str]) -> Response:
    visit = Visit(request, request.app.state.site, None, form)
    try:
        require_text(request, form)
        visit = Visit(request, visit.site, person_of(request), form)
        if request.method == "POST" and not _is_ours(request, form):
            return refusal(visit, 403, "This form is not, or no longer, valid: load the page again and send it anew.")
        if role is not None and visit.person is None:
            return _to_sign_in(request)
        if role is not None and not visit.me.may(role):
            return refusal(visit, 403, f"This is for the role {role}; yours is {visit.me.role}.")
        return handler(visit)
    except HTTPException as error:
        return refusal(visit, error.status_code, error.detail)
    except Exception as error:  # noqa: BLE001 - a page that fails must say so, and never show why
        return failure(visit, error, keep_form=role is not None and _is_ours(request, form))


def person_of(request: Request) -> Person | None:
    """Who is signed in."""
    token = request.cookies.get(SESSION)
    if not token:
        return None
    with read_scope(request.app.state.site.context.engine) as session:
        user = web_sessions.user_of(session, digest_of(token))
        return None if user is None else Person(user.name, user.role)


def _is_ours(request: Request, form: Mapping[str, str]) -> bool:
    token = request.cookies.get(SESSION) or request.cookies.get(VISIT)
    return bool(token) and hmac.compare_digest(csrf_of(token or "").encode(), form.get("csrf", "").encode())


def is_refresh(request: Request) -> bool:
    """Whether a page that is open asks, and not a person."""
    return request.headers.get("hx-request") == "true"


def _to_sign_in(request: Request) -> Response:
    if is_refresh(request) or request.method == "POST":
        return HTMLResponse("Not saved: you are signed out. Sign in again, and enter it anew.", 401)
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return see_other(f"/sign-in?next={quote(here, safe='')}")


def refusal(visit: Visit, status: int, sentence: str) -> Response:
    """A page that says why not."""
    return _error(visit, status, {404: "There is nothing here."}.get(status, sentence))


def _error(visit: Visit, status: int, sentence: str, *, entered: Mapping[str, str] | None = None) -> Response:
    heading = HTTPStatus(status).phrase.capitalize()
    return visit.page("error.html.j2", status=status, heading=heading, sentence=sentence, entered=entered or {})


def failure(visit: Visit, error: Exception, *, keep_form: bool = False) -> Response:
    """A page for what nobody who looks at it can mend; the log gets the kind of error. `keep_form`: after an outage it
    holds the form again with all that was entered, so that no review is lost."""
    if isinstance(error, DBAPIError) and (is_away(error) or error.connection_invalidated):
        return _outage(visit, {name: value for name, value in visit.form.items() if keep_form and name != "csrf"})
    log.error("page_failed", error=type(error).__name__, places=places_of(error))
    return _error(visit, 500, "Something went wrong here; the service's log says what.")


def _outage(visit: Visit, entered: Mapping[str, str]) -> Response:
    if visit.request.method == "POST":
        sentence = "Not saved: the database does not answer. What you entered stays on this page: try again."
        return _error(visit, 503, sentence if entered else AWAY, entered=entered)
    response = _error(visit, 503, f"{AWAY} This page tries again by itself.")
    response.headers["Refresh"] = "10"
    return response


def places_of(error: BaseException) -> list[str]:
    """Where an error was raised, the innermost place last: file and line, without a value of anybody's."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    return [f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in frames]
