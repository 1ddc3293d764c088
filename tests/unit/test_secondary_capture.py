"""The picture for viewers: the film under its words, in its own shape."""

from dataclasses import replace
from io import BytesIO

import numpy as np
import pydicom
import pytest

from db.delivery_content import FilmOfStudy
from tests.support.contexts import MakeContext
from tests.support.results import a_result
from training.checkpoint import Checkpoint
from training.findings import FINDINGS
from training.imaging.preprocessing import Preprocessing
from worker.delivery import secondary_capture
from worker.delivery.secondary_capture import Picture, as_dicom, with_words, words_of
from worker.scoring.decoding import DecodeOptions, NetworkInput


def test_the_words_say_what_was_found_by_whom_and_that_it_is_not_for_diagnosis() -> None:
    assert words_of(a_result("sc")) == [
        "AI, not for diagnosis",
        "Pneumothorax: probability 0.88 (threshold 0.50)",
        "Urgency category A; Nightread mobilenet 5e5e5e5e5e5e",
    ]


def test_the_words_stand_above_the_film_and_cover_nothing_of_it() -> None:
    film = np.full((300, 900, 3), 7, dtype=np.uint8)
    picture = with_words(film, words_of(a_result("sc")))
    assert (picture[-300:, :900] == 7).all()
    assert (picture[:-300] == 255).any()
    narrow = with_words(film[:, :100], words_of(a_result("sc")))
    assert narrow.shape[1] > 500, "no word is cut"


def test_the_object_belongs_to_the_films_study_and_names_the_film() -> None:
    result = a_result("sc")
    buffer = BytesIO()
    as_dicom(np.zeros((40, 30, 3), dtype=np.uint8), result, result.films[1]).save_as(buffer, enforce_file_format=True)
    image = pydicom.dcmread(BytesIO(buffer.getvalue()))
    assert (image.StudyInstanceUID, image.SOPInstanceUID) == ("1.2.3", result.object_uid)
    assert str(image.PatientName) == "Müller^Jürgen"
    assert image.SourceImageSequence[0].ReferencedSOPInstanceUID == "1.2.3.1.2"
    assert image["Laterality"].is_empty
    assert image.pixel_array.shape == (40, 30, 3)
    assert "not for diagnosis" in image.SeriesDescription


def test_a_finding_whose_maps_do_not_point_has_a_bare_film_and_a_sentence(
    monkeypatch: pytest.MonkeyPatch, make_context: MakeContext
) -> None:
    record = {"Pneumothorax": {"boxes": 40, "hits": 2, "chance": 0.1}}
    checkpoint = Checkpoint(network="mobilenet", training={"pointing": record})
    monkeypatch.setattr(secondary_capture, "_checkpoint", lambda *_: checkpoint)
    monkeypatch.setattr(secondary_capture, "_decoded", lambda *_: np.full((64, 64), 90, dtype=np.uint8))
    told: list[str] = []

    def with_words_kept(film: Picture, words: list[str]) -> Picture:
        told.extend(words)
        return with_words(film, words)

    monkeypatch.setattr(secondary_capture, "with_words", with_words_kept)
    result = a_result("sc")
    films = tuple(replace(film, probabilities=(0.5,) * len(FINDINGS)) for film in result.films)
    image = secondary_capture.secondary_capture(make_context(checkpoint=None), replace(result, films=films))
    assert "2 of 40 outlines hit" in told[-1]
    assert (image.pixel_array[-100:, 200:300] == 90).all()


def test_film_and_heat_map_are_decoded_by_one_pool(monkeypatch: pytest.MonkeyPatch, make_context: MakeContext) -> None:
    """A decoder process takes seconds to start."""
    sizes: list[list[int]] = []

    class CountingPool:
        def __init__(self, _options: DecodeOptions, *, decoders: int) -> None:
            assert decoders == 1
            sizes.append([])

        def __enter__(self) -> "CountingPool":
            return self

        def __exit__(self, *_: object) -> None:
            """Nothing."""

        def picture(self, _film: FilmOfStudy, preprocessing: Preprocessing) -> NetworkInput:
            sizes[-1].append(preprocessing.size)
            return NetworkInput(np.full((preprocessing.size,) * 2, 90, dtype=np.uint8), "digest")

    checkpoint = Checkpoint(network="mobilenet", preprocessing=Preprocessing(size=64))
    monkeypatch.setattr(secondary_capture, "_checkpoint", lambda *_: checkpoint)
    monkeypatch.setattr(secondary_capture, "DecoderPool", CountingPool)
    monkeypatch.setattr(secondary_capture, "_heat", lambda *_: np.ones((64, 64), dtype=np.float32))
    result = a_result("sc")
    films = tuple(replace(film, probabilities=(0.9,) * len(FINDINGS)) for film in result.films)
    secondary_capture.secondary_capture(make_context(checkpoint=None), replace(result, films=films))
    assert sizes == [[secondary_capture.LONGER_SIDE, 64]]
