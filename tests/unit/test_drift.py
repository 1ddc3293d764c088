"""Drift's arithmetic: still on days like those before, however few films or tied, and loud on days that are not."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chi2, kstwobign

from db.drift import ATTRIBUTES, Arrivals, Figure
from training.calibration import reference
from training.findings import FINDINGS
from worker.monitoring import drift
from worker.monitoring.drift import Distance, Known, change, judge, ks, of_scores, psi
from worker.setting_groups import DriftSettings

Array = NDArray[np.float64]
LEVELS = np.linspace(0, 1, 101)
NOTHING = Arrivals({key: {} for key in ATTRIBUTES}, {}, {})


def continuous(rng: np.random.Generator, films: int) -> Array:
    """Small probabilities, as most are."""
    return rng.beta(0.5, 8, size=(films, len(FINDINGS)))


def tied(rng: np.random.Generator, films: int) -> Array:
    """The same where two films in five share one value, as under an isotonic calibration."""
    scores = continuous(rng, films)
    return np.where(scores < 0.02, 0.0123456789, scores)


def came(films: int = 0, *, skipped: int = 0, quarantined: int = 0, unseen: int = 0, **values: Any) -> Arrivals:
    """Arrivals of `films` films, PA and from one device unless `values` says otherwise."""
    usual = {"view": "PA", "sex": "F", "age": 50, "modality": "DX", "manufacturer": "Acme"}
    return Arrivals(
        films={name: values.get(name, {usual[name]: films}) for name in ATTRIBUTES},
        studies={"scored": films, "skipped": skipped, "quarantined": quarantined},
        instances={None: films, "view_unknown": unseen},
    )


def levels_of(figures: tuple[Figure, ...], measure: str) -> dict[str, str]:
    return {figure.subject: figure.level for figure in figures if figure.measure == measure}


def judged(now: Arrivals, before: Arrivals, scores: Array | None = None, **settings: Any) -> tuple[Figure, ...]:
    scores = np.empty((0, len(FINDINGS))) if scores is None else scores
    return judge(scores, {}, now, before, rules=DriftSettings(**settings))[0]


# ----------------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("drawn", [continuous, tied])
@pytest.mark.parametrize(("films", "known_films"), [(200, 400), (200, 2000), (1000, 2000)])
def test_without_drift_a_figure_is_about_nothing_and_seldom_looks_like_more(
    drawn: Callable[[np.random.Generator, int], Array], films: int, known_films: int
) -> None:
    rng = np.random.default_rng(0)
    psis: list[Distance] = []
    kss: list[Distance] = []
    for _ in range(40):  # 40 x 11 figures each
        known = reference(drawn(rng, known_films), findings=FINDINGS)
        for each in of_scores(drawn(rng, films), known):
            assert each.distance is not None
            (psis if each.measure == "psi" else kss).append(each.distance)
    for distances in (psis, kss):
        moved, by_chance, probabilities = (np.array(column) for column in zip(*distances, strict=True))
        assert abs(moved.mean()) < max(0.3 * by_chance.mean(), 0.004)
        assert (probabilities < 0.01).mean() < 0.06
    assert np.mean([distance.probability < 0.05 for distance in psis]) > 0.01  # and does not only stay silent


@pytest.mark.parametrize("films", [50, 200, 2000])
def test_days_without_drift_do_not_alarm_however_small(films: int) -> None:
    rng, rules, alarms = np.random.default_rng(1), DriftSettings(min_films=50), 0
    known = reference(tied(rng, 2000), findings=FINDINGS)
    for _ in range(100):
        figures, _ = judge(tied(rng, films), known, NOTHING, NOTHING, rules=rules)
        alarms += drift.worst(figure.level for figure in figures) != "quiet"
    assert alarms <= 3  # 22 figures a day, and one day in a hundred by design


def test_one_finding_that_moves_is_found_among_eleven() -> None:
    rng = np.random.default_rng(2)
    known, day = reference(continuous(rng, 2000), findings=FINDINGS), continuous(rng, 300)
    day[:, FINDINGS.index("Hernia")] = day[:, FINDINGS.index("Hernia")] ** 0.5
    figures, remarks = judge(day, known, NOTHING, NOTHING, rules=DriftSettings())
    assert remarks == ()
    for measure in ("psi", "ks"):
        assert levels_of(figures, measure) == dict.fromkeys(FINDINGS, "quiet") | {"Hernia": "act"}


def test_a_value_that_films_no_longer_share_is_drift() -> None:
    rng = np.random.default_rng(3)
    known, day = reference(tied(rng, 2000), findings=FINDINGS), tied(rng, 300)
    mass = FINDINGS.index("Mass")
    day[day[:, mass] < 0.02, mass] = 0.0001
    figures, _ = judge(day, known, NOTHING, NOTHING, rules=DriftSettings())
    assert levels_of(figures, "ks")["Mass"] == "act"
    assert levels_of(figures, "ks")["Effusion"] == "quiet"


def test_stored_probabilities_match_a_shared_value_though_they_were_rounded() -> None:
    everywhere = np.full((500, len(FINDINGS)), 1 / 3)
    known = reference(everywhere, findings=FINDINGS)
    figures, _ = judge(np.round(everywhere, 6), known, NOTHING, NOTHING, rules=DriftSettings())
    assert {figure.level for figure in figures} == {"quiet"}
    figures, _ = judge(np.round(everywhere, 6) + 1e-5, known, NOTHING, NOTHING, rules=DriftSettings())
    assert set(levels_of(figures, "ks").values()) == {"act"}


def test_bins_are_tenths_and_fewer_where_films_share_a_value() -> None:
    counts, shares = Known.of(LEVELS, LEVELS).bins(np.array([0.0, 0.1, 0.100001, 0.95, 7.0]))
    assert shares == pytest.approx([0.1] * 10)
    assert counts.tolist() == [2, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    low = Known.of(np.where(LEVELS <= 0.55, 0.2, LEVELS), LEVELS)
    assert low.bins(np.array([0.2, 0.3]))[1] == pytest.approx([0.55, 0.05, 0.1, 0.1, 0.1, 0.1])
    high = Known.of(np.where(LEVELS >= 0.85, 0.9, LEVELS), LEVELS)
    counts, shares = high.bins(np.array([0.9, 0.95]))
    assert (shares[-1], counts[-1]) == (pytest.approx(0.2), 2)
    assert Known.of(np.full(101, 0.5), LEVELS).bins(np.array([0.5, 0.6]))[1].tolist() == [1.0]


def test_psi_is_the_sum_of_its_bins_and_an_empty_bin_leaves_it_finite() -> None:
    distance = psi(np.array([100.0, 300.0]), np.array([200.0, 200.0]))
    p, q = np.array([100.5, 300.5]) / 401, np.array([200.5, 200.5]) / 401
    assert distance.moved + distance.reference == pytest.approx(((p - q) * np.log(p / q)).sum())
    assert distance.reference == pytest.approx(1 / 400 + 1 / 400)
    assert np.isfinite(psi(np.array([0.0, 50.0]), np.array([50.0, 0.0])).moved)


def test_ks_is_the_largest_gap() -> None:
    distance = ks(np.linspace(0.5, 1, 1000), Known.of(LEVELS, LEVELS), films=1000)
    assert distance.moved + distance.reference == pytest.approx(0.5, abs=0.01)
    assert distance.probability < 1e-9


def test_the_probabilities_by_chance_are_the_exact_ones() -> None:
    now, before = np.array([30.0, 50.0, 20.0]), np.array([300.0, 400.0, 300.0])
    distance = psi(now, before)
    spread = 1 / 100 + 1 / 1000
    assert distance.probability == pytest.approx(chi2.sf((distance.moved + distance.reference) / spread, 2))
    assert psi(np.array([5.0]), np.array([50.0])).probability == 1.0
    gap = ks(np.linspace(0.05, 1, 200), Known.of(LEVELS, LEVELS), films=200)
    assert gap.probability == pytest.approx(kstwobign.sf(10 * (gap.moved + gap.reference)))


# --------------------------------------------------------------------------------------------------- what came in


def test_a_new_device_alarms_and_a_single_strange_film_does_not() -> None:
    before = came(5000, manufacturer={"Acme": 3000, "Zeta": 2000})
    usual, stray = {"Acme": 180, "Zeta": 120}, {"Acme": 180, "Zeta": 119, "Novel": 1}
    third = {"Acme": 120, "Zeta": 80, "Novel": 100}
    for manufacturers, level in ((usual, "quiet"), (stray, "quiet"), (third, "act")):
        figures = judged(came(300, manufacturer=manufacturers), before)
        assert levels_of(figures, "shares")["manufacturer"] == level


def test_forty_rare_devices_are_not_forty_chances_of_an_alarm() -> None:
    rng = np.random.default_rng(4)
    names, shares = [f"device {number}" for number in range(41)], [0.8, *[0.005] * 40]

    def drawn(films: int) -> dict[str, int]:
        return dict(zip(names, rng.multinomial(films, shares).tolist(), strict=True))

    days = [judged(came(200, manufacturer=drawn(200)), came(5600, manufacturer=drawn(5600))) for _ in range(100)]
    assert sum(levels_of(day, "shares")["manufacturer"] != "quiet" for day in days) <= 2


def test_what_headers_no_longer_say_is_drift_too() -> None:
    before = came(5000, sex={"F": 2500, "M": 2500})
    figures = judged(came(300, sex={"F": 100, "M": 100, None: 100}), before)
    assert levels_of(figures, "shares")["sex"] == "act"


def test_ages_are_compared_in_bands() -> None:
    before = came(5000, age={41: 2500, 70: 2400, None: 100})
    assert levels_of(judged(came(300, age={59: 150, 61: 145, None: 5}), before), "shares")["age"] == "quiet"
    assert levels_of(judged(came(300, age={5: 150, 61: 150}), before), "shares")["age"] == "act"


@pytest.mark.parametrize(
    ("years", "band"), [(0, "0-17"), (17, "0-17"), (18, "18-39"), (79, "60-79"), (80, "80+"), (130, "80+")]
)
def test_every_age_has_its_band(years: int, band: str) -> None:
    inside = {"0-17": 5, "18-39": 25, "60-79": 70, "80+": 99}
    figures = judged(came(300, age={years: 300}), came(5000, age={inside[band]: 5000}))
    assert levels_of(figures, "shares")["age"] == "quiet"
    others = dict.fromkeys((age for name, age in inside.items() if name != band), 1700)
    figures = judged(came(300, age={years: 300}), came(5100, age=others))
    assert levels_of(figures, "shares")["age"] == "act"


def test_what_has_nothing_to_be_compared_with_is_quiet_and_said_so() -> None:
    figures, remarks = judge(np.empty((0, 11)), {}, came(300), came(199), rules=DriftSettings(min_films=200))
    assert {(figure.reference, figure.level) for figure in figures} == {(None, "quiet")}
    assert any("28 days before" in remark for remark in remarks)


def test_a_day_on_which_nothing_could_be_scored_is_judged_by_its_rates() -> None:
    figures = judged(came(0, quarantined=250), came(5000, quarantined=20))
    assert {figure.measure for figure in figures} == {"rate"}
    assert levels_of(figures, "rate") == {"skipped": "quiet", "quarantined": "act"}
    (quarantined,) = (figure for figure in figures if figure.subject == "quarantined")
    assert quarantined.reference == pytest.approx(20 / 5020)
    assert quarantined.value == pytest.approx(1 - 20 / 5020)


def test_rates_alarm_by_the_settings_and_in_both_directions() -> None:
    before = came(4500, skipped=500, unseen=0)
    for skipped, level in ((50, "quiet"), (85, "warn"), (150, "act"), (0, "warn")):
        assert levels_of(judged(came(450, skipped=skipped), before), "rate")["skipped"] == level
    assert levels_of(judged(came(300, unseen=100), before), "rate")["view_unknown"] == "act"


def test_a_change_that_chance_gives_is_no_alarm() -> None:
    assert change(0, 100, 0, 1000) == Distance(0.0, 0.0, 1.0)
    many = judged(came(900, skipped=100), came(960, skipped=40))
    assert levels_of(many, "rate")["skipped"] == "warn"
    few = judged(came(45, skipped=5), came(960, skipped=40), min_films=50)
    assert next(figure.value for figure in few if figure.subject == "skipped") == pytest.approx(0.06)
    assert levels_of(few, "rate")["skipped"] == "quiet"


# ------------------------------------------------------------------------------------------------------- one day


def test_too_few_films_and_a_checkpoint_without_reference_are_told() -> None:
    known = reference(continuous(np.random.default_rng(5), 500), findings=FINDINGS)
    for films, kept, words in ((199, known, "199 films were scored and 200 are needed"), (200, {}, "no reference")):
        figures, remarks = judge(np.zeros((films, 11)), kept, NOTHING, NOTHING, rules=DriftSettings())
        assert figures == ()
        assert words in remarks[0]


def test_levels_follow_the_settings() -> None:
    rng = np.random.default_rng(6)
    known, day = reference(continuous(rng, 2000), findings=FINDINGS), continuous(rng, 1000) ** 0.6
    for rules, level in (
        (DriftSettings(), "act"),
        (DriftSettings(psi_act=9, ks_act=1), "warn"),
        (DriftSettings(psi_warn=9, psi_act=9, ks_warn=1, ks_act=1), "quiet"),
    ):
        figures, _ = judge(day, known, NOTHING, NOTHING, rules=rules)
        assert drift.worst(figure.level for figure in figures) == level
