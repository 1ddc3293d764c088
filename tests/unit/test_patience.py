"""A database that is away is waited for; whatever else fails, and a worker that must stop, is not."""

import psycopg
import pytest
from sqlalchemy.exc import OperationalError

from worker.patience import patience, patiently


class Database:
    """One that fails the first times it is asked."""

    def __init__(self, *failures: Exception) -> None:
        self._failures = list(failures)

    @patiently
    def ask(self) -> str:
        if self._failures:
            raise self._failures.pop(0)
        return "answer"


def away() -> OperationalError:
    return OperationalError("SELECT 1", {}, psycopg.OperationalError("connection refused"))


def test_a_database_that_is_away_for_a_moment_is_asked_again() -> None:
    assert Database(away()).ask() == "answer"


def test_another_error_is_raised_at_once() -> None:
    database = Database(OperationalError("SELECT 1", {}, OSError("disk full")))
    with pytest.raises(OperationalError):
        database.ask()


def test_patience_ends_with_its_seconds() -> None:
    with patience(seconds=0), pytest.raises(OperationalError):
        Database(away()).ask()


def test_a_worker_that_must_stop_waits_no_longer() -> None:
    with patience(seconds=60, should_stop=lambda: True), pytest.raises(OperationalError):
        Database(away()).ask()
    assert Database(away()).ask() == "answer", "the patience of before holds again"
