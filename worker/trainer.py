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
from celery.signals import worker_shutting_down

from worker.app import RETRAIN, TRAINING, make_app
from worker.errors import Unavailable
from worker.house import House

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


def run_training_worker(house: House) -> None:
    """Consume the training queue until SIGTERM. Raises Unavailable when the consumer ends by itself."""
    celery, trainer = make_app(house.settings), Trainer()
    register(celery, trainer)

    def stop(**_: object) -> None:
        trainer.stopping.set()

    worker_shutting_down.connect(stop, weak=False)
    celery.worker_main(
        ["worker", f"--queues={TRAINING}", "--pool=threads", "--concurrency=1", "--loglevel=WARNING",
         "--without-gossip", "--without-mingle"]
    )  # fmt: skip
    if not trainer.stopping.is_set():
        raise Unavailable("the worker's connection to the queue ended by an error; start it again")
