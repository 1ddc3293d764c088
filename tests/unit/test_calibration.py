from dataclasses import replace

import numpy as np
import pytest

from training.calibration import (
    FLATTEST_SLOPE,
    at_site,
    fit_calibration,
    header_at_site,
    platt,
    reference,
    thresholds,
)
from training.checkpoint import SHIPPED, read_header
from training.findings import FINDINGS
from training.manifest import UNKNOWN

RNG = np.random.default_rng(0)


def films(slope: float, intercept: float, *, n: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    logits = RNG.normal(size=n)
    return logits, (RNG.random(n) < 1 / (1 + np.exp(-slope * logits - intercept))).astype(np.uint8)


def test_platt_finds_the_line_that_made_the_labels() -> None:
    logits, labels = films(1.5, -2.0)
    assert platt(logits, labels) == (pytest.approx(1.5, abs=0.1), pytest.approx(-2.0, abs=0.1))


def test_few_separable_positives_do_not_make_platt_sure_of_itself() -> None:
    logits = np.linspace(-1, 1, 100)
    slope, intercept = platt(logits, (logits > 0.95).astype(np.uint8))  # three positives, all at the top
    assert 0.1 < 1 / (1 + np.exp(-slope - intercept)) < 0.9


def test_logits_that_point_the_wrong_way_keep_their_order_and_say_the_prevalence() -> None:
    logits, labels = films(-1.0, -2.0)
    slope, intercept = platt(logits, labels)
    assert slope == FLATTEST_SLOPE
    assert (1 / (1 + np.exp(-slope * logits - intercept))).mean() == pytest.approx(labels.mean(), abs=0.01)


def test_a_finding_without_positives_can_still_be_calibrated() -> None:
    slope, intercept = platt(RNG.normal(size=50), np.zeros(50, dtype=np.uint8))
    assert 0 < 1 / (1 + np.exp(-intercept)) < 0.05
    assert np.isfinite(slope)


def test_the_losss_shift_is_taken_back_before_fitting() -> None:
    logits, labels = films(1.0, 0.0)
    calibration = fit_calibration(logits[:, None] + 3.0, labels[:, None], shift=(3.0,))
    assert calibration.shift == (3.0,)
    assert calibration.intercept[0] == pytest.approx(0, abs=0.1)
    assert calibration.probabilities(np.array([[3.0]], dtype=np.float32))[0, 0] == pytest.approx(0.5, abs=0.02)


def test_only_findings_with_a_thousand_positives_get_a_table() -> None:
    common, rare = films(1.0, 0.0), films(1.0, -4.0)
    logits, labels = (np.stack(pair, axis=1) for pair in zip(common, rare, strict=True))
    calibration = fit_calibration(logits, labels, shift=(0.0, 0.0))
    assert list(calibration.isotonic) == [0]
    probabilities = calibration.probabilities(logits.astype(np.float32))
    assert np.abs(probabilities.mean(axis=0) - labels.mean(axis=0)).max() < 0.005


def test_a_sites_prior_calibrates_films_with_the_sites_prevalence() -> None:
    logits, labels = films(1.0, -1.0)
    rarer = np.flatnonzero((labels == 1) & (RNG.random(len(labels)) < 0.2) | (labels == 0))
    site, home = labels[rarer].mean(), labels.mean()
    for isotonic_from in (10, 10**9):
        fitted = fit_calibration(logits[:, None], labels[:, None], shift=(0.0,), isotonic_from_positives=isotonic_from)
        moved = at_site(fitted, fitted=[home], site=[site]).probabilities(logits[rarer, None].astype(np.float32))
        assert moved.mean() == pytest.approx(site, abs=0.005)
        unmoved = at_site(fitted, fitted=[home], site=[home]).probabilities(logits[:, None].astype(np.float32))
        assert unmoved.mean() == pytest.approx(home, abs=0.005)


def test_thresholds_reach_their_sensitivity_and_their_share() -> None:
    logits, labels = films(2.0, -2.0, n=1000)
    scores = 1 / (1 + np.exp(-logits))
    cuts = thresholds(scores[:, None], labels[:, None], findings=["Edema"])["Edema"]
    flagged = scores >= cuts["sensitivity_90"]
    assert 0.9 <= flagged[labels == 1].mean() < 0.91
    assert (scores >= cuts["flag_10"]).mean() == pytest.approx(0.1)


def test_a_finding_without_positives_has_no_sensitivity_to_reach() -> None:
    cuts = thresholds(np.full((10, 1), 0.2), np.zeros((10, 1), dtype=np.uint8), findings=["Hernia"])
    assert set(cuts["Hernia"]) == {"flag_10"}


def test_the_reference_holds_rising_quantiles_per_finding() -> None:
    quantiles = reference(RNG.random((500, 2)), findings=["Mass", "Edema"])
    assert quantiles["films"] == 500
    assert len(quantiles["levels"]) == 101
    assert quantiles["levels"][10] == 0.1
    assert (np.diff(quantiles["probabilities"]["Edema"]) >= 0).all()


def test_a_checkpoint_at_a_site_with_more_of_a_finding_says_more_and_flags_the_same_films():
    logits = np.random.default_rng(3).normal(size=(400, len(FINDINGS)))
    header = read_header(SHIPPED)
    moved = header_at_site(header, {"Effusion": 0.3})
    effusion, mass = FINDINGS.index("Effusion"), FINDINGS.index("Mass")
    before, after = (h.calibration.probabilities(logits.astype(np.float32)) for h in (header, moved))
    assert (after[:, effusion] > before[:, effusion]).all()
    np.testing.assert_array_equal(after[:, mass], before[:, mass])
    cuts = [h.thresholds["Effusion"]["flag_10"] for h in (header, moved)]
    np.testing.assert_array_equal(before[:, effusion] >= cuts[0], after[:, effusion] >= cuts[1])


@pytest.mark.parametrize(("site", "error"), [({"Effusion": 1.5}, ValueError), ({"Fracture": 0.1}, KeyError)])
def test_a_prevalence_that_cannot_be_is_refused(site, error):
    with pytest.raises(error):
        header_at_site(read_header(SHIPPED), site)


def test_unknown_labels_have_no_part_in_calibration() -> None:
    logits, labels = films(1.5, -2.0, n=5_000)
    known = RNG.random(5_000) < 0.4
    nobody = np.full(5_000, UNKNOWN, dtype=np.uint8)
    partly = np.stack([np.where(known, labels, np.uint8(UNKNOWN)), nobody], axis=1)
    both = np.stack([logits, logits], axis=1)
    calibration = fit_calibration(both, partly, shift=(0.5, 0.5), isotonic_from_positives=100)
    alone = fit_calibration(logits[known, None], labels[known, None], shift=(0.5,), isotonic_from_positives=100)
    assert calibration.isotonic == alone.isotonic
    assert (calibration.slope, calibration.intercept) == ((*alone.slope, 1.0), (*alone.intercept, 0.0))
    cuts = thresholds(both, partly, findings=("Mass", "Edema"))
    assert (
        cuts["Mass"]["sensitivity_90"]
        == thresholds(logits[known, None], labels[known, None], findings=("Mass",))["Mass"]["sensitivity_90"]
    )
    assert set(cuts["Edema"]) == {"flag_10"}


def test_a_site_is_moved_from_the_share_of_the_known_films() -> None:
    header = read_header(SHIPPED)
    films_of, positives = header.training["films"], header.training["positives"]
    known = {"train": dict.fromkeys(FINDINGS, films_of["train"] // 2)}
    halved = replace(header, training={**header.training, "known": known})
    moved = header_at_site(halved, {"Mass": 2 * positives["train"]["Mass"] / films_of["train"]})
    assert moved.calibration.intercept[0] == pytest.approx(header.calibration.intercept[0])
