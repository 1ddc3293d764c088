"""Every transfer syntax gives the stored values bit for bit, or an error; never half an image."""

import struct
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import data_store
import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    HTJ2K,
    UID,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSTransferSyntaxes,
    RLELossless,
)

from tests.support.dicom_files import ENCODERS, LOSSLESS_SYNTAXES, LOSSY_SYNTAXES, make_film, save, texture
from training.imaging import jpeg_lossless
from training.imaging.decoders import DECODERS, END_MARKER, MOST_SCANS, START_OF_SCAN, decode, decode_reduced
from training.imaging.dicom import (
    DEFAULT_LIMITS,
    PixelHeader,
    Truncated,
    Undecodable,
    UnusablePixels,
    dataset_in,
    open_dataset,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

PYDICOM_FILES = Path(data_store.__file__).parent / "data"  # the pydicom-data wheel: no network
ENCAPSULATED = [syntax for syntax in (*LOSSLESS_SYNTAXES, *LOSSY_SYNTAXES) if syntax.is_encapsulated]


def name(syntax: UID) -> str:
    return str(syntax.keyword)


def stored(film: Dataset) -> NDArray[np.integer]:
    return decode(film, PixelHeader.of(film, limits=DEFAULT_LIMITS))[0]


def film_in(syntax: UID, *, rows: int = 200, columns: int = 150) -> Dataset:
    bits = 8 if syntax == JPEGBaseline8Bit else 12
    return make_film(pixels=texture(rows, columns, bits=bits), bits=bits, transfer_syntax=syntax)


def codestream_of(film: Dataset) -> bytes:
    return get_frame(film.PixelData, 0, number_of_frames=1).rstrip(b"\0")


def refusal(film: Dataset) -> str:
    with pytest.raises(UnusablePixels) as refused:
        stored(film)
    return refused.value.reason


@pytest.mark.parametrize(("bits", "signed"), [(8, 0), (10, 0), (12, 0), (16, 0), (12, 1), (16, 1)])
@pytest.mark.parametrize("syntax", LOSSLESS_SYNTAXES, ids=name)
def test_lossless_syntaxes_give_back_what_was_stored(syntax: UID, bits: int, signed: int) -> None:
    pixels = texture(61, 47, bits=bits, signed=bool(signed))  # odd sides: odd lengths, padding
    decoded = stored(make_film(pixels=pixels, bits=bits, transfer_syntax=syntax))
    assert decoded.dtype.newbyteorder("=") == pixels.dtype
    np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize("syntax", LOSSY_SYNTAXES, ids=name)
def test_lossy_syntaxes_come_close(syntax: UID) -> None:
    film = film_in(syntax)
    pixels = texture(200, 150, bits=int(film.BitsStored))
    assert np.abs(stored(film).astype(int) - pixels).max() < 2**film.BitsStored / 16


@pytest.mark.parametrize("predictor", range(1, 8))
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_all_predictors_of_jpeg_lossless_are_decoded(predictor: int, bits: int) -> None:
    pixels = texture(50, 40, bits=bits)
    film = make_film(pixels=pixels, bits=bits, transfer_syntax=JPEGLossless)
    stream = imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=predictor, bitspersample=bits)
    film.PixelData = encapsulate([bytes(stream)])
    np.testing.assert_array_equal(stored(film), pixels)


@pytest.mark.parametrize("syntax", ENCAPSULATED, ids=name)
def test_a_frame_in_many_fragments_is_put_together(syntax: UID) -> None:
    film = film_in(syntax)
    whole = stored(film)
    film.PixelData = encapsulate([codestream_of(film) + b"\0" * 3], fragments_per_frame=5)
    np.testing.assert_array_equal(stored(film), whole)


@pytest.mark.parametrize("padding", [b"", b"\0", b"\xff", b" ", bytes(512)])
@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEG2000Lossless, JPEGLSLossless, HTJ2KLossless], ids=name)
def test_padding_behind_the_end_marker_does_no_harm(syntax: UID, padding: bytes) -> None:
    film = film_in(syntax)
    whole = stored(film)
    film.PixelData = encapsulate([codestream_of(film) + padding])
    np.testing.assert_array_equal(stored(film), whole)


