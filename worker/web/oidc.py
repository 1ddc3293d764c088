"""Signing in by an OpenID provider: the provider says who somebody is and which role they have, at each sign-in."""

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from typing import Any

import httpx
import structlog
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.starlette_client import OAuth
from joserfc.errors import JoseError
from starlette.concurrency import run_in_threadpool
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from db import users
from db.models import ROLES, Role, WebUser
from db.reading import LONGEST_NAME
from db.session import session_scope
from worker.setting_groups import WebSettings
from worker.web.auth import begin_session
from worker.web.requests import Visit, local_address, refusal

log = structlog.get_logger()

STATE_COOKIE, STATE_SECONDS = "nightread_provider", 600
# The last three: what a provider says of itself is no JSON, or lacks something.
WRONG = (AuthlibBaseError, JoseError, httpx.HTTPError, KeyError, RuntimeError, ValueError)
REFUSED = "The provider did not sign you in: try again, or ask who runs it."
SILENT = "The provider does not answer: try again, or sign in with a password."
NO_ROLE = "The provider knows you, and gives you no role here: ask for viewer, reader or administrator."


class Provider:
    """The site's OpenID provider, by its settings. `state_secret` signs the cookie that holds a sign-in's state."""

    def __init__(self, web: WebSettings) -> None:
        self.state_secret = state_secret(web.oidc_client_secret)
        self._issuer, self._claim = web.oidc_issuer or "", web.oidc_role_claim
        self._client = OAuth().register(
            "provider",
            client_id=web.oidc_client_id,
            client_secret=web.oidc_client_secret,
            server_metadata_url=f"{self._issuer.rstrip('/')}/.well-known/openid-configuration",
            client_kwargs={"scope": "openid profile", "code_challenge_method": "S256", "timeout": 10},
        )

    async def begin(self, request: Request) -> Response:
        """To the provider's own page."""
        request.session["next"] = local_address(request.query_params.get("next"))
        back = str(request.url_for("provider_answer"))
        try:
            answer: Response = await self._client.authorize_redirect(request, back)
        except WRONG as error:
            return self._refused(request, error)
        return answer

    async def answer(self, request: Request) -> Response:
        """Back from the provider: a session, or a refusal."""
        visit = Visit(request, request.app.state.site)
        try:
            token = await self._client.authorize_access_token(request)
        except WRONG as error:
            return self._refused(request, error)
        claims: Mapping[str, Any] = token.get("userinfo") or {}
        role = role_in(claims, self._claim)
        if role is None:
            return refusal(visit, 403, NO_ROLE)
        address = local_address(request.session.pop("next", None))
        return await run_in_threadpool(self._enter, visit, claims, role, address)

    def _refused(self, request: Request, error: Exception) -> Response:
        log.warning("provider_refused", error=type(error).__name__)
        away = isinstance(error, httpx.HTTPError)
        return refusal(Visit(request, request.app.state.site), 503 if away else 403, SILENT if away else REFUSED)

    def _enter(self, visit: Visit, claims: Mapping[str, Any], role: Role, address: str) -> Response:
        try:
            with session_scope(visit.engine) as session:
                user = self._user(session, claims, role)
        except (users.NameTaken, users.WrongName) as error:
            return refusal(visit, 403, f"You cannot be signed in: {error}.")
        if user.disabled_at is not None:
            return refusal(visit, 403, "You may not sign in here any more.")
        return begin_session(visit, user, address=address)

    def _user(self, session: Any, claims: Mapping[str, Any], role: Role) -> WebUser:
        name = str(claims.get("preferred_username") or claims.get("name") or claims["sub"])
        subject = f"{claims['iss']} {claims['sub']}"
        return users.of_provider(session, subject=subject, name=users.proper_name(name[:LONGEST_NAME]), role=role)


class StateCookie:
    """Middleware: the cookie that holds a sign-in's state. Over TLS it never travels in the clear."""

    def __init__(self, app: ASGIApp, *, secret: str) -> None:
        def kept(*, tls: bool) -> SessionMiddleware:
            return SessionMiddleware(
                app, secret, STATE_COOKIE, max_age=STATE_SECONDS, path="/sign-in/provider", https_only=tls
            )

        self._over_tls, self._in_the_clear = kept(tls=True), kept(tls=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self._over_tls if scope.get("scheme") == "https" else self._in_the_clear)(scope, receive, send)


def state_secret(client_secret: str | None) -> str:
    """The key of the cookie with a sign-in's state: the same in every process of this client, for the answer may come
    to another one than the question. A client without a secret has one process."""
    key = client_secret or secrets.token_hex(32)
    return hmac.new(key.encode(), b"nightread sign-in state", hashlib.sha256).hexdigest()


def role_in(claims: Mapping[str, Any], path: str) -> Role | None:
    """The highest role that a claim names; `path` leads into nested claims by dots."""
    value: Any = claims
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    named = {value} if isinstance(value, str) else set(value) if isinstance(value, list) else set()
    return max((role for role in ROLES if role in named), key=ROLES.index, default=None)
