"""Codes of what is wrong with a file or its pixels; each stands at an exception of dicom.py, with its sentence."""

from typing import Literal

PixelReason = Literal[
    "bad_modality_lut", "bad_pixel_header", "constant_image", "dicomdir", "empty_file", "file_replaced",
    "multi_frame", "no_pixel_data", "not_dicom", "too_large", "truncated", "undecodable", "unreadable_dicom",
    "unsupported_pixels", "unsupported_transfer_syntax",
]  # fmt: skip
