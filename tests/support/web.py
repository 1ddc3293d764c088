"""People at the web page, without a browser: each with a session of their own, forms sent as a browser sends them."""

import re
from typing import Any

from httpx import Response
from starlette.applications import Starlette
from starlette.testclient import TestClient

from db import api_tokens, users, web_sessions
from db.models import Role
from db.session import session_scope
from tests.support.night_rows import add_champion, add_studies, open_run
from worker.context import Context
from worker.web.passwords import digest_of
from worker.web.requests import SESSION, csrf_of

ADDRESS = "http://localhost"
PASSWORD = "a horse reads films"


class Visitor:
    """Somebody's browser. Redirects are not followed: a test says what it expects of each answer."""

    def __init__(self, app: Starlette, *, token: str | None = None) -> None:
        self.client = TestClient(app, base_url=ADDRESS, follow_redirects=False)
        self.token = token
        if token is not None:
            self.client.cookies.set(SESSION, token)

    def get(self, path: str, **headers: str) -> Response:
        return self.client.get(path, headers={name.replace("_", "-"): value for name, value in headers.items()})

    def post(self, path: str, **form: Any) -> Response:
        """A form with the token that the page would have held."""
        return self.client.post(path, data={"csrf": csrf_of(self.token or ""), **form})


def add_user(context: Context, name: str, role: Role, **more: Any) -> None:
    with session_scope(context.engine) as session:
        users.add(session, name=name, role=role, by="test", **more)


def add_token(context: Context, name: str, *, text: str = "t") -> None:
    """A token of this user's for programs."""
    with session_scope(context.engine) as session:
        user = users.by_name(session, name)
        api_tokens.issue(session, user, name="t", digest=digest_of(text), days=None, by="test")


def signed_in(app: Starlette, name: str, role: Role) -> Visitor:
    """A new user of this role, signed in already."""
    context, token = app.state.site.context, f"token of {name}".replace(" ", "-").encode("ascii", "replace").hex()
    with session_scope(context.engine) as session:
        user = users.add(session, name=name, role=role, by="test")
        web_sessions.begin(session, user, digest=digest_of(token), hours=1)
    return Visitor(app, token=token)


def add_night(context: Context, studies: int = 3, **study: Any) -> None:
    """Scored studies 1, 2, ... without films on disk, the first the most urgent."""
    with session_scope(context.engine) as session:
        add_champion(session)
        urgent = [{"Pneumothorax": 0.9 - 0.5 * number / studies} for number in range(studies)]
        add_studies(session, open_run(session), urgent, **study)


def rows_of(page: str) -> list[int]:
    """The study ids of a worklist page, from its top."""
    return [int(number) for number in re.findall(r'<tr id="study-(\d+)"', page)]


def csrf_on(page: str) -> str:
    """The token that the forms of a page hold."""
    (token,) = set(re.findall(r'name="csrf" value="(\w+)"', page))
    return str(token)
