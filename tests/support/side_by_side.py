"""Jobs that run at the same time."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def at_once(*jobs: Callable[[], object]) -> None:
    """Run the jobs side by side, and raise what one of them raised."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        for running_job in [pool.submit(job) for job in jobs]:
            running_job.result()
