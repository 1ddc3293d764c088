"""The training worker: takes one message at a time and runs `nightread retrain` for it, in a process of its own.

A process of its own, because it can be ended at any moment, gives all its memory back, and has the lowest priority
beside the scoring. If this worker is killed the retraining goes on alone; it holds the lock, and the next message finds
it busy.
"""

import subprocess
import sys
import threading

import structlog
from celery import Celery

from worker.context import Context
from worker.queue.app import RETRAIN, TRAINING, consume, make_app

log = structlog.get_logger()


class Trainer:
    """Runs one retraining at a time until it is told to stop."""

    def __init__(self) -> None:
        self.stopping = threading.Event()

    def run(self, cause: str) -> None:
        """One retraining from its beginning to its end; on a stop it is ended, and whoever comes next goes on."""
        command = [sys.executable, "-m", "worker.cli", "retrain", "--cause", cause]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:  # noqa: S603  # our own command
            while process.poll() is None:
                if self.stopping.wait(1):
                    process.terminate()
                    break
        log.info("retraining_process_ended", exit_code=process.returncode)


def register(app: Celery, trainer: Trainer) -> None:
    """Give the app its one task."""

    @app.task(name=RETRAIN)  # type: ignore[untyped-decorator]
    def retrain(cause: str = "schedule") -> None:
        trainer.run(cause if cause in CAUSES else "schedule")


CAUSES = ("schedule", "drift", "resume")


def run_training_worker(context: Context) -> None:
    """Consume the training queue until SIGTERM. Raises Unavailable when the consumer ends by itself."""
    celery, trainer = make_app(context.settings), Trainer()
    register(celery, trainer)

    consume(celery, TRAINING, stopping=trainer.stopping)
