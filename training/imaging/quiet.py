"""Keep a library's warnings about DICOM values to itself. In a file of its own, since the commands need it before, and
most of them without, pydicom (0.2 s to import)."""

import logging
import warnings


def quieten_pydicom() -> None:
    """Keep pydicom's warnings out of the logs of this process: they quote the values that they complain about.

    All warnings, since Python counts a warning to the module that called pydicom, however many calls up that is.
    """
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    warnings.simplefilter("ignore")
