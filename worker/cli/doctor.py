"""`nightread doctor`: health checks."""

from typing import Annotated

import typer

from worker.terminal.console import DONE, UNAVAILABLE, WRONG_USAGE, AsJson, open_context

app = typer.Typer()


@app.command()
def doctor(
    role: Annotated[
        str | None,
        typer.Option(help="worker, beat, training, receiver, puller, delivery or web: only whether it goes on."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check the settings and whatever they name.

    Settings, database, schema, checkpoint, device, broker, clock and disk; ends with 2 or 3 when one is wrong.
    """
    from worker.doctor import ROLES, CheckResult, examine, examine_role
    from worker.settings import WrongSettings
    from worker.terminal.listing import answer
    from worker.terminal.tables import doctor_table

    if role is not None and role not in ROLES:
        raise typer.BadParameter(f"the role is one of {', '.join(ROLES)}")
    failed = UNAVAILABLE
    try:
        context = open_context(create=True)  # a missing database is a check that fails, not a refusal
        results = list(examine(context) if role is None else examine_role(context, role))
    except WrongSettings as error:
        results, failed = [CheckResult("settings", False, str(error))], WRONG_USAGE
    answer([vars(result) for result in results], doctor_table(results), as_json=as_json)
    raise typer.Exit(DONE if all(result.ok for result in results) else failed)
