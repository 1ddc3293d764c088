"""Celery as in a tutorial: the naive body, one task per film, the prefork pool, results in Redis.

celery -A tests.benchmarks.one_task_per_film -b REDIS --result-backend REDIS worker
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from celery import Celery

app = Celery("one_task_per_film")


@cache
def body() -> Callable[[str], Any]:
    """Imported and loaded by the pool's process that uses it, with its first film: never inherited by a fork."""
    from tests.benchmarks.bodies import naive

    return naive()


@app.task(name="score_film")  # type: ignore[untyped-decorator]  # Celery has no types
def score_film(path: str) -> list[float]:
    return [float(probability) for probability in body()(path)[0]]