@pytest.mark.parametrize("syntax", ENCAPSULATED, ids=name)
def test_a_truncated_stream_is_never_half_an_image(syntax: UID) -> None:
    film = film_in(syntax)
    codestream = codestream_of(film)
    ends = [*range(1, len(codestream), len(codestream) // 40), *range(len(codestream) - 9, len(codestream))]
    for end in ends:
        film.PixelData = encapsulate([codestream[:end]])
        assert refusal(film) in ("truncated", "undecodable"), f"cut at {end} of {len(codestream)}"


@pytest.mark.parametrize("syntax", [s for s in ENCAPSULATED if s != RLELossless], ids=name)
def test_a_truncated_stream_with_an_end_marker_put_behind_it_is_never_half_an_image(syntax: UID) -> None:
    film = film_in(syntax)
    codestream = codestream_of(film)
    for share in np.linspace(0.05, 0.97, 24):
        film.PixelData = encapsulate([codestream[: int(share * len(codestream))] + b"\xff\xd9"])
        assert refusal(film) in ("truncated", "undecodable"), f"cut at {share:.0%}"


@pytest.mark.parametrize("syntax", [s for s in ENCAPSULATED if s != RLELossless], ids=name)
def test_a_stream_whose_rest_is_zeros_is_refused(syntax: UID) -> None:
    film = film_in(syntax)
    codestream = codestream_of(film)
    for share in (0.1, 0.5, 0.9):
        kept = codestream[: int(share * len(codestream))]
        film.PixelData = encapsulate([kept.ljust(len(codestream), b"\0")])
        assert refusal(film) in ("truncated", "undecodable")


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLossless, JPEGBaseline8Bit, JPEGExtended12Bit], ids=name)
def test_a_black_border_below_is_no_sign_of_truncation(syntax: UID) -> None:
    bits = 8 if syntax == JPEGBaseline8Bit else 12
    pixels = texture(128, 96, bits=bits)
    pixels[96:] = 0
    film = make_film(pixels=pixels, bits=bits, transfer_syntax=syntax)
    assert (stored(film)[100:] == 0).all()


@pytest.mark.parametrize("syntax", ENCAPSULATED, ids=name)
def test_bit_errors_end_in_an_image_of_the_right_size_or_an_error(syntax: UID) -> None:
    film = film_in(syntax, rows=64, columns=48)
    codestream = codestream_of(film)
    rng = np.random.default_rng(3)
    for _ in range(60):
        damaged = bytearray(codestream)
        damaged[rng.integers(len(damaged))] ^= int(rng.integers(1, 256))
        film.PixelData = encapsulate([bytes(damaged)])
        try:
            decoded = stored(film)
        except UnusablePixels:
            continue
        assert decoded.shape == (64, 48)


@pytest.mark.parametrize("halvings", [0, 1, 2])
def test_openjph_s_error_in_mid_image_is_not_lost(halvings: int) -> None:
    film = film_in(HTJ2KLossless)
    header = PixelHeader.of(film, limits=DEFAULT_LIMITS)
    codestream = bytearray(codestream_of(film))
    early = len(codestream) // 20  # in what a lower resolution needs too
    codestream[early : early + 100] = b"\xaa" * 100
    film.PixelData = encapsulate([bytes(codestream)])
    assert refusal(film) == "undecodable"
    assert not halvings or decode_reduced(film, header, halvings) is None


def test_a_marker_in_the_packets_of_jpeg_2000_is_damage_unless_it_is_announced() -> None:
    film = film_in(JPEG2000Lossless)
    codestream = bytearray(codestream_of(film))
    packets = codestream.index(b"\xff\x93") + 2
    codestream[packets + 500 : packets + 502] = b"\xff\x91"  # SOP
    film.PixelData = encapsulate([bytes(codestream)])
    with pytest.raises(Undecodable, match="marker"):
        stored(film)
    codestream[codestream.index(b"\xff\x52") + 4] |= 2  # Scod: there may be SOP markers
    film.PixelData = encapsulate([bytes(codestream)])
    try:
        stored(film)
    except UnusablePixels as refused:
        assert "marker" not in str(refused)  # noqa: PT017 - it may be decoded, or be damage of another kind


