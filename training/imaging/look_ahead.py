"""Work that is begun a few items before its result is needed."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Pending = TypeVar("Pending")


def look_ahead(begin: Callable[[Item], Pending], items: Iterable[Item], *, depth: int) -> Iterator[Pending]:
    """Results of `begin` for each item, in order, while at most `depth` more have begun: memory stays bounded."""
    begun: deque[Pending] = deque()
    for item in items:
        begun.append(begin(item))
        if len(begun) > depth:
            yield begun.popleft()
    while begun:
        yield begun.popleft()
