"""Do the commands that container files and pages name exist?"""

from collections.abc import Sequence
from typing import Any

import typer

from worker.cli import app as cli


def require_command(where: str, words: Sequence[str]) -> None:
    """Fails unless `nightread WORDS` is a command with these options."""
    command: Any = typer.main.get_command(cli.app)
    rest = list(words)
    while commands := getattr(command, "commands", {}):
        assert rest[0] in commands, f"{where}: nightread has no command {rest[0]}"
        command = commands[rest.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in rest if word.startswith("--")} <= known, where
