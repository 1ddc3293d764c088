"""`nightread policy`: look at the versions of the reading policy, write a new one, make one live."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from worker.terminal.console import AsJson, open_context, print_json, progress, refuse, say

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from db.models import PolicyRow
    from worker.context import Context
    from worker.ranking.policy import Changes
    from worker.ranking.priority import Policy

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, help="Show and change what is urgent, and how urgent.")

MOST_VERSIONS = 2**31 - 1  # what the column holds; SQLite's driver ends with a traceback far above it
Version = Annotated[
    int | None, typer.Option("--version", min=1, max=MOST_VERSIONS, help="This version instead of the active one.")
]
Note = Annotated[str, typer.Option(help="Why; kept with the version.")]
EachFinding = Annotated[list[str] | None, typer.Option(metavar="FINDING=VALUE", help="May be given several times.")]


@app.command()
def show(
    version: Version = None,
    every: Annotated[bool, typer.Option("--all", help="List the versions there are.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the active policy, or another version."""
    from db import policies
    from db.session import read_scope
    from worker.ranking import policy
    from worker.terminal.listing import answer
    from worker.terminal.tables import policies_table

    context = open_context()
    with _policy_errors(), read_scope(context.engine) as session:
        if every:
            rows = [_history(row) for row in policies.versions(session)]
            answer(rows, policies_table(rows), as_json=as_json)
            return
        row = _chosen(session, version)
        shown = _history(row) | asdict(policy.from_rows(session, row))
    if as_json:
        print_json(shown)
    else:
        _print_policy(shown)


@app.command()
def edit(
    note: Note,
    weight: EachFinding = None,
    category: EachFinding = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(metavar="FINDING=VALUE", help="FINDING=checkpoint takes the checkpoint's own again."),
    ] = None,
    max_wait_minutes: Annotated[int | None, typer.Option(help="Longer than this is overdue.")] = None,
    category_a_share: Annotated[float | None, typer.Option(help="The share of films meant for category A.")] = None,
    version: Version = None,
) -> None:
    """Write a new version, made from the active one.

    Nothing ranks by it until `nightread policy activate`.
    """
    from worker.ranking.policy import Changes

    changes = Changes(
        weights=_pairs(weight, "--weight", float),
        categories=_pairs(category, "--category", str.upper),
        thresholds=_pairs(threshold, "--threshold", lambda text: None if text == "checkpoint" else float(text)),
        max_wait_minutes=max_wait_minutes,
        category_a_share=category_a_share,
    )
    if not changes.any:
        refuse("nothing to change: name a weight, a category, a threshold, a wait or a share")
    _write(open_context(), changes, version=version, note=note)


@app.command()
def capacity(
    finding: Annotated[str | None, typer.Option(help="Its name; by default the one finding in category A.")] = None,
    weeks: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=5200,
            metavar="WEEKS",
            help="From this site's films of the last WEEKS; else from the checkpoint's.",
        ),
    ] = None,
    at_least: Annotated[int, typer.Option(min=1, help="Refuse fewer films of this site.")] = 1000,
    note: Note = "",
) -> None:
    """Write a version whose category A holds the share it should.

    The threshold is computed from the scores.
    """
    from db.session import session_scope
    from training.findings import FINDINGS
    from worker.ranking import policy

    context = open_context()
    live = context.live()
    rules = live.policy
    with _policy_errors():
        name = finding or policy.capacity_finding(rules)
        if name not in FINDINGS:
            refuse(f"no finding is called {name!r}; there are {', '.join(FINDINGS)}")
        if weeks is None:
            value = policy.threshold_from_reference(live.header.reference, finding=name, share=rules.category_a_share)
            source = policy.reference_films(live.header)
        else:
            with session_scope(context.engine) as session:
                value, films = policy.threshold_from_site(
                    session,
                    finding=name,
                    share=rules.category_a_share,
                    checkpoint_id=live.checkpoint_id,
                    weeks=weeks,
                    at_least=at_least,
                )
            source = f"{films} films of {weeks:g} weeks"
    say(f"{name} at {value:g} flags {rules.category_a_share:.0%} of {source} (checkpoint {live.short}).")
    _write(context, policy.Changes(thresholds={name: value}), note=note or f"capacity, from {source}")


@app.command()
def activate(
    version: Annotated[int, typer.Argument(min=1, max=MOST_VERSIONS, help="As `policy edit` printed it.")],
) -> None:
    """Make a version the one that ranks.

    Every study is placed by it again; none is scored again.
    """
    from worker.context import actor
    from worker.ranking import activation

    context = open_context()
    with _policy_errors(), progress("Placing studies", total=None) as advance:
        unread, read = activation.activate(context.engine, version, by=actor(), on_ranked=advance)
    say(f"Version {version} is active; {unread:,} unread and {read:,} read studies were placed by it.")


def _policy_errors() -> AbstractContextManager[None]:
    from db.policies import UnknownPolicy
    from worker.ranking.priority import PolicyError
    from worker.terminal.refusals import usage_errors

    return usage_errors(PolicyError, UnknownPolicy)


def _chosen(session: "Session", version: int | None) -> "PolicyRow":
    from db import policies
    from worker.context import NothingSeeded

    row = policies.active(session) if version is None else policies.by_version(session, version)
    if row is None:
        raise NothingSeeded
    return row


def _write(context: "Context", changes: "Changes", *, note: str, version: int | None = None) -> None:
    from db.session import session_scope
    from worker.context import actor
    from worker.ranking import policy

    live = context.live()
    with _policy_errors(), session_scope(context.engine) as session:
        rules = policy.edited(policy.from_rows(session, _chosen(session, version)), changes)
        _check_thresholds(rules, live.thresholds)
        row = policy.store(session, rules, capacity=live.thresholds, by=actor(), note=note)
        number = row.version
    say(f"Version {number} is written. Nothing ranks by it yet: `nightread policy activate {number}`.")


def _check_thresholds(rules: "Policy", thresholds: dict[str, float]) -> None:
    from worker.ranking.priority import thresholds_in_force, validate

    if not validate(rules):
        thresholds_in_force(rules, thresholds)


def _pairs(given: Sequence[str] | None, option: str, convert: Callable[[str], T]) -> dict[str, T]:
    """FINDING=VALUE words as a mapping; a word that is none, or is named twice, ends the command."""
    pairs: dict[str, T] = {}
    for word in given or ():
        name, equals, value = word.partition("=")
        if not equals or name in pairs:
            refuse(f"{option} takes FINDING=VALUE, each finding once, not {word!r}")
        try:
            pairs[name] = convert(value)
        except ValueError:
            refuse(f"{option} {name}: {value!r} is not a number")
    return pairs


def _history(row: "PolicyRow") -> dict[str, Any]:
    names = ("version", "active", "created_at", "created_by", "activated_at", "activated_by", "note")
    return {name: getattr(row, name) for name in names}


def _print_policy(shown: dict[str, Any]) -> None:
    from worker.terminal.listing import show
    from worker.terminal.tables import policy_table

    state = "active" if shown["active"] else "not active"
    say(f"Version {shown['version']}, {state}, by {shown['created_by']}: {shown['note'] or '-'}")  # fmt: skip
    say(f"Overdue after {shown['max_wait_minutes']:g} minutes; category A is meant for "
              f"{shown['category_a_share']:.0%} of the films.")  # fmt: skip
    show(policy_table(shown["findings"]))
