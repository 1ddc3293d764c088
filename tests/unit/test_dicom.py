"""Files at intake that are not films, or no longer: refused with their reason, quickly and within limits."""

import os
import struct
import tracemalloc
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom.filereader
import pytest
from pydicom.dataset import Dataset
from pydicom.filebase import DicomIO
from pydicom.filewriter import write_dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    MediaStorageDirectoryStorage,
)

from tests.support.dicom_files import LOSSLESS_SYNTAXES, make_film, texture
from training.imaging.dicom import (
    DEFAULT_LIMITS,
    HEADER_BYTES,
    PixelHeader,
    PixelLimits,
    UnusablePixels,
    open_dataset,
    read_header,
)
from training.imaging.pixels import read_film

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, about what these files are made to have


def refusal(path: Path, *, limits: PixelLimits = DEFAULT_LIMITS) -> str:
    with pytest.raises(UnusablePixels) as refused:
        open_dataset(path, limits=limits)
    return refused.value.reason


def header_refusal(**attributes: Any) -> str:
    with pytest.raises(UnusablePixels) as refused:
        PixelHeader.of(make_film(pixels=texture(8, 8, bits=8), **attributes), limits=DEFAULT_LIMITS)
    return refused.value.reason


def test_every_reason_is_snake_case_and_every_sentence_is_a_sentence() -> None:
    kinds = UnusablePixels.__subclasses__()
    assert len({kind.reason for kind in kinds}) == len(kinds) > 10
    for kind in kinds:
        assert kind.reason == kind.reason.lower().replace(" ", "_")
        assert str(kind()).endswith(".")
        assert str(kind())[0].isupper()


@pytest.mark.parametrize("syntax", LOSSLESS_SYNTAXES, ids=lambda syntax: syntax.keyword)
def test_a_film_is_read_whole_in_every_syntax(tmp_path: Path, syntax: UID) -> None:
    written = make_film(tmp_path / "film", transfer_syntax=syntax)
    read = open_dataset(tmp_path / "film")
    assert read.SOPInstanceUID == written.SOPInstanceUID
    assert read.file_meta.TransferSyntaxUID == syntax
    assert len(read.PixelData) >= len(written.PixelData)
    header = read_header(tmp_path / "film")
    assert header.SOPInstanceUID == written.SOPInstanceUID
    assert "PixelData" not in header


def test_a_header_can_be_limited_to_the_tags_that_are_needed(tmp_path: Path) -> None:
    make_film(tmp_path / "film")
    header = read_header(tmp_path / "film", specific_tags=["Modality", 0x00185101])
    assert {element.keyword for element in header} <= {"Modality", "ViewPosition", "SpecificCharacterSet"}
    assert header.ViewPosition == "PA"


def test_a_zero_byte_file_is_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "film").touch()
    assert refusal(tmp_path / "film") == "empty_file"


@pytest.mark.parametrize(
    "content",
    [b"\0" * 4096, b"%PDF-1.7 " * 50, b"\x89PNG\r\n\x1a\n" * 20, b"PatientName,Finding\n" * 20, b"\x08", b"\x08\x00"],
    ids=["zeros", "pdf", "png", "csv", "one_byte", "two_bytes"],
)
def test_what_is_not_dicom_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "film").write_bytes(content)
    assert refusal(tmp_path / "film") == "not_dicom"
    with pytest.raises(UnusablePixels):
        read_header(tmp_path / "film")


def test_a_video_of_four_gigabytes_is_refused_without_being_read(tmp_path: Path) -> None:
    video = tmp_path / "night.mp4"
    video.write_bytes(b"\0\0\0 ftypisom" + b"\x01" * 200)
    os.truncate(video, 4 * 2**30)  # sparse: takes no space on the disk
    tracemalloc.start()
    assert refusal(video) == "not_dicom"
    _now, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 32 * 2**20