@pytest.mark.parametrize("marker", [b"\xff\xd0", b"\xff\xd3", b"\xff\xc4", b"\xff\xff\x00"])
def test_a_marker_in_a_jpeg_scan_is_damage(marker: bytes) -> None:
    film = film_in(JPEGBaseline8Bit)
    codestream = codestream_of(film)
    middle = codestream.index(START_OF_SCAN) + 2000
    film.PixelData = encapsulate([codestream[:middle] + marker + codestream[middle + len(marker) :]])
    assert refusal(film) in ("undecodable", "truncated")


BURSTS = {"ones": b"\xff" * 2000, "noise": np.random.default_rng(3).bytes(2000)}  # zeros are codes like any other


@pytest.mark.parametrize("at", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("syntax", [each for each in DECODERS if each in ENCODERS], ids=name)
def test_a_burst_in_the_middle_of_a_film_is_refused(syntax: UID, at: float) -> None:
    film = film_in(syntax)
    codestream, whole = codestream_of(film), stored(film)
    for kind, noise in BURSTS.items():
        burst, start = noise[: len(codestream) // 8], int(at * len(codestream))
        damaged = codestream[:start] + burst + codestream[start + len(burst) :]
        film.PixelData = encapsulate([damaged])
        with suppress(UnusablePixels):
            np.testing.assert_array_equal(stored(film), whole, err_msg=kind)


@pytest.mark.parametrize("offsets", [[4], [0, 4], [2**31], [0, 0, 0]])
@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, RLELossless, HTJ2KLossless], ids=name)
def test_a_wrong_basic_offset_table_costs_no_film(syntax: UID, offsets: list[int]) -> None:
    film = film_in(syntax)
    whole, old = stored(film), film.PixelData
    after_table = 8 + int.from_bytes(old[4:8], "little")
    table = struct.pack(f"<{len(offsets)}I", *offsets)
    film.PixelData = old[:4] + struct.pack("<I", len(table)) + table + old[after_table:]
    np.testing.assert_array_equal(stored(film), whole)


@pytest.mark.parametrize("junk", [b"junk" * 25, b"\xff" * 64, bytes(range(256))])
@pytest.mark.parametrize("syntax", [each for each in DECODERS if each in ENCODERS], ids=name)
def test_junk_behind_the_end_marker_costs_no_film(syntax: UID, junk: bytes) -> None:
    film = film_in(syntax)
    whole = stored(film)
    film.PixelData = encapsulate([codestream_of(film) + junk])
    np.testing.assert_array_equal(stored(film), whole)


@pytest.mark.parametrize("junk", [b"\0" * 10, b"junk" * 4, b"\xff" * 64, bytes(4096)])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEGLosslessSV1], ids=name)
def test_junk_behind_the_pixel_data_costs_no_film(syntax: UID, junk: bytes) -> None:
    film = film_in(syntax)
    file = BytesIO()
    save(film, file)
    read = dataset_in(file.getvalue() + junk, limits=DEFAULT_LIMITS)
    np.testing.assert_array_equal(stored(read), stored(film))


def test_a_progressive_film_of_many_scans_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    film = film_in(JPEGBaseline8Bit)
    codestream = codestream_of(film)
    scan = codestream[codestream.index(START_OF_SCAN) : -2]
    film.PixelData = encapsulate([codestream[:-2] + scan * MOST_SCANS + END_MARKER])
    monkeypatch.setattr(imagecodecs, "jpeg8_decode", None)  # calling it would be a TypeError
    assert refusal(film) == "undecodable"


# Not the other predictors of JPEG Lossless: by most of them one wrong sample moves all below it.
SURELY_FOUND = (JPEGLosslessSV1, JPEGLSLossless, RLELossless, HTJ2KLossless, JPEG2000Lossless)


