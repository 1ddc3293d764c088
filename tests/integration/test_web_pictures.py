"""Pictures for the page: each is drawn once, and no film waits behind the thumbnails of a list."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from db.morning import Film
from tests.support.contexts import MakeContext
from tests.support.dicom_files import make_film, texture
from tests.support.values import present
from worker.retention import OF_A_STUDY
from worker.web.images import FILM_PIXELS, THUMBNAIL_PIXELS, NoPicture, Pictures


@pytest.fixture
def pictures(make_context: MakeContext) -> Iterator[Pictures]:
    pictures = Pictures(make_context(checkpoint=None))
    yield pictures
    pictures.close()


@pytest.fixture
def film(tmp_path: Path) -> Film:
    """A film of 300 rows and 200 columns."""
    path = tmp_path / "film.dcm"
    uid = str(make_film(path, pixels=texture(300, 200), bits=12).SOPInstanceUID)
    return Film(1, 1, uid, str(path), "PA", "DX", 300, 200, "scored", True, None, None, None)


def size_of(picture: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(picture)).size


def test_a_film_is_drawn_while_thumbnails_have_their_turn_and_each_picture_is_drawn_once(pictures, film):
    with pictures._thumbnails:
        assert size_of(pictures.film(film)) == (FILM_PIXELS * 200 // 300, FILM_PIXELS)
    small = pictures.thumbnail(film)
    assert Image.open(io.BytesIO(small)).info == {}, "a picture holds pixels and nothing else"
    kept = list(pictures._folder.iterdir())
    assert [present(OF_A_STUDY.fullmatch(path.name))[1] for path in kept] == ["1", "1"], "`nightread prune` finds them"
    assert size_of(small) == (THUMBNAIL_PIXELS * 200 // 300, THUMBNAIL_PIXELS)
    Path(film.path).unlink()
    assert pictures.thumbnail(film) == small, "it is kept"
    with pytest.raises(NoPicture):
        pictures.thumbnail(replace(film, pixel_digest="of another film"))
