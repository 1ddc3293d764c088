"""`nightread redecide`: what was skipped, by the settings of today."""

from typing import Annotated

import typer

from worker.terminal.console import DONE, SOME_LEFT_OUT, AsJson, open_context, print_json, refuse, say
from worker.wording import counted

app = typer.Typer()


@app.command()
def redecide(
    reason: Annotated[
        str | None, typer.Option(help="Only instances with this reason, as `status` names it: secondary_capture.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Decide skipped instances again after a setting has changed.

    Their headers are read again from their files.
    """
    from worker.intake.redecide import redecide as decide
    from worker.reasons import VIEW_SENTENCES

    code = next((each for each in VIEW_SENTENCES if reason and each == reason.replace(" ", "_")), None)
    if reason and code is None:
        refuse(f"{reason!r} is not a reason of the view filter; one of them is {', '.join(VIEW_SENTENCES)}")
    done = decide(open_context(log_level="warning"), reason=code)
    if as_json:
        print_json({"read": done.files, "changed": done.changed, "rejected": done.rejected})
    else:
        say(
            f"{counted(done.files, 'header')} read again: {done.changed} are decided otherwise now, "
            f"{done.rejected} could not be read. `nightread score` or the next sweep takes what waits."
        )
    raise typer.Exit(SOME_LEFT_OUT if done.rejected else DONE)
