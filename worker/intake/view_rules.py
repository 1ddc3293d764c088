"""A site's rules for accepting films, and how many instances were skipped under other ones. No pydicom here."""

import hashlib
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Engine

from db import lookup
from db.session import read_scope
from worker.intake.view_words import BUILT_IN, Words
from worker.reasons import VIEW_SENTENCES
from worker.settings import Settings
from worker.wording import counted

CR_IMAGE: Final = "1.2.840.10008.5.1.4.1.1.1"
DX_FOR_PRESENTATION: Final = "1.2.840.10008.5.1.4.1.1.1.1"


@dataclass(frozen=True, kw_only=True)
class ViewRules:
    """A site's rules for accepting films.

    `trust_patient_orientation` keeps a chest film of which nothing but a coronal Patient Orientation (L\\F) says that
    it is frontal. Off by default: Agfa and Fuji consoles were seen to write L\\F on laterals too.
    """

    modalities: tuple[str, ...] = ("CR", "DX", "DR")
    sop_classes: tuple[str, ...] = (CR_IMAGE, DX_FOR_PRESENTATION)
    allow_secondary_capture: bool = False
    trust_patient_orientation: bool = False
    words: Words = BUILT_IN

    @property
    def digest(self) -> str:
        """A mark of these rules, by which instances that were decided under others are found."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    @classmethod
    def of(cls, settings: Settings) -> "ViewRules":
        """The rules of a site's settings."""
        return cls(
            modalities=settings.modalities,
            allow_secondary_capture=settings.allow_secondary_capture,
            words=Words.of(settings.view_words),
        )


DEFAULT_RULES: Final = ViewRules()


def outdated(engine: Engine, settings: Settings) -> int:
    """How many instances the view filter skipped under other settings than these."""
    with read_scope(engine) as session:
        return lookup.decided_otherwise(session, list(VIEW_SENTENCES), rules=ViewRules.of(settings).digest)


def outdated_hint(count: int) -> str:
    """Hint on instances that were skipped under other settings."""
    verb = "was" if count == 1 else "were"
    return f"{counted(count, 'instance')} {verb} skipped under other settings: `nightread redecide` decides again"
