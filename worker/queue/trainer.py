"""The training worker: takes one message at a time and runs `nightread retrain` for it, in a process of its own.

A process of its own, because it can be ended at any moment, gives all its memory back, and has the lowest priority
beside the scoring. If this worker is killed the retraining goes on alone; it holds the lock, and the next message finds
it busy.
"""

import subprocess
import sys
import threading

import structlog

from worker.context import Context
from worker.queue.app import RETRAIN, TRAINING, consume, make_app

log = structlog.get_logger()

CAUSES = ("schedule", "drift", "resume")


def run_training_worker(context: Context) -> None:
    """Consume the training queue until SIGTERM. Raises Unavailable when the consumer ends by itself."""
    celery, stopping = make_app(context.settings), threading.Event()

    @celery.task(name=RETRAIN)  # type: ignore[untyped-decorator]
    def retrain(cause: str = "schedule") -> None:
        run_retraining(cause if cause in CAUSES else "schedule", stopping=stopping)

    consume(celery, TRAINING, stopping=stopping)


def run_retraining(cause: str, *, stopping: threading.Event) -> None:
    """One retraining from its beginning to its end; on a stop it is ended, and the next message resumes it."""
    command = [sys.executable, "-m", "worker.cli", "retrain", "--cause", cause]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:  # noqa: S603  # our own command
        while process.poll() is None:
            if stopping.wait(1):
                process.terminate()
                break
    log.info("retraining_process_ended", exit_code=process.returncode)
