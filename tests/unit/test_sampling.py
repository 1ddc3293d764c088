"""Splits keep patients whole; undersampling is the paper's; every draw is seeded."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from training import sampling
from training.findings import FINDINGS
from training.manifest import UNKNOWN
from training.nih import read_nih


def rng(seed: int = 7) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def manifest() -> pd.DataFrame:
    """600 films of 200 patients, each with one finding or none, at places that have gaps."""
    draw = np.random.default_rng(0)
    labels = np.zeros((600, len(FINDINGS)), dtype=np.uint8)
    finding = draw.integers(0, len(FINDINGS) + 5, size=600)
    labels[np.flatnonzero(finding < len(FINDINGS)), finding[finding < len(FINDINGS)]] = 1
    films = pd.DataFrame(labels, columns=list(FINDINGS), index=np.arange(600) * 2)
    described = films.assign(patient_id=[str(film % 200) for film in range(600)], split="")
    return described.assign(image=[f"{film}.png" for film in range(600)])


@pytest.fixture(scope="module")
def nih(shared: Path) -> pd.DataFrame:
    tables = shared / "data" / "nih_tables"
    return read_nih(tables / "Data_Entry_2017_v2020.csv.gz", lists=tables)


def test_no_patient_is_on_two_sides_of_the_split(manifest: pd.DataFrame) -> None:
    split = sampling.split_by_patient(manifest, rng=rng())
    assert split.groupby("patient_id")["split"].nunique().max() == 1
    patients = split.drop_duplicates("patient_id")["split"].value_counts()
    assert patients.to_dict() == {"train": 120, "validation": 40, "test": 40}
    assert sampling.leakage(split) == 0


def test_the_same_seed_splits_the_same_whatever_the_order_of_the_rows(manifest: pd.DataFrame) -> None:
    shuffled = manifest.sample(frac=1, random_state=3)
    one, other = (sampling.split_by_patient(films, rng=rng())["split"] for films in (manifest, shuffled))
    assert one.equals(other.sort_index())
    assert not one.equals(sampling.split_by_patient(manifest, rng=rng(8))["split"])


def test_shares_that_do_not_sum_to_one_are_refused(manifest: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        sampling.split_by_patient(manifest, rng=rng(), shares=(0.6, 0.2, 0.1))


def test_a_split_by_image_warns_that_it_leaks(manifest: pd.DataFrame) -> None:
    with pytest.warns(sampling.LeakageWarning, match="share a patient with training"):
        assert sampling.leakage(sampling.split_by_image(manifest, rng=rng())) > 0.5


def test_undersampling_touches_training_alone(manifest: pd.DataFrame) -> None:
    split = sampling.split_by_patient(manifest, rng=rng())
    less = sampling.undersample(split, rng=rng(), common_share=0.5)
    for kept in ("validation", "test"):
        assert less[less["split"] == kept].equals(split[split["split"] == kept])
    before, after = (films[films["split"] == "train"] for films in (split, less))
    rarer = [finding for finding in FINDINGS if finding not in sampling.COMMON]
    assert after[rarer].sum().equals(before[rarer].sum())
    assert after[list(FINDINGS)].any(axis=1).all()
    common = list(sampling.COMMON)
    assert after[common].sum().sum() == pytest.approx(before[common].sum().sum() / 2, abs=1)


def test_undersampling_keeps_each_film_at_its_place(manifest: pd.DataFrame) -> None:
    less = sampling.undersample(manifest, rng=rng())
    assert less.equals(manifest.loc[less.index])
    assert less.equals(sampling.undersample(manifest, rng=rng()))


def test_a_share_of_films_without_findings_can_be_kept(manifest: pd.DataFrame) -> None:
    empty = ~manifest[list(FINDINGS)].any(axis=1)
    less = sampling.undersample(manifest, rng=rng(), no_finding_share=0.25)
    assert (~less[list(FINDINGS)].any(axis=1)).sum() == round(0.25 * empty.sum())


@pytest.mark.slow
def test_undersampling_nih_gives_the_papers_twenty_thousand(nih: pd.DataFrame) -> None:
    whole = nih.assign(split="")
    assert len(sampling.undersample(whole, rng=rng(), common_share=0)) == 16_276
    assert len(sampling.undersample(whole, rng=rng(), common_share=1)) == 16_276 + 35_483
    assert len(sampling.undersample(whole, rng=rng())) == 20_002


def test_the_official_split_keeps_nihs_test_films_and_leaks_nothing(nih: pd.DataFrame) -> None:
    split = sampling.split_official(nih, rng=rng())
    assert split["split"].value_counts()["test"] == 25_596
    assert split[nih["split"] == "test"]["split"].eq("test").all()
    assert split["split"].value_counts()["validation"] == pytest.approx(11_212, rel=0.1)
    assert split.groupby("patient_id")["split"].nunique().max() == 1


def test_the_official_split_needs_nihs_lists(manifest: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="no official split"):
        sampling.split_official(manifest, rng=rng())


def test_splitting_nih_by_image_leaks_four_test_films_in_five(nih: pd.DataFrame) -> None:
    with pytest.warns(sampling.LeakageWarning):
        assert sampling.leakage(sampling.split_by_image(nih, rng=rng())) == pytest.approx(0.8, abs=0.01)


def test_oversampling_repeats_rare_findings_in_training_alone(nih: pd.DataFrame) -> None:
    split = sampling.split_by_patient(nih, rng=rng())
    more = sampling.oversample(split, rng=rng(), at_least=0.05)
    before, after = (films[films["split"] == "train"] for films in (split, more))
    expected = np.sqrt(0.05 / before["Hernia"].mean())
    assert after["Hernia"].sum() / before["Hernia"].sum() == pytest.approx(expected, rel=0.05)
    assert set(after.index) == set(before.index)
    assert more[more["split"] != "train"].index.equals(split[split["split"] != "train"].index)


def test_chosen_findings_are_the_only_labels_left(manifest: pd.DataFrame) -> None:
    fewer = sampling.choose(manifest, ["Hernia", "Mass"])
    assert [name for name in fewer.columns if name in FINDINGS] == ["Mass", "Hernia"]
    assert len(fewer) == len(manifest)
    with pytest.raises(ValueError, match="no labels for Fracture"):
        sampling.choose(manifest, ["Fracture"])


def test_saved_lists_bring_the_split_back(manifest: pd.DataFrame, tmp_path: Path) -> None:
    split = sampling.split_by_patient(manifest, rng=rng())
    sampling.save_lists(split, tmp_path)
    again = sampling.split_by_lists(manifest, {name: tmp_path / f"{name}.txt" for name in sampling.SPLITS})
    assert again["split"].tolist() == split["split"].tolist()


def test_a_stable_split_keeps_every_patient_whatever_else_is_in_the_table(manifest: pd.DataFrame) -> None:
    whole = sampling.split_stable(manifest)
    assert whole.groupby("patient_id")["split"].nunique().max() == 1
    few = manifest[manifest["patient_id"].isin([str(k) for k in range(50)])].sample(frac=1, random_state=1)
    pd.testing.assert_series_equal(
        sampling.split_stable(few)["split"].sort_index(), whole.loc[few.index, "split"].sort_index()
    )
    renamed = manifest.assign(patient_id=[f"other-{k}" for k in range(len(manifest))])
    both = sampling.split_stable(pd.concat([manifest, renamed], ignore_index=True))
    assert both["split"].tolist()[: len(manifest)] == whole["split"].tolist()


def test_a_stable_split_has_the_shares_it_says() -> None:
    patients = pd.DataFrame({"patient_id": [f"{k}" for k in range(20_000)]})
    shares = sampling.split_stable(patients)["split"].value_counts(normalize=True)
    assert shares[list(sampling.SPLITS)].tolist() == pytest.approx(sampling.STABLE_SHARES, abs=0.01)


def test_the_stable_sides_are_those_of_every_release() -> None:
    """Another hash or other shares would move patients from test to training. This test must never be changed."""
    patients = pd.DataFrame({"patient_id": ["1", "2", "3", "00000001", "a", "b", "Müller"]})
    sides = ["train", "test", "train", "validation", "validation", "train", "validation"]
    assert sampling.split_stable(patients)["split"].tolist() == sides


def test_sampling_counts_the_known_labels(manifest: pd.DataFrame) -> None:
    train = manifest.assign(split="train")
    partly = train.copy()
    unknown = rng().random(len(partly)) < 0.5
    partly.loc[unknown, "Hernia"] = UNKNOWN
    without = train.assign(Hernia=train["Hernia"].mask(unknown, 0).astype("uint8"))
    assert sampling.undersample(partly, rng=rng()).index.equals(sampling.undersample(without, rng=rng()).index)
    repeated = sampling.oversample(partly, rng=rng(), at_least=0.3)
    assert (repeated["Hernia"] == UNKNOWN).sum() < 2.5 * unknown.sum()
    hernias = partly.index[partly["Hernia"] == 1]
    share = (partly["Hernia"] == 1).sum() / (~unknown).sum()
    times = repeated.index.isin(hernias).sum() / len(hernias)
    assert times == pytest.approx(np.sqrt(0.3 / share), rel=0.2)
