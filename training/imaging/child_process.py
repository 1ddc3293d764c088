"""The first step of every process that decodes films: make sure that it does not outlive its parent."""

import multiprocessing
import os
import threading


def exit_with_parent() -> None:
    """Watch the parent from a thread, and end when it ends.

    A parent that is killed closes nothing behind it: a child that waits for its next film could wait for ever, and one
    that hangs in a film would hang for ever, since it is the parent that holds the time limit.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101  # this runs in children alone

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
