"""The phantoms: deterministic, honest about what they hold, and in the shape that their files promise."""

from pathlib import Path

import numpy as np
import pydicom
import pytest

from training.findings import FINDINGS
from worker.demo import film as drawing
from worker.demo.canvas import Map, Sheet, curve, places, ribbon
from worker.demo.film import Film, picture
from worker.demo.findings import DRAWN, draw, reshape
from worker.demo.night import Written, generate, plan
from worker.demo.thorax import Build, Thorax
from worker.intake.views import View, frontal

SMALL = Sheet(height=352, width=288, scale=226)


def drawn(*findings: str, side: str = "left") -> Map:
    """A small thorax with these findings; the same random numbers each time."""
    thorax = Thorax(SMALL, reshape(Build(), findings), np.random.default_rng(3))
    draw(thorax, findings, side=side)
    return thorax.render()


def region(left: float, top: float, right: float, bottom: float) -> Map:
    """A mask of a box given in lung heights."""
    x, y = SMALL.grid
    return ((x > left) & (x < right) & (y > top) & (y < bottom)).astype(np.float32)


def brightness(image: Map, where: Map) -> float:
    return float((image * where).sum() / where.sum())


@pytest.fixture(scope="module")
def normal() -> Map:
    return drawn()


@pytest.fixture
def cheap_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Films of 64 x 48 grey pixels, for tests that look at files and not at pictures."""

    def grey(film: Film, *, rng: np.random.Generator) -> Map:
        return rng.random((64, 48), dtype=np.float32)

    monkeypatch.setattr(drawing, "picture", grey)


@pytest.fixture
def night(cheap_pictures: None, tmp_path: Path) -> list[Written]:
    return generate(tmp_path / "night", seed=7)


# ---------------------------------------------------------------------------------------------------------- the body


def test_lungs_are_dark_the_mediastinum_and_the_belly_are_white_and_air_is_black(normal: Map) -> None:
    lungs = brightness(normal, region(0.25, 0.2, 0.4, 0.8))
    heart, belly = brightness(normal, region(-0.05, 0.6, 0.15, 0.9)), brightness(normal, region(-0.3, 1.15, -0.1, 1.25))
    outside = brightness(normal, region(0.4, -0.25, 0.6, -0.2))
    assert outside < 0.15 < lungs < 0.5 < heart < belly


def test_the_heart_lies_on_the_patients_left_which_is_the_right_of_the_picture(normal: Map) -> None:
    assert brightness(normal, region(0.15, 0.7, 0.25, 0.9)) > brightness(normal, region(-0.25, 0.7, -0.15, 0.9)) + 0.15


def test_every_finding_of_the_vocabulary_can_be_drawn_and_no_other() -> None:
    assert set(DRAWN) | {"Cardiomegaly"} == set(FINDINGS)
    assert {finding for study in plan() for film in study.films for finding in film.findings} == set(FINDINGS)


@pytest.mark.parametrize("finding", FINDINGS)
def test_a_finding_changes_the_film(finding: str, normal: Map) -> None:
    assert np.abs(drawn(finding) - normal).max() > 0.05


@pytest.mark.parametrize("finding", ["Mass", "Consolidation", "Pneumothorax", "Effusion", "Pleural_Thickening"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_finding_of_one_lung_leaves_the_other_alone(finding: str, side: str, normal: Map) -> None:
    change = np.abs(drawn(finding, side=side) - normal)
    left, right = (float((change * region(*box)).max()) for box in ((0.2, 0, 0.6, 1.1), (-0.6, 0, -0.2, 1.1)))
    here, there = (left, right) if side == "left" else (right, left)
    assert here > 4 * there


def test_a_pneumothorax_is_darker_outside_the_pleural_line_and_the_line_is_bright(normal: Map) -> None:
    film, apex = drawn("Pneumothorax"), region(0.2, 0.02, 0.4, 0.3)
    assert ((film - normal) * apex).min() < -0.05
    assert ((film - normal) * apex).max() > 0.05


def test_an_effusion_blunts_the_angle_and_leaves_the_apex(normal: Map) -> None:
    film = drawn("Effusion")
    assert brightness(film - normal, region(0.35, 1.0, 0.48, 1.08)) > 0.2
    assert abs(brightness(film - normal, region(0.2, 0.1, 0.35, 0.4))) < 0.02


def test_cardiomegaly_is_a_heart_wider_than_half_the_chest() -> None:
    ratios = [
        (build.heart_left + build.heart_right) / (2 * build.cage)
        for build in (Build(), reshape(Build(), ("Cardiomegaly",)))
    ]
    assert ratios[0] < 0.5 < ratios[1]


def test_emphysema_flattens_the_diaphragm_and_darkens_the_lungs(normal: Map) -> None:
    assert reshape(Build(), ("Emphysema",)).dome_rise < 0.5 * Build().dome_rise
    assert brightness(drawn("Emphysema"), region(0.3, 0.3, 0.42, 0.9)) < brightness(normal, region(0.3, 0.3, 0.42, 0.9))


def test_a_hernia_holds_air_above_fluid() -> None:
    film = drawn("Hernia")
    assert brightness(film, region(-0.02, 0.78, 0.1, 0.82)) < brightness(film, region(-0.02, 0.9, 0.1, 0.94)) - 0.1


# ---------------------------------------------------------------------------------------------------------- the tools


def test_a_closed_curve_passes_through_its_points_and_comes_back() -> None:
    network_input = places("0,0 1,0 1,1 0,1")
    line = curve(network_input, closed=True, steps=8)
    np.testing.assert_allclose(line[[0, 8, 16, 24, -1]], network_input[[0, 1, 2, 3, 0]], atol=1e-12)


def test_a_ribbon_is_as_wide_as_asked() -> None:
    outline = ribbon(places("0,0 1,0 2,0"), 0.5)
    assert np.ptp(outline[:, 1]) == pytest.approx(0.5)


def test_pixels_and_grid_are_inverse_to_each_other_on_a_tilted_sheet() -> None:
    sheet = Sheet(height=200, width=160, scale=120, tilt_degrees=7)
    x, y = sheet.grid
    column, row = sheet.pixels([[x[50, 30], y[50, 30]]])[0]
    assert (column, row) == pytest.approx((30, 50), abs=1e-3)


# ---------------------------------------------------------------------------------------------------------- the night


def test_the_view_filter_decides_about_every_film_as_expected(night: list[Written]) -> None:
    for each in night:
        if each.outcome in ("kept", "skipped", "duplicate"):
            decision = frontal(pydicom.dcmread(each.path, stop_before_pixels=True, force=True))
            decided = "" if isinstance(decision, View) else decision.reason
            assert decided == ("" if each.outcome == "duplicate" else each.reason), each.title


def test_what_is_kept_can_be_decoded_and_looks_as_drawn_in_every_syntax(cheap_pictures: None, tmp_path: Path) -> None:
    for study in plan():
        for number, film in enumerate(study.films, 1):
            if film.outcome != "kept":
                continue
            dataset = drawing.phantom_dataset(study, film, number=number, seed=7)
            drawing.save(dataset, tmp_path / "film", damage=film.damage)
            stored = pydicom.dcmread(tmp_path / "film", force=True)
            if film.damage == "no preamble":
                stored.file_meta = pydicom.dataset.FileMetaDataset()
                stored.file_meta.TransferSyntaxUID = film.syntax
            shown = (stored.pixel_array - float(stored.WindowCenter)) / float(stored.WindowWidth) + 0.5
            if film.photometric == "MONOCHROME1":
                shown = 1 - shown
            expected = drawing.picture(film, rng=np.random.default_rng([7, study.number, number]))
            assert np.abs(shown - expected).mean() < (0.05 if film.syntax in drawing.LOSSY else 0.002), study.title


def test_the_night_holds_many_syntaxes_both_photometric_interpretations_and_one_stat() -> None:
    films = [film for study in plan() for film in study.films]
    assert len({film.syntax for film in films}) >= 14
    assert {film.photometric for film in films} == {"MONOCHROME1", "MONOCHROME2"}
    assert {"PA", "AP", "LL", "HAND"} == {film.view for film in films}
    assert [study.stat for study in plan()].count(True) == 1
    assert {film.outcome for film in films} == {"kept", "skipped", "quarantined"}


def test_the_same_seed_writes_the_same_bytes_and_another_seed_other_uids(cheap_pictures: None, tmp_path: Path) -> None:
    first, again, other = (
        generate(tmp_path / name, seed=seed, studies=plan()[:4]) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert [each.path.read_bytes() for each in first] == [each.path.read_bytes() for each in again]
    assert not {each.sop_instance_uid for each in first[:4]} & {each.sop_instance_uid for each in other}


def test_every_uid_is_legal_and_no_two_films_share_one(night: list[Written]) -> None:
    uids = [each.sop_instance_uid for each in night if each.outcome not in ("duplicate", "ignored")]
    assert len(set(uids)) == len(uids)
    assert all(pydicom.uid.UID(uid).is_valid for uid in uids)


def test_identities_are_plainly_made_up(night: list[Written]) -> None:
    for each in night:
        if each.outcome != "ignored":
            header = pydicom.dcmread(each.path, stop_before_pixels=True, force=True)
            assert str(header.PatientName).startswith("PHANTOM^")
            assert header.PatientID.startswith("DEMO-")


def test_damaged_files_are_damaged_as_they_say(night: list[Written]) -> None:
    by_reason = {each.reason: each.path for each in night}
    assert "PixelData" not in pydicom.dcmread(by_reason["no_pixel_data"])
    assert not by_reason["truncated"].read_bytes().endswith(b"\xfe\xff\xdd\xe0\0\0\0\0")
    with pytest.raises(pydicom.errors.InvalidDicomError):
        pydicom.dcmread(by_reason["not_dicom"])


def test_the_resent_film_is_a_copy(night: list[Written]) -> None:
    copy = next(each for each in night if each.outcome == "duplicate")
    original = next(each for each in night if each.sop_instance_uid == copy.sop_instance_uid)
    assert copy.path != original.path
    assert copy.path.read_bytes() == original.path.read_bytes()


@pytest.mark.parametrize("view", ["PA", "AP", "LL", "HAND"])
def test_a_full_picture_has_a_films_size_and_range(view: str) -> None:
    film = picture(Film(view=view), rng=np.random.default_rng(1))
    assert min(film.shape) >= 1000
    assert 0 <= film.min() < 0.1
    assert 0.8 < film.max() <= 1
    assert film.dtype == np.float32


def test_progress_is_told_after_each_study(cheap_pictures: None, tmp_path: Path) -> None:
    told: list[int] = []
    generate(tmp_path, seed=1, studies=plan()[:3], on_study=lambda: told.append(1))
    assert len(told) == 3


def test_studies_are_numbered_in_order_of_arrival(night: list[Written]) -> None:
    moments = [
        header.AcquisitionDate + header.AcquisitionTime
        for each in night
        if each.outcome == "kept" and (header := pydicom.dcmread(each.path, stop_before_pixels=True, force=True))
    ]
    assert moments == sorted(moments)
