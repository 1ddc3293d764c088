"""The two ways in which a study can fail, and what follows from each."""

from worker.reasons import ReasonCode


class UnusableStudy(Exception):
    """This cannot work, however often it is tried: recorded with its reason, never retried.

    `reason` is a stable code (snake_case) that SQL groups by; the text is a sentence for people. Neither holds a UID,
    a name or a path.
    """

    def __init__(self, reason: ReasonCode, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class Unavailable(Exception):
    """Something outside is away (a share, the database, the broker): try again later, blame nobody."""