def test_a_huge_dicom_file_is_refused_but_its_header_can_be_read(tmp_path: Path) -> None:
    film = make_film(tmp_path / "film")
    os.truncate(tmp_path / "film", 2 * 2**30)
    assert refusal(tmp_path / "film", limits=PixelLimits(max_bytes=2**20)) == "too_large"
    assert read_header(tmp_path / "film").SOPInstanceUID == film.SOPInstanceUID


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe") == "not_dicom"


def test_a_file_that_cannot_be_reached_is_not_blamed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_dataset(tmp_path / "gone" / "film")
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "gone" / "film")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_not_blamed(tmp_path: Path) -> None:
    make_film(tmp_path / "film")
    (tmp_path / "film").chmod(0)
    with pytest.raises(PermissionError):
        open_dataset(tmp_path / "film")


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_bare_data_set_without_preamble_and_file_meta_is_read(tmp_path: Path, syntax: UID) -> None:
    film = make_film(transfer_syntax=syntax)
    with (tmp_path / "film").open("wb") as file:
        film.save_as(file, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian)
    content = (tmp_path / "film").read_bytes()
    bare = content[content.index(b"\x00\x08" if syntax == ExplicitVRBigEndian else b"\x08\x00") :]
    (tmp_path / "film").write_bytes(bare)
    read = open_dataset(tmp_path / "film")
    assert read.SOPInstanceUID == film.SOPInstanceUID
    assert PixelHeader.of(read, limits=DEFAULT_LIMITS).transfer_syntax == syntax


def test_a_preamble_without_its_prefix_is_not_dicom_but_the_file_behind_it_would_be(tmp_path: Path) -> None:
    make_film(tmp_path / "film")
    content = (tmp_path / "film").read_bytes()
    (tmp_path / "film").write_bytes(content[132:])  # straight to the file meta
    assert open_dataset(tmp_path / "film").Modality == "DX"


def test_a_dicomdir_is_named_as_what_it_is(tmp_path: Path) -> None:
    film = make_film()
    film.SOPClassUID = MediaStorageDirectoryStorage
    film.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    film.file_meta.MediaStorageSOPInstanceUID = film.SOPInstanceUID
    film.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    assert refusal(tmp_path / "DICOMDIR") == "dicomdir"


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEGLosslessSV1, DeflatedExplicitVRLittleEndian])
def test_a_file_cut_off_in_its_pixels_is_truncated(tmp_path: Path, syntax: UID, share: float) -> None:
    path = tmp_path / "film"
    make_film(path, transfer_syntax=syntax)
    os.truncate(path, 1500 + int(share * (path.stat().st_size - 1500)))
    with pytest.raises(UnusablePixels) as refused:
        read_film(open_dataset(path))
    assert refused.value.reason == "truncated"


def test_a_file_cut_off_anywhere_is_refused_or_lacks_what_a_film_needs(tmp_path: Path) -> None:
    path = tmp_path / "film"
    make_film(path)
    whole = path.read_bytes()
    for end in range(1, 1500, 7):
        path.write_bytes(whole[:end])
        with pytest.raises(UnusablePixels):
            read_film(open_dataset(path))


def deflated_bomb(path: Path, *, megabytes: int) -> None:
    """A data set whose pixel data is nothing but zeros, a thousand times smaller than what it inflates to."""
    make_film(path, transfer_syntax=DeflatedExplicitVRLittleEndian)
    content = path.read_bytes()
    meta_length = 144 + struct.unpack_from("<I", content, 140)[0]
    data = BytesIO()
    body = Dataset()
    body.SOPInstanceUID = "1.2.3"
    writer = DicomIO(data)
    writer.is_little_endian, writer.is_implicit_VR = True, False
    write_dataset(writer, body)
    header = data.getvalue() + struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, megabytes * 2**20)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(header) + b"".join(packer.compress(bytes(2**20)) for _ in range(megabytes))
    path.write_bytes(content[:meta_length] + packed + packer.flush())


EXPLICIT_ITEM = struct.pack("<HHI", 0xFFFE, 0xE000, 0)