@pytest.mark.parametrize("syntax", SURELY_FOUND, ids=name)
def test_a_flipped_bit_is_refused_or_changes_little(syntax: UID) -> None:
    film = film_in(syntax)
    codestream, whole = codestream_of(film), stored(film).astype(int)
    rng, refused = np.random.default_rng(3), 0
    for bit in rng.integers(8 * len(codestream), size=60):
        damaged = bytearray(codestream)
        damaged[bit // 8] ^= 1 << bit % 8
        film.PixelData = encapsulate([bytes(damaged)])
        try:
            changed = np.abs(stored(film).astype(int) - whole)
        except UnusablePixels:
            refused += 1
            continue
        assert changed.mean() < 4095 / 25
    assert refused


@pytest.mark.parametrize("predictor", range(1, 8))
def test_jpeg_lossless_is_used_up_to_its_last_bit(predictor: int) -> None:
    pixels = texture(50, 40, bits=12)
    codestream = bytes(imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=predictor, bitspersample=12))
    np.testing.assert_array_equal(imagecodecs.jpeg8_decode(codestream), pixels)

    def is_used_up(codestream: bytes) -> bool:
        ff = np.flatnonzero(np.frombuffer(codestream[:-1], dtype=np.uint8) == 0xFF)
        return jpeg_lossless.require_used_up(codestream, pixels, ff=ff)

    assert is_used_up(codestream)
    more = codestream[:-2] + b"\x55" + codestream[-2:]
    with pytest.raises(Undecodable):
        is_used_up(more)
    with pytest.raises(Truncated):
        is_used_up(codestream[:-4] + codestream[-2:])


@pytest.mark.parametrize(("brighter", "sound"), [(300, True), (2500, False)])
def test_lossy_htj2k_may_overshoot_at_edges_and_no_further(brighter: int, sound: bool) -> None:
    pixels = np.full((64, 64), 4000, dtype=np.uint16)
    pixels[20:40, 20:40] += np.uint16(brighter)
    film = make_film(pixels=texture(64, 64), bits=12, transfer_syntax=HTJ2K)
    film.PixelData = encapsulate([bytes(imagecodecs.htj2k_encode(pixels, reversible=False))])
    if sound:
        assert stored(film).max() > 4095
    else:
        assert refusal(film) == "undecodable"


def test_an_rle_segment_with_one_pixel_too_many_is_refused_unless_it_is_filled_up_with_a_zero() -> None:
    pixels = texture(20, 20, bits=8) | np.uint8(1)  # no zeros
    film = make_film(pixels=pixels, bits=8, transfer_syntax=RLELossless)
    frame = get_frame(film.PixelData, 0, number_of_frames=1)
    film.PixelData = encapsulate([frame + b"\0\0"])
    np.testing.assert_array_equal(stored(film), pixels)
    for end in (b"\7", b"\0" * 30):
        longer = np.append(pixels.ravel()[: 401 - len(end)], np.frombuffer(end, dtype=np.uint8))
        film.PixelData = encapsulate([frame[:64] + imagecodecs.packbits_encode(longer)])
        assert refusal(film) == "undecodable"


@pytest.mark.parametrize("predictor", [1, 4])
def test_jpeg_lossless_that_decodes_to_more_than_its_samples_hold_is_refused(predictor: int) -> None:
    pixels = texture(50, 40, bits=12)
    pixels[20:, 20:] += 1000  # as a wrong difference leaves all that is predicted from it
    film = make_film(pixels=texture(50, 40, bits=12), bits=12, transfer_syntax=JPEGLossless)
    codestream = imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=predictor, bitspersample=12)
    film.PixelData = encapsulate([bytes(codestream)])
    assert pixels.max() > 4095
    assert refusal(film) == "undecodable"


@pytest.mark.parametrize("syntax", [s for s in ENCAPSULATED if s != RLELossless], ids=name)
def test_a_codestream_larger_than_its_header_says_is_not_decoded(syntax: UID) -> None:
    film = film_in(syntax)
    film.Rows, film.Columns = 20, 20
    assert refusal(film) == "undecodable"


def test_a_codestream_with_more_bits_than_are_allocated_is_refused() -> None:
    film = make_film(pixels=texture(20, 20, bits=8), transfer_syntax=JPEGLosslessSV1)
    film.PixelData = encapsulate([bytes(ENCODERS[JPEGLosslessSV1](texture(20, 20, bits=12), 12))])
    assert refusal(film) == "bad_pixel_header"


