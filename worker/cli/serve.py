"""`nightread serve`: the worklist in a browser."""

import ipaddress
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from worker.terminal.console import open_context, refuse, say

if TYPE_CHECKING:
    from worker.context import Context

app = typer.Typer()

NO_USERS = "Nobody may sign in yet: add a user with `nightread users add NAME --role administrator`."


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0: a free one.")] = 8080,
) -> None:
    """Show the worklist in a browser: read, claim, review.

    It listens on this machine alone unless --host says otherwise; then NIGHTREAD_WEB_HOSTS must name its hosts.
    """
    local = _is_local(host)
    context = open_context(service=True)
    if not local and not context.settings.web.hosts:
        refuse("to listen for other machines, name the hosts by which browsers reach it: NIGHTREAD_WEB_HOSTS, "
               "such as nightread.hospital.example")  # fmt: skip
    first_token = _first_token(context, local=local)
    with _listening(host, port) as listener:
        port = listener.getsockname()[1]
        address = f"http{'s' if context.settings.web.tls_certificate_file else ''}://{_shown(host, local=local)}:{port}"
        say(f"The worklist is at {address}/ (Ctrl-C ends it).")
        if first_token is not None:
            say(f"Nobody may sign in yet. Make the first user, once, at {address}/first/{first_token}")
        _run(context, listener, first_token=first_token)


def _listening(host: str, port: int) -> socket.socket:
    """A socket that takes connections before the server is there: whoever follows the address at once only waits."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        refuse(f"nothing can listen on {host}, port {port} ({error.strerror}): name another with --host or --port")


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        if host != "localhost":
            refuse("--host takes an address of this machine, such as 127.0.0.1 or 0.0.0.0")
        return True


def _shown(host: str, *, local: bool) -> str:
    if not local:
        return "localhost"
    return f"[{host}]" if ":" in host else host


def _first_token(context: "Context", *, local: bool) -> str | None:
    """A token for the page that makes the first user, where there is none and only this machine is listened to."""
    from db import users
    from db.session import read_scope
    from worker.web.passwords import new_token

    with read_scope(context.engine) as session:
        somebody = users.any_there(session)
    if somebody or context.settings.web.oidc_issuer is not None:
        return None
    if local:
        return new_token()
    say(NO_USERS)
    return None


def _run(context: "Context", listener: socket.socket, *, first_token: str | None) -> None:
    import uvicorn

    from worker.web.app import create_app

    web = context.settings.web
    config = uvicorn.Config(
        create_app(context, first_token=first_token),
        log_config=None,
        access_log=False,  # an address can hold an accession number
        server_header=False,
        ws="none",
        proxy_headers=bool(web.proxies),
        forwarded_allow_ips=list(web.proxies),
        ssl_certfile=web.tls_certificate_file,
        ssl_keyfile=web.tls_key_file,
        timeout_graceful_shutdown=10,
    )
    with suppress(KeyboardInterrupt):  # Ctrl-C is how it ends
        uvicorn.Server(config).run(sockets=[listener])
