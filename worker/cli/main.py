"""The `nightread` command: runs one of the commands in app.py and ends with its exit code.

Every decoder process that is spawned runs the installed script, and so this module, a second time: it imports nothing
before `main` is called.
"""


def main() -> None:
    """Run the command line. What a person can mend is one line on standard error, not a traceback."""
    import atexit
    import gc
    import os
    import resource
    import sys

    gc.set_threshold(
        10_000
    )  # imports make no garbage; looking for it, then and at the exit, took a third of the start-up
    atexit.register(gc.freeze)
    os.umask(0o077)  # database, page and pictures hold patients' data: they are for this user alone
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold names
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal that cannot show a sender's letter shows "?"
    from worker.cli.app import app
    from worker.terminal.console import STOPPED, refuse
    from worker.terminal.refusals import refusals

    with refusals():
        code = app(prog_name="nightread", standalone_mode=False)
        if code == STOPPED:
            refuse("stopped", code=STOPPED)
        sys.exit(code)


if __name__ == "__main__":
    main()
