"""Values that may be None by their type, in tests that know that they are not."""

from typing import TypeVar

T = TypeVar("T")


def present(value: T | None) -> T:
    """The value; a test where there is none fails here."""
    assert value is not None
    return value
