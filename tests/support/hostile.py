"""Decoders that do what the worst films make real ones do; a film names its fate in its Series Description.

Decoder processes import this module by name, so what stands here runs where a real decoder would.
"""

import os
import time
from pathlib import Path

import pydicom

from worker.scoring.decoding import DecodeOptions, Failure, NetworkInput, decode_film


def decode_hostile_film(
    path: str, sop_instance_uid: str, options: DecodeOptions, pixel_digest: str | None = None
) -> NetworkInput | Failure:
    """`worker.scoring.decoding.decode_film`, but for films that are described as hostile."""
    match str(pydicom.dcmread(Path(path), stop_before_pixels=True).get("SeriesDescription", "")):
        case "raises":
            raise ZeroDivisionError
        case "hangs":
            time.sleep(3600)
        case "kills":
            os._exit(139)
    return decode_film(path, sop_instance_uid, options, pixel_digest)