def test_native_pixels_that_are_too_few_are_truncated_and_too_many_are_not_read() -> None:
    film = make_film(pixels=texture(20, 20, bits=12), bits=12)
    whole = film.PixelData
    film.PixelData = whole + bytes(100)
    np.testing.assert_array_equal(stored(film), texture(20, 20, bits=12))
    film.PixelData = whole[:-2]
    assert refusal(film) == "truncated"


def test_compressed_pixels_under_a_native_syntax_are_refused() -> None:
    film = film_in(JPEGLosslessSV1)
    film["PixelData"].is_undefined_length = True
    film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    assert refusal(film) == "bad_pixel_header"


def test_native_pixels_under_a_compressed_syntax_are_refused() -> None:
    film = make_film(pixels=texture(64, 48, bits=12), bits=12)
    for syntax in ENCAPSULATED:
        film.file_meta.TransferSyntaxUID = syntax
        assert refusal(film) in ("undecodable", "truncated")


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless], ids=name)
def test_overlay_bits_above_the_stored_ones_are_removed(syntax: UID) -> None:
    pixels = texture(30, 20, bits=12)
    overlaid = pixels | (np.arange(600, dtype=np.uint16).reshape(30, 20) % 16 << 12)
    film = make_film(pixels=overlaid, bits=16, transfer_syntax=syntax, BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(stored(film), pixels)


def test_signed_values_that_were_written_without_their_high_bits_get_their_sign_back() -> None:
    pixels = texture(30, 20, bits=12, signed=True)
    film = make_film(pixels=(pixels.view(np.uint16) & 0xFFF), bits=12, PixelRepresentation=1)
    np.testing.assert_array_equal(stored(film), pixels)


@pytest.mark.parametrize("syntax", DECODERS, ids=name)
def test_every_fast_decoder_meets_an_empty_frame_with_an_error(syntax: UID) -> None:
    film = make_film(pixels=texture(20, 20, bits=8))
    film.file_meta.TransferSyntaxUID = syntax
    for frame in (b"\0\0", b"\xff\xd9", b"\xff\xd8\xff\xd9", b"\xff\x4f\xff\x51\xff\xd9", b"\xff\xd8" + b"\xff" * 50):
        film.PixelData = encapsulate([frame])
        assert refusal(film) in ("undecodable", "truncated", "bad_pixel_header")


def same_as_pydicom(path: Path) -> bool:
    """Whether a file's stored values are what pydicom's default plugins make of it; skips what is no single film."""
    try:
        film = open_dataset(path)
        header = PixelHeader.of(film, limits=DEFAULT_LIMITS)
        ours, _ = decode(film, header)
    except UnusablePixels:
        return False
    film.file_meta.TransferSyntaxUID = header.transfer_syntax
    lossy_dct = (JPEGBaseline8Bit, JPEGExtended12Bit)
    if header.transfer_syntax in lossy_dct or header.transfer_syntax not in known_to_pydicom():
        return False  # two inverse cosine transforms may differ by one
    theirs = film.pixel_array
    assert ours.dtype.kind == theirs.dtype.kind
    np.testing.assert_array_equal(ours, theirs, err_msg=path.name)
    return True


def known_to_pydicom() -> set[UID]:
    return {*LOSSLESS_SYNTAXES, *LOSSY_SYNTAXES, *JPEG2000TransferSyntaxes, *JPEGLSTransferSyntaxes}


def test_the_files_of_the_pydicom_data_wheel_are_bit_exact() -> None:
    paths = sorted(PYDICOM_FILES.glob("*.dcm"))
    assert sum(same_as_pydicom(path) for path in paths if path.stat().st_size < 600_000) > 25


@pytest.mark.slow
def test_the_collected_files_are_bit_exact(shared: Path) -> None:
    paths = sorted(path for path in (shared / "data" / "dicom").glob("*/*") if path.is_file())
    small = [path for path in paths if path.stat().st_size < 500_000]  # all of them take pydicom 20 seconds
    assert sum(same_as_pydicom(path) for path in small) > 90
