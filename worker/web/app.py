"""The web application: its addresses, and what holds for every answer."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker.context import Context
from worker.web import actions, api, auth, films, study, system, worklist
from worker.web.images import Pictures
from worker.web.requests import Visit, refusal, route
from worker.web.site import Site, templates

LOCAL = ("localhost", "127.0.0.1", "[::1]")
STATIC = Path(__file__).with_name("static")
STATIC_SECONDS = 31_536_000  # a year: the address changes with the content
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}


def create_app(context: Context, *, first_token: str | None = None) -> Starlette:
    """The application of one context. `first_token`: of the address at which the first user is made."""
    web = context.settings.web
    routes: list[BaseRoute] = [*_pages(), Mount("/static", StaticFiles(directory=STATIC), name="static")]
    middleware = [
        Middleware(Hardened),
        Middleware(TrustedHostMiddleware, allowed_hosts=[*LOCAL, *web.hosts], www_redirect=False),
        Middleware(OnlyTls),
    ]
    if web.oidc_issuer is not None:
        from worker.web.oidc import Provider, StateCookie

        provider = Provider(web)
        routes[:0] = [
            Route("/sign-in/provider", provider.begin, name="provider_begin"),
            Route("/sign-in/provider/answer", provider.answer, name="provider_answer"),
        ]
        middleware.append(Middleware(StateCookie, secret=provider.state_secret))
    site = Site(context, Pictures(context), templates(context.settings.zone), first_token)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        site.pictures.close()

    handlers = {HTTPException: _refused}
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=lifespan)  # type: ignore[arg-type]
    app.state.site = site
    return app


def _pages() -> Sequence[Route]:
    return [
        route("/sign-in", auth.sign_in, role=None),
        route("/sign-in", auth.sign_in_with_password, role=None, method="POST"),
        route("/sign-out", auth.sign_out, role="viewer", method="POST"),
        route("/first/{token}", auth.first, role=None),
        route("/first/{token}", auth.make_first, role=None, method="POST"),
        route("/", worklist.show, role="viewer"),
        route("/studies/{study_id:row}", study.show, role="viewer"),
        route("/studies/{study_id:row}/claim-state", actions.claim_state, role="viewer"),
        route("/studies/{study_id:row}/claim", actions.claim, role="reader", method="POST"),
        route("/studies/{study_id:row}/take-over", actions.take_over, role="reader", method="POST"),
        route("/studies/{study_id:row}/release", actions.release, role="reader", method="POST"),
        route("/studies/{study_id:row}/renew", actions.renew, role="reader", method="POST"),
        route("/studies/{study_id:row}/read", actions.mark_read, role="reader", method="POST"),
        route("/studies/{study_id:row}/unread", actions.mark_unread, role="reader", method="POST"),
        route("/studies/{study_id:row}/review", actions.review, role="reader", method="POST"),
        route("/films/{instance_id:row}.png", films.film, role="viewer", pictures=True),
        route("/films/{instance_id:row}/thumbnail.png", films.thumbnail, role="viewer", pictures=True),
        route("/films/{instance_id:row}/heat/{finding}.png", films.heat, role="viewer", pictures=True),
        route("/system", system.show, role="administrator"),
        route("/system/requeue", system.requeue, role="administrator", method="POST"),
        route("/system/runs/{run_id:row}", system.morning_page, role="administrator", pictures=True),
        route("/api", api.page, role="viewer"),
        route("/api/openapi.json", api.description, role="viewer"),
        api.json_route("/api/worklist", api.api_worklist),
        api.json_route("/api/studies/{uid}", api.api_study),
        Route("/alive", _alive, name="alive"),
    ]


async def _alive(_request: Request) -> Response:
    """For the container's health check: this process answers."""
    return PlainTextResponse("alive\n")


async def _refused(request: Request, error: HTTPException) -> Response:
    """An address that there is not, or a form that cannot be read."""
    return refusal(Visit(request, request.app.state.site), error.status_code, error.detail)


class Hardened:
    """Headers of every answer; those that a page sets itself stand."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def harden(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if scope["path"].startswith("/static/") and message["status"] == 200:
                    headers.setdefault("Cache-Control", f"public, max-age={STATIC_SECONDS}, immutable")
                if scope["scheme"] == "https":
                    headers.setdefault("Strict-Transport-Security", "max-age=31536000")
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, harden)


class OnlyTls:
    """Refuse what came without TLS, unless it never left this machine: a password would cross the network."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["scheme"] != "https":
            host = Request(scope).url.hostname or ""
            if host not in ("localhost", "127.0.0.1", "::1"):
                answer = PlainTextResponse("This page is served over TLS only: begin its address with https://.", 403)
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)