@pytest.mark.parametrize(("elements", "refused"), [(40_000, False), (60_000, True)])
def test_a_header_of_too_many_elements_is_refused_though_none_is_asked_for(
    elements: int, refused: bool, tmp_path: Path
) -> None:
    path = tmp_path / "film.dcm"
    make_film(path, transfer_syntax=ImplicitVRLittleEndian)
    header, tag, pixels = path.read_bytes().partition(b"\xe0\x7f\x10\x00")
    tiny = b"".join(struct.pack("<HHL", 0x5001, number, 0) for number in range(elements))
    path.write_bytes(header + tiny + tag + pixels)
    if refused:
        with pytest.raises(UnusablePixels, match="more elements") as refusal:
            read_header(path, specific_tags=["Modality"])
        assert refusal.value.reason == "too_large"
    else:
        assert read_header(path, specific_tags=["Modality"]).Modality == "DX"


@pytest.mark.parametrize("megabytes", [1, 7])
def test_a_sequence_of_a_million_empty_items_is_refused_before_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, megabytes: int
) -> None:
    path = tmp_path / "a.dcm"
    make_film(path)
    views = struct.pack("<HH2sHI", 0x0054, 0x0220, b"SQ", 0, 0xFFFFFFFF) + EXPLICIT_ITEM * (megabytes * 2**17)
    path.write_bytes(path.read_bytes().partition(b"\xe0\x7f\x10\x00")[0] + views)
    parsed = []

    def read_partial(file: BytesIO, *args: Any, **kwargs: Any) -> Dataset:
        parsed.append(len(file.getbuffer()))
        return pydicom.filereader.read_partial(file, *args, **kwargs)

    monkeypatch.setattr("training.imaging.dicom.read_partial", read_partial)
    with pytest.raises(UnusablePixels) as refused:
        read_header(path, specific_tags=["ViewCodeSequence"])
    assert refused.value.reason == "too_large"
    assert max(parsed) <= HEADER_BYTES[0], "a megabyte of items takes five seconds"


def test_a_header_that_does_not_end_within_its_bound_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    make_film(path)
    private = struct.pack("<HH2sHI", 0x0029, 0x1010, b"OB", 0, 9 * 2**20) + bytes(9 * 2**20)
    head, tag, pixels = path.read_bytes().partition(b"\xe0\x7f\x10\x00")
    path.write_bytes(head + private + tag + pixels)
    with pytest.raises(UnusablePixels) as refused:
        read_header(path)
    assert refused.value.reason == "too_large"


def test_a_deflate_bomb_is_refused_before_it_goes_off(tmp_path: Path) -> None:
    deflated_bomb(tmp_path / "bomb", megabytes=100)
    assert (tmp_path / "bomb").stat().st_size < 150_000
    tracemalloc.start()
    assert refusal(tmp_path / "bomb", limits=PixelLimits(max_bytes=4 * 2**20)) == "too_large"
    assert read_header(tmp_path / "bomb").SOPInstanceUID == "1.2.3"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 * 2**20


def test_a_damaged_deflate_stream_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "film"
    make_film(path, transfer_syntax=DeflatedExplicitVRLittleEndian)
    content = bytearray(path.read_bytes())
    start = 144 + struct.unpack_from("<I", content, 140)[0]
    content[start : start + 8] = b"\xff" * 8
    path.write_bytes(content)
    assert refusal(path) == "unreadable_dicom"


