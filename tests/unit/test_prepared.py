"""Films come out of folders and archives unharmed, at their places, and a killed preparation goes on where it was."""

import io
import os
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.support.dicom_files import make_film, texture
from training import prepared
from training.findings import FINDINGS
from training.imaging.preprocessing import Preprocessing
from training.manifest import UNKNOWN, ManifestError, frontal, read_rows
from training.sources import Encoded

FILMS = 40


def film(number: int) -> NDArray[np.uint8]:
    """A 64 x 80 film that carries its number as the brightness of its right half."""
    pixels = np.zeros((64, 80), dtype=np.uint8)
    pixels[:, 40:] = 50 + number
    return pixels


def png(pixels: NDArray[np.uint8], mode: str = "L") -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(encoded, "PNG")
    return encoded.getvalue()


def names() -> list[str]:
    return [f"{number:08}_000.png" for number in range(FILMS)]


@pytest.fixture
def manifest() -> pd.DataFrame:
    labels = pd.DataFrame(np.eye(FILMS, len(FINDINGS), dtype=np.uint8), columns=list(FINDINGS))
    described: dict[str, Any] = {
        "image": names(), "patient_id": [str(k // 2) for k in range(FILMS)], "age_years": 50.0, "sex": "F",
        "view_position": "PA", "split": "", "source": "",
    }  # fmt: skip
    return labels.assign(**described)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A zip in Kaggle's layout, its films in another order than the table's."""
    path = tmp_path / "archive.zip"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("Data_Entry_2017.csv", "not a film")
        for number in np.random.default_rng(2).permutation(FILMS):
            opened.writestr(f"images_{number % 12 + 1:03}/images/{names()[number]}", png(film(number)))
    return path


def brightness(opened: prepared.Prepared) -> list[int]:
    return [int(opened.images[row][16, 28]) - 50 for row in opened.manifest.index]


def test_a_set_that_was_prepared_before_there_were_sources_opens_without_any(
    manifest: pd.DataFrame, archive: Path, tmp_path: Path
) -> None:
    prepared.prepare(manifest.assign(source="east"), [archive], tmp_path, sizes=(32,))
    assert prepared.open_prepared(tmp_path).manifest["source"].unique().tolist() == ["east"]
    written = pd.read_csv(tmp_path / "manifest.csv", dtype=str, keep_default_na=False)
    written.drop(columns="source").to_csv(tmp_path / "manifest.csv", index=False)
    assert prepared.open_prepared(tmp_path).manifest["source"].unique().tolist() == [""]


def test_films_out_of_a_zip_lie_at_their_places_with_their_labels(
    manifest: pd.DataFrame, archive: Path, tmp_path: Path
) -> None:
    counts = prepared.prepare(manifest, [archive], tmp_path / "out", sizes=(32, 48))
    assert counts == {"ready": FILMS}
    opened = prepared.open_prepared(tmp_path / "out")
    assert opened.images.shape == (FILMS, 32, 32)
    assert opened.preprocessing.size == 32
    assert brightness(opened) == list(range(FILMS))
    assert opened.manifest[list(FINDINGS)].to_numpy().tolist() == manifest[list(FINDINGS)].to_numpy().tolist()
    assert prepared.open_prepared(tmp_path / "out", size=48).images.shape == (FILMS, 48, 48)


def test_folders_tars_and_zips_give_the_same_bytes(manifest: pd.DataFrame, archive: Path, tmp_path: Path) -> None:
    folder = tmp_path / "films"
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder)  # noqa: S202  # our own archive
    tar = tmp_path / "images_01.tar.gz"
    with tarfile.open(tar, "w:gz") as written:
        written.add(folder, arcname="images")
    caches = []
    for number, source in enumerate((archive, folder, tar)):
        prepared.prepare(manifest, [source], tmp_path / str(number), sizes=(32,))
        caches.append((tmp_path / str(number) / "images-32.npy").read_bytes())
    assert caches[0] == caches[1] == caches[2]


def test_processes_give_the_same_bytes_as_one(manifest: pd.DataFrame, archive: Path, tmp_path: Path) -> None:
    caches = []
    for processes in (0, 1):
        out = tmp_path / str(processes)
        prepared.prepare(manifest, [archive], out, sizes=(32,), processes=processes)
        caches.append((out / "images-32.npy").read_bytes())
    assert caches[0] == caches[1]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [0, 1])
def test_a_killed_preparation_goes_on_and_ends_byte_for_byte_the_same(
    manifest: pd.DataFrame, archive: Path, tmp_path: Path, processes: int
) -> None:
    manifest.to_pickle(tmp_path / "manifest.pickle")
    killed = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        import pandas as pd
        from training import prepared
        prepared._FILMS_PER_SYNC = 8
        here, done = Path(sys.argv[1]), 0
        def progress(films):
            global done
            done += films
            if done >= int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
        table = pd.read_pickle(here / "manifest.pickle")
        prepared.prepare(table, [here / "archive.zip"], here / "killed", sizes=(32,), processes=int(sys.argv[3]),
                         progress=progress)
    """)
    for films in (11, 30):
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-c", killed, str(tmp_path), str(films), str(processes)]
        # Its output ends when the last process that holds it is gone: the pool's too.
        ended = subprocess.run(command, env=environment, check=False, capture_output=True, timeout=60)
        assert ended.returncode == -9
        with pytest.raises(prepared.NotPrepared, match="to its end"):
            prepared.open_prepared(tmp_path / "killed")
    with (tmp_path / "killed" / "progress.csv").open("a") as torn:
        torn.write("3")
    done: list[int] = []
    prepared.prepare(manifest, [archive], tmp_path / "killed", sizes=(32,), progress=done.append)
    assert done[0] == 24  # three whole records of 8 films survived the two kills
    prepared.prepare(manifest, [archive], tmp_path / "undisturbed", sizes=(32,))
    for name in ("images-32.npy", "manifest.csv", "bad_files.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


def test_dicom_films_of_any_csv_are_read_as_at_night(tmp_path: Path) -> None:
    (tmp_path / "films" / "p1").mkdir(parents=True)
    plain = make_film(tmp_path / "films" / "p1" / "1.dcm", bits=12, pixels=texture(seed=1))
    inverted = 4095 - plain.pixel_array
    make_film(tmp_path / "films" / "p1" / "2.dcm", bits=12, pixels=inverted, photometric="MONOCHROME1")
    make_film(tmp_path / "films" / "p1" / "3.dcm", bits=12, pixels=np.zeros((64, 64), dtype=np.uint16))
    table = tmp_path / "films.csv"
    table.write_text("path,patient,view,Effusion\np1/1.dcm,a,PA,1\np1/2.dcm,b,AP,0\np1/3.dcm,c,AP,0\n")

    counts = prepared.prepare(frontal(read_rows(table)), [tmp_path / "films"], tmp_path / "out", sizes=(32,))

    assert counts == {"ready": 2, "constant_image": 1}
    opened = prepared.open_prepared(tmp_path / "out")
    assert opened.findings == ("Effusion",)
    np.testing.assert_allclose(opened.images[0].astype(int), opened.images[1].astype(int), atol=1)
    assert np.ptp(opened.images[0]) > 100


def test_bad_films_are_reported_and_leave_gaps(manifest: pd.DataFrame, tmp_path: Path) -> None:
    films = {name: png(film(number)) for number, name in enumerate(names())}
    films[names()[3]] = png(np.full((64, 80), 7, dtype=np.uint8))
    films[names()[5]] = png(film(5), "RGBA")
    films[names()[7]] = films[names()[7]][:60]
    films[names()[9]] = b"no image"
    del films[names()[11]]
    (tmp_path / "films").mkdir()
    for name, encoded in films.items():
        (tmp_path / "films" / name).write_bytes(encoded)
    old = manifest.assign(age_years=[414.0 if number == 2 else 50.0 for number in range(FILMS)])

    prepared.prepare(old, [tmp_path / "films"], tmp_path / "out", sizes=(32,))

    bad = pd.read_csv(tmp_path / "out" / "bad_files.csv").set_index("image")
    assert bad["reason"].to_dict() == {
        names()[2]: "age_over_120_ignored",
        names()[3]: "constant_image",
        names()[5]: "converted_to_gray",
        names()[7]: "undecodable",
        names()[9]: "not_dicom",
        names()[11]: "missing",
    }
    assert bad.index[bad["kept"] == 1].tolist() == [names()[5], names()[2]]
    opened = prepared.open_prepared(tmp_path / "out")
    assert opened.manifest.index.tolist() == [k for k in range(FILMS) if k not in (3, 7, 9, 11)]
    assert brightness(opened) == opened.manifest.index.tolist()
    assert np.isnan(opened.manifest["age_years"][2])


def test_missing_films_are_taken_up_when_their_archive_arrives(
    manifest: pd.DataFrame, archive: Path, tmp_path: Path
) -> None:
    half = tmp_path / "half.zip"
    with zipfile.ZipFile(archive) as opened, zipfile.ZipFile(half, "w") as written:
        for name in opened.namelist()[:20]:
            written.writestr(name, opened.read(name))
    assert prepared.prepare(manifest, [half], tmp_path / "out", sizes=(32,)) == {"ready": 19, "missing": 21}
    assert prepared.prepare(manifest, [archive], tmp_path / "out", sizes=(32,)) == {"ready": 40}
    assert brightness(prepared.open_prepared(tmp_path / "out")) == list(range(FILMS))


def test_a_damaged_film_that_was_replaced_is_read_again(manifest: pd.DataFrame, archive: Path, tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / names()[5]).write_bytes(b"damaged")
    (tmp_path / "films" / names()[6]).write_bytes(png(film(6)))
    assert prepared.prepare(manifest, [tmp_path / "films"], tmp_path / "out", sizes=(32,))["not_dicom"] == 1
    assert prepared.prepare(manifest, [archive], tmp_path / "out", sizes=(32,)) == {"ready": FILMS}
    assert brightness(prepared.open_prepared(tmp_path / "out")) == list(range(FILMS))


def test_an_archive_that_breaks_off_gives_what_lies_before_the_break(manifest: pd.DataFrame, tmp_path: Path) -> None:
    tar = tmp_path / "images_01.tar.gz"
    with tarfile.open(tar, "w:gz") as written:
        for number, name in enumerate(names()):
            noise = np.random.default_rng(number).integers(0, 255, (64, 80), dtype=np.uint8)
            member = tarfile.TarInfo(f"images/{name}")
            member.size = len(png(noise))
            written.addfile(member, io.BytesIO(png(noise)))
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    counts = prepared.prepare(manifest, [tar], tmp_path / "out", sizes=(32,))
    assert 10 < counts["ready"] < 30
    assert counts["missing"] == FILMS - counts["ready"]
    assert counts["damaged_archive"] == 1
    assert "images_01.tar.gz,damaged_archive,0" in (tmp_path / "out" / "bad_files.csv").read_text()


def test_another_table_in_the_same_folder_is_refused(manifest: pd.DataFrame, archive: Path, tmp_path: Path) -> None:
    prepared.prepare(manifest, [archive], tmp_path / "out", sizes=(32,))
    with pytest.raises(prepared.NotPrepared, match="other films or sizes"):
        prepared.prepare(manifest.iloc[::-1], [archive], tmp_path / "out", sizes=(32,))
    with pytest.raises(prepared.NotPrepared, match="not 64"):
        prepared.open_prepared(tmp_path / "out", size=64)


@pytest.mark.parametrize("name", ["prepared.json", "manifest.csv", "images-48.npy"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe{", b"[]"])
def test_a_damaged_folder_says_so(
    manifest: pd.DataFrame, archive: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    prepared.prepare(manifest, [archive], tmp_path / "out", sizes=[48])
    (tmp_path / "out" / name).write_bytes(content)
    with pytest.raises(prepared.NotPrepared, match="damaged"):
        prepared.open_prepared(tmp_path / "out")


def test_a_folder_of_another_preprocessing_is_refused(manifest: pd.DataFrame, archive: Path, tmp_path: Path) -> None:
    prepared.prepare(manifest, [archive], tmp_path, sizes=[32])
    plan = tmp_path / "prepared.json"
    plan.write_text(plan.read_text().replace('"squash_inner"', '"squash"'))
    with pytest.raises(prepared.NotPrepared, match="another version"):
        prepared.open_prepared(tmp_path)
    with pytest.raises(prepared.NotPrepared, match="another version"):
        prepared.prepare(manifest, [archive], tmp_path, sizes=[32])


def jpeg(pixels: NDArray[np.uint8], mode: str = "L") -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(encoded, "JPEG", quality=95)
    return encoded.getvalue()


def test_pictures_and_dicom_of_any_kind_are_decoded(tmp_path: Path) -> None:
    make_film(tmp_path / "a.dcm", bits=12, pixels=texture(seed=1))
    dicom = (tmp_path / "a.dcm").read_bytes()
    encoded = [jpeg(film(0)), jpeg(film(1), "RGB"), png(film(2)), dicom, jpeg(film(3))[:300], b"\xff\xd8\xff", b""]
    decoded = [
        prepared.decode(Encoded(row, data), preprocessings=[Preprocessing(size=32)]) for row, data in enumerate(encoded)
    ]
    assert [one.outcome for one in decoded] == [
        "ready", "converted_to_gray", "ready", "ready", "undecodable", "undecodable", "empty_file"
    ]  # fmt: skip
    assert [int(one.inputs[0][16, 28]) for one in decoded[:3]] == pytest.approx([50, 51, 52], abs=1)


def test_films_may_be_read_in_a_way_of_ones_own(manifest: pd.DataFrame, tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def read(rows: Mapping[str, int]) -> Iterator[prepared.Decoded]:
        asked.append(list(rows))
        for image, row in list(rows.items())[:-1]:  # the last is passed over: it is missing
            bad = image == names()[1]
            yield prepared.Decoded(row, "gone", ()) if bad else prepared.Decoded(row, "ready", (film(row)[:32, :32],))

    counts = prepared.prepare(manifest[:4], read, tmp_path / "out", sizes=(32,))
    assert counts == {"ready": 2, "gone": 1, "missing": 1}
    assert prepared.left_out(tmp_path / "out") == {"gone": 1, "missing": 1}
    assert prepared.open_prepared(tmp_path / "out").manifest.index.tolist() == [0, 2]
    prepared.prepare(manifest[:4], read, tmp_path / "out", sizes=(32,))
    assert asked == [names()[:4], [names()[1], names()[3]]], "what was read is not read again"


@pytest.mark.real
def test_a_jpeg_film_of_hannover_is_read(shared: Path) -> None:
    films = sorted((shared / "data" / "hannover_films" / "img256").glob("*.jpg"))[:20]
    for path in films:
        pixels = prepared.pixels_of(path.read_bytes())
        np.testing.assert_array_equal(pixels * 255, np.asarray(Image.open(path).convert("L")))


@pytest.fixture
def parts(manifest: pd.DataFrame, archive: Path, tmp_path: Path) -> list[prepared.Prepared]:
    """Two sets of the same archive: all but two films, with all labels; and others of which only Mass is known."""
    prepared.prepare(manifest[:30].drop(index=[3, 4]), [archive], tmp_path / "one", sizes=(32, 48))
    few = manifest[30:].drop(columns=[finding for finding in FINDINGS if finding != "Mass"])
    prepared.prepare(few.assign(Mass=1), [archive], tmp_path / "other", sizes=(32,))
    one, other = (prepared.open_prepared(tmp_path / name, size=32) for name in ("one", "other"))
    return [replace(one, manifest=one.manifest.drop(index=[0, 7])), other]


def test_prepared_sets_are_combined_into_one(parts: list[prepared.Prepared], tmp_path: Path) -> None:
    whole = prepared.combine(parts, tmp_path / "whole")
    kept = [number for number in range(FILMS) if number not in (0, 3, 4, 9)]  # place 7 holds film 9
    assert whole.manifest.index.tolist() == list(range(len(kept)))
    assert whole.manifest["image"].tolist() == [names()[number] for number in kept]
    assert brightness(whole) == kept
    assert whole.findings == FINDINGS
    assert whole.manifest["Mass"].tolist() == [0] * 26 + [1] * 10
    assert (whole.manifest["Edema"][26:] == UNKNOWN).all()
    assert np.flatnonzero(whole.manifest["Effusion"][:26]).tolist() == [kept.index(FINDINGS.index("Effusion"))]
    again = prepared.open_prepared(tmp_path / "whole")
    pd.testing.assert_frame_equal(again.manifest, whole.manifest)
    assert again.preprocessing == whole.preprocessing
    prepared.combine(parts, tmp_path / "again")
    for name in ("manifest.csv", "images-32.npy", "prepared.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_combination_that_broke_off_is_not_taken_for_one(
    parts: list[prepared.Prepared], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared.combine(parts, tmp_path / "whole")
    with monkeypatch.context() as broken:
        broken.setattr("pandas.DataFrame.to_csv", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            prepared.combine(parts[::-1], tmp_path / "whole")
    with pytest.raises(prepared.NotPrepared):
        prepared.open_prepared(tmp_path / "whole")
    assert len(prepared.combine(parts[::-1], tmp_path / "whole").manifest) == FILMS - 4


def test_sets_that_cannot_be_one_are_refused(parts: list[prepared.Prepared], tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="another row names too"):
        prepared.combine([parts[0], parts[0]], tmp_path / "twice")
    larger = prepared.open_prepared(tmp_path / "one", size=48)
    with pytest.raises(prepared.NotPrepared, match="one size"):
        prepared.combine([larger, parts[1]], tmp_path / "sizes")
    with pytest.raises(prepared.NotPrepared, match="one size"):
        prepared.combine([], tmp_path / "none")
