"""Decoders that do what the worst films make real ones do; a film names its fate in its Series Description.

Decoder processes import this module by name, so what stands here runs where a real decoder would.
"""

import os
import time
from pathlib import Path

import pydicom

from worker.reading import Failure, ReadingRules, Square, read_square


def read_hostile_square(
    path: str, sop_instance_uid: str, rules: ReadingRules, pixel_digest: str | None = None
) -> Square | Failure:
    """`worker.reading.read_square`, but for films that are described as hostile."""
    match str(pydicom.dcmread(Path(path), stop_before_pixels=True).get("SeriesDescription", "")):
        case "raises":
            raise ZeroDivisionError
        case "hangs":
            time.sleep(3600)
        case "kills":
            os._exit(139)
    return read_square(path, sop_instance_uid, rules, pixel_digest)