def test_an_element_that_claims_four_gigabytes_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "film"
    make_film(path)
    head = path.read_bytes()[: 144 + struct.unpack_from("<I", path.read_bytes(), 140)[0]]
    path.write_bytes(head + struct.pack("<HH2sHI", 0x0009, 0x0010, b"UN", 0, 0xFFFFFFFE) + bytes(2000))
    tracemalloc.start()
    read_header(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * 2**20


def test_a_header_longer_than_the_first_gulp_is_read_to_its_end(tmp_path: Path) -> None:
    film = make_film()
    film.add_new(0x00091001, "OB", bytes(300_000))
    film.add_new(0x00181030, "LO", "behind the private block")
    film.file_meta.MediaStorageSOPClassUID, film.file_meta.MediaStorageSOPInstanceUID = film.SOPClassUID, UID("1.2.3")
    film.save_as(tmp_path / "film", enforce_file_format=True)
    assert read_header(tmp_path / "film").ProtocolName == "behind the private block"


@pytest.mark.parametrize("charset", ["ISO 2022 IR 87", "GB18030", "ISO_IR 192", "NO SUCH SET", None])
def test_a_name_in_any_character_set_keeps_no_film_out(tmp_path: Path, charset: str | None) -> None:
    film = make_film(SpecificCharacterSet=charset) if charset else make_film()
    film.add_new(0x00100010, "PN", b"\x1b$B;3ED\x1b(B^\xff\xfe\x80=\xe5\xb1\xb1")
    film.file_meta.MediaStorageSOPClassUID, film.file_meta.MediaStorageSOPInstanceUID = film.SOPClassUID, UID("1.2.3")
    film.save_as(tmp_path / "film", enforce_file_format=True)
    assert read_header(tmp_path / "film").Modality == "DX"
    assert PixelHeader.of(open_dataset(tmp_path / "film"), limits=DEFAULT_LIMITS).rows == 96


@pytest.mark.parametrize(
    ("reason", "attributes"),
    [
        ("no_pixel_data", {"PixelData": None}),
        ("no_pixel_data", {"PixelData": b""}),
        ("multi_frame", {"NumberOfFrames": 2}),
        ("multi_frame", {"NumberOfFrames": "1000000"}),
        ("too_large", {"Rows": 65535, "Columns": 65535}),
        ("too_large", {"Rows": 65535, "Columns": 1}),
        ("bad_pixel_header", {"Rows": None}),
        ("bad_pixel_header", {"Rows": 0}),
        ("bad_pixel_header", {"Columns": [8, 8]}),
        ("bad_pixel_header", {"BitsStored": 9}),
        ("bad_pixel_header", {"BitsStored": 0}),
        ("bad_pixel_header", {"BitsAllocated": None}),
        ("bad_pixel_header", {"PhotometricInterpretation": "MONOCHROME3"}),
        ("bad_pixel_header", {"PhotometricInterpretation": "RGB"}),
        ("bad_pixel_header", {"PhotometricInterpretation": None}),
        ("unsupported_pixels", {"BitsAllocated": 32, "BitsStored": 32}),
        ("unsupported_pixels", {"BitsAllocated": 1, "BitsStored": 1}),
        ("unsupported_pixels", {"BitsAllocated": 12}),
        ("unsupported_pixels", {"SamplesPerPixel": 4}),
        ("unsupported_pixels", {"PixelData": None, "FloatPixelData": np.zeros(64, "f4").tobytes()}),
    ],
)
def test_an_absurd_header_is_refused_before_anything_is_decoded(reason: str, attributes: dict[str, object]) -> None:
    assert header_refusal(**attributes) == reason


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.100.9", "1.2.840.113619.5.2", "1.2.3", "not a UID"])
def test_an_unknown_transfer_syntax_is_refused_by_name(syntax: str) -> None:
    film = make_film()
    film.file_meta.TransferSyntaxUID = UID(syntax)
    with pytest.raises(UnusablePixels) as refused:
        PixelHeader.of(film, limits=DEFAULT_LIMITS)
    assert refused.value.reason == "unsupported_transfer_syntax"


def test_one_frame_may_be_said_in_any_way() -> None:
    for frames in (1, "1", "01 "):
        assert PixelHeader.of(make_film(NumberOfFrames=frames), limits=DEFAULT_LIMITS).rows == 96


def test_every_file_of_the_collection_is_read_or_refused(shared: Path) -> None:
    paths = [
        path for path in (shared / "data" / "dicom").rglob("*") if path.is_file() and path.suffix not in (".csv", ".md")
    ]
    for path in paths:
        for read in (read_header, open_dataset):
            with suppress(UnusablePixels):  # and nothing else
                read(path)
    assert len(paths) > 200
