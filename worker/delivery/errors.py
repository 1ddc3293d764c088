"""The ways in which a delivery can fail. Codes, never a destination's own words: those may quote a patient."""

from worker.reasons import ReasonCode


class DeliveryError(Exception):
    """A delivery failed; `reason` is its code in the outbox (worker/reasons.py)."""

    def __init__(self, reason: ReasonCode) -> None:
        super().__init__(reason)
        self.reason = reason


class DestinationAway(DeliveryError):
    """The destination does not answer: whatever waits for it waits on."""

    def __init__(self) -> None:
        super().__init__("destination_away")


class Refused(DeliveryError):
    """The destination answered and did not take this result, or the result could not be made."""


class OutOfDate(Exception):
    """The delivery would say something else than the database says of the study by now."""


class Stopped(Exception):
    """Somebody has stopped all deliveries since this one was claimed."""
