"""`nightread users`: who may sign in to the web page, and the tokens of programs."""

import sys
from typing import Annotated, Any, Literal

import typer

from worker.terminal.console import AsJson, open_engine, refuse, say

app = typer.Typer(no_args_is_help=True, help="Keep the users of the web page and the tokens of programs.")

Role = Literal["viewer", "reader", "administrator"]  # of db.models, which `--help` does not wait for
Name = Annotated[str, typer.Argument(help="The user's name, as it stands beside what they read.")]


@app.command()
def add(
    name: Name,
    role: Annotated[Role, typer.Option(help="viewer looks, reader reads and reviews, administrator sees all.")],
) -> None:
    """Add a user. The password is asked for, or read from standard input."""
    from db import users
    from worker.context import actor
    from worker.terminal.refusals import usage_errors
    from worker.web.passwords import WeakPassword, password_hash

    with usage_errors(users.NameTaken, users.WrongName, WeakPassword):
        proper = users.proper_name(name)
        kept = password_hash(_password())
        with _writing() as session:
            users.add(session, name=proper, role=role, by=actor(), password_hash=kept)
    say(f"{proper} may sign in as {role}.")


@app.command("list")
def list_users(as_json: AsJson = False) -> None:
    """List the users."""
    from db import users
    from db.session import read_scope
    from worker.terminal.listing import answer
    from worker.terminal.tables import users_table

    with read_scope(open_engine()) as session:
        rows = [_row(user) for user in users.everyone(session)]
    answer(rows, users_table(rows), as_json=as_json)


def _row(user: Any) -> dict[str, Any]:
    names = ("name", "role", "created_at", "created_by", "disabled_at")
    return {name: getattr(user, name) for name in names} | {"by_password": user.password_hash is not None}


@app.command()
def role(name: Name, role: Annotated[Role, typer.Argument(help="What the user may do from now on.")]) -> None:
    """Change what a user may do.

    It holds at once, in sessions and for tokens too. Of users who sign in by a provider, the provider says the role.
    """
    from db import users
    from worker.context import actor
    from worker.terminal.refusals import usage_errors

    with usage_errors(users.UnknownUser), _writing() as session:
        users.set_role(session, users.by_name(session, name), role, by=actor())
    say(f"{name} is {role} now.")


@app.command()
def disable(name: Name) -> None:
    """Let a user in no more.

    Sessions and tokens end at once. What the user read and reviewed stays.
    """
    from db import users
    from worker.context import actor
    from worker.terminal.refusals import usage_errors

    with usage_errors(users.UnknownUser), _writing() as session:
        users.disable(session, users.by_name(session, name), by=actor())
    say(f"{name} may sign in no more.")


@app.command()
def password(name: Name) -> None:
    """Set a user's password.

    It ends the user's sessions, and lets a disabled user in again.
    """
    from db import users
    from worker.context import actor
    from worker.terminal.refusals import usage_errors
    from worker.web.passwords import WeakPassword, password_hash

    with usage_errors(users.UnknownUser, WeakPassword):
        kept = password_hash(_password())
        with _writing() as session:
            users.set_password(session, users.by_name(session, name), kept, by=actor())
    say(f"{name} has a new password.")


@app.command()
def token(
    user: Name,
    name: Annotated[str, typer.Option(help="What the token is for, such as ris.")],
    days: Annotated[int | None, typer.Option(min=1, help="It ends after this many days; without it: never.")] = None,
    revoke: Annotated[bool, typer.Option("--revoke", help="End the token instead.")] = False,
) -> None:
    """Make a token with which a program reads the list, and print it once."""
    from db import api_tokens, users
    from worker.context import actor
    from worker.terminal.refusals import usage_errors
    from worker.web.passwords import digest_of, new_token

    made = new_token()
    with usage_errors(users.UnknownUser, api_tokens.TokenNameTaken, api_tokens.UnknownToken), _writing() as session:
        row = users.by_name(session, user)
        if revoke:
            api_tokens.revoke(session, row, name=name, by=actor())
        else:
            api_tokens.issue(session, row, name=name[:64], digest=digest_of(made), days=days, by=actor())
    say("The token is revoked." if revoke else made)


def _writing() -> Any:
    from db.session import session_scope

    return session_scope(open_engine())


def _password() -> str:
    """The password: typed twice by a person, or one line of standard input."""
    if sys.stdin.isatty():
        typed: str = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
        return typed
    line = sys.stdin.readline().rstrip("\n")
    if not line:
        refuse("give the password on standard input, or run the command at a terminal")
    return line
