"""The gate: whether a challenger may take the champion's place, judged on films that neither learned from.

Both are asked about the same films, and every difference has a paired bootstrap over patients: the same draws for both,
so that what is hard for either cancels. `docs/how-to/retraining.md` says why each check decides as it does.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from training.manifest import UNKNOWN, findings_in
from training.metrics import baselines, groups, patient_draws, ratio, weighted_calibration_error, weighted_ranking

Array = npt.NDArray[np.floating]
Figure = Callable[[Array, Array], Array]
"""Probabilities (N, F), in draws that count the films (R, N) times -> (R,)."""
OfFinding = Callable[[Array, Array, Array], Array]
"""The same of one finding: labels and probabilities (N,), weights (R, N) -> (R,)."""

FLAGGED: Final = "Pneumothorax"
FLAG_SHARE: Final = 0.1
"""Of the films, flagged by either checkpoint where their sensitivities are compared."""
URGENT: Final = ("A", "B")
BESIDE: Final = ("baseline", "skill")
"""Checks of the challenger alone, beside what needs no network."""
ATTRIBUTES: Final = ("sex", "age_years", "view")
CHANCE: Final = 0.05
"""A gap has grown when it has in all but so many of the draws."""


@dataclass(frozen=True)
class Rules:
    """The gate's thresholds: the least difference of what should be high, the greatest of what should be low.

    min_positives: films with a finding below which a check on it is undecided. replicates: bootstrap draws.
    """

    macro_auroc: float = -0.005
    finding_auroc: float = -0.02
    sensitivity: float = -0.02
    ece: float = 0.01
    gap: float = 0.03
    min_positives: int = 10
    replicates: int = 1000


@dataclass(frozen=True)
class Check:
    """One line of a verdict: a figure of both, and their difference with its 95 % interval.

    Beside a baseline `champion` is None, and the difference is the challenger's to the baseline. What is undecided has
    no figures and has not passed; its note says why.
    """

    number: int
    films_from: str
    name: str
    subject: str
    champion: float | None
    challenger: float | None
    difference: float | None
    low: float | None
    high: float | None
    bound: float | None
    passed: bool
    note: str | None


class _Found(NamedTuple):
    """The challenger's figure less the other's, its 95 % interval, and the share of draws in which it is 0 or less."""

    difference: float
    low: float
    high: float
    fallen: float


class _Question(NamedTuple):
    """A figure of the challenger beside that of `other`, probabilities (N, F), and which differences pass.

    undecided: why these films cannot answer it, if they cannot. note: what else to know of the answer.
    """

    name: str
    subject: str
    figure: Figure
    other: Array
    bound: float
    passes: Callable[[_Found, float], bool]
    undecided: str = ""
    note: str | None = None


def judge(
    films: pd.DataFrame,
    champion: npt.ArrayLike,
    challenger: npt.ArrayLike,
    *,
    train: pd.DataFrame,
    rules: Rules,
    films_from: str,
    categories: Mapping[str, str],
    rng: np.random.Generator,
) -> list[Check]:
    """Every check of a challenger beside a champion and the baselines, but for those that need a reading room.

    films: a manifest of films, one or more, that neither learned from. champion, challenger: calibrated probabilities
    (N, F) for them, columns as the manifest's findings. train: the films that the baselines are fitted on. categories:
    finding -> "A" to "D". films_from goes into the checks as it is. Memory: 4 bytes per film and draw.
    """
    old, new = np.asarray(champion, dtype=float), np.asarray(challenger, dtype=float)
    bench = _Bench.of(films, rules, categories)
    questions = [*bench.rankings(old), *bench.gaps(old), *bench.beside(baselines(train, films))]
    draws = list(patient_draws(films["patient_id"], rng=rng, replicates=rules.replicates))
    return [_answer(asked, new, draws, number, films_from) for number, asked in enumerate(questions, start=1)]


class _Bench(NamedTuple):
    """The films that both are judged on: labels (N, F), columns of urgent findings and of those with films enough."""

    films: pd.DataFrame
    rules: Rules
    findings: tuple[str, ...]
    truth: Array
    urgent: list[int]
    enough: list[int]

    @classmethod
    def of(cls, films: pd.DataFrame, rules: Rules, categories: Mapping[str, str]) -> "_Bench":
        findings = findings_in(films)
        truth = films[list(findings)].to_numpy(dtype=float)
        urgent = [k for k, finding in enumerate(findings) if categories.get(finding) in URGENT]
        fewest = np.minimum((truth == 1).sum(axis=0), (truth == 0).sum(axis=0))
        return cls(films, rules, findings, truth, urgent, np.flatnonzero(fewest >= rules.min_positives).tolist())

    def rankings(self, champion: Array) -> Iterator[_Question]:
        """How well both rank the films, and how far their probabilities can be believed."""
        rules, none, without = self.rules, self._none, self._without
        macro, ece = self._macro(_auroc), self._macro(weighted_calibration_error)
        yield _Question("macro_auroc", "", macro, champion, rules.macro_auroc, _surely_at_least, none, without)
        for k in self.urgent:
            auroc = self._of(k, _auroc)
            yield _Question("auroc", self.findings[k], auroc, champion, rules.finding_auroc, _at_least, self._few(k))
        if FLAGGED in self.findings:
            k = self.findings.index(FLAGGED)
            flagged = self._of(k, _sensitivity)
            yield _Question("sensitivity", FLAGGED, flagged, champion, rules.sensitivity, _at_least, self._few(k))
        yield _Question("ece", "", ece, champion, rules.ece, _at_most, none, without)

    def gaps(self, champion: Array) -> Iterator[_Question]:
        """Whether one sex, age band or view is overlooked more than another."""
        least = self.rules.min_positives
        for attribute in ATTRIBUTES:
            every = [members for name, _, members in groups(self.films) if name == attribute]
            large = [members for members in every if self._comparable(members) >= least]
            # Films of one group alone have no gap that could grow; else two groups must be large enough to compare.
            enough = len(large) >= min(2, max(1, len(every)))
            why = "" if enough else f"no two groups with {least} findings each that others of the group have not"
            yield _Question("gap", attribute, self._gap(large), champion, self.rules.gap, _at_most_or_chance, why)

    def beside(self, said: Mapping[str, Array]) -> Iterator[_Question]:
        """Whether the challenger is worth more than silence, a constant, what needs no film, and chance."""
        brier, auroc, none = self._macro(_brier), self._macro(_auroc), self._none
        yield _Question("baseline", "all_zero", brier, said["all_zero"], 0, _below, none)
        yield _Question("baseline", "prevalence", brier, said["prevalence"], 0, _below, none)
        yield _Question("baseline", "view_age_sex", auroc, said["view_age_sex"], 0, _above, none)
        # Beside a champion that knows nothing of a finding, a challenger that knows nothing either is no worse.
        for k in self.urgent:
            chance = np.full(self.truth.shape, 0.5)
            yield _Question("skill", self.findings[k], self._of(k, _auroc), chance, 0, _surely_above, self._few(k))

    def _of(self, k: int, figure: OfFinding) -> Figure:
        return lambda said, weights: figure(self.truth[:, k], said[:, k], weights)

    def _macro(self, figure: OfFinding) -> Figure:
        """The mean over the findings with films enough; a draw that has none of a finding leaves it out."""
        each = [self._of(k, figure) for k in self.enough]
        return lambda said, weights: np.nanmean([of_finding(said, weights) for of_finding in each], axis=0)

    def _comparable(self, members: npt.NDArray[np.bool_]) -> int:
        """How many findings a group has that can be overlooked for another film of the group, known not to have them.

        Where only what is present was confirmed there are none, and a group's false-negative rate has no value.
        """
        positives, negatives = ((self.truth[members] == label).sum(axis=0) for label in (1, 0))  # (F,)
        return int(positives[negatives > 0].sum())

    def _gap(self, members: Sequence[npt.NDArray[np.bool_]]) -> Figure:
        """How much of what there is the worst group has overlooked, less the best: pooled over findings and cuts.

        A group's false-negative rate is that of a cut within the group, averaged over all cuts, which is 1 - AUROC, and
        over the findings by how many films have them.
        """

        def overlooked(of: npt.NDArray[np.bool_], said: Array, weights: Array) -> Array:
            truth, counted = self.truth[of], weights[:, of]
            rates = 1 - np.stack([_auroc(*each, counted) for each in zip(truth.T, said[of].T, strict=True)], axis=1)
            positives = np.where(np.isfinite(rates), counted @ (truth == 1).astype(np.float32), 0)  # (R, F)
            return ratio(np.nansum(rates * positives, axis=1), positives.sum(axis=1))

        def figure(said: Array, weights: Array) -> Array:
            rates = np.stack([overlooked(of, said, weights) for of in members])  # (G, R)
            return np.asarray(rates.max(axis=0) - rates.min(axis=0))  # NaN in a draw that leaves a group without

        return figure

    def _few(self, k: int) -> str:
        return "" if k in self.enough else f"fewer than {self.rules.min_positives} films that have it, or that have not"

    @property
    def _none(self) -> str:
        return "" if self.enough else f"no finding that {self.rules.min_positives} films have"

    @property
    def _without(self) -> str | None:
        few = [finding for k, finding in enumerate(self.findings) if k not in self.enough]
        return f"without {', '.join(few)}: too few films" if few else None


def _answer(asked: _Question, challenger: Array, draws: Sequence[Array], number: int, films_from: str) -> Check:
    nothing = Check(
        number, films_from, asked.name, asked.subject, champion=None, challenger=None, difference=None, low=None,
        high=None, bound=asked.bound, passed=False, note=f"undecided: {asked.undecided}",
    )  # fmt: skip
    if asked.undecided:
        return nothing
    everyone = np.ones((1, len(challenger)), dtype=np.float32)
    before, after = (float(asked.figure(said, everyone)[0]) for said in (asked.other, challenger))
    drawn = np.concatenate([asked.figure(challenger, each) - asked.figure(asked.other, each) for each in draws])
    drawn = drawn[np.isfinite(drawn)]
    if not np.isfinite(after - before) or not drawn.size:
        return replace(nothing, note="undecided: these films give it no value")
    low, high = np.quantile(drawn, (0.025, 0.975))
    # Rounded, so that a difference of just the bound is not beyond it by the last bit of a float.
    found = _Found(*np.round([after - before, low, high, (drawn <= 0).mean()], 6).tolist())
    passed, note = asked.passes(found, asked.bound), asked.note
    if asked.name in BESIDE:
        note = f"the baseline: {before:.4f}" if asked.name == "baseline" else "beside chance, .5"
    elif asked.name == "gap" and passed and found.difference > asked.bound:
        note = f"above the bound, but no growth in {found.fallen:.0%} of the draws: chance"
    return replace(
        nothing, champion=None if asked.name in BESIDE else before, challenger=after, difference=found.difference,
        low=found.low, high=found.high, passed=passed, note=note,
    )  # fmt: skip


def _surely_at_least(found: _Found, bound: float) -> bool:
    return found.low >= bound


def _at_least(found: _Found, bound: float) -> bool:
    return found.difference >= bound


def _at_most(found: _Found, bound: float) -> bool:
    return found.difference <= bound


def _at_most_or_chance(found: _Found, bound: float) -> bool:
    """The worst group less the best is mostly noise on some hundred films: what fails is growth that is no chance."""
    return found.difference <= bound or found.fallen > CHANCE


def _below(found: _Found, bound: float) -> bool:
    return found.difference < bound


def _surely_above(found: _Found, bound: float) -> bool:
    return found.low > bound


def _above(found: _Found, bound: float) -> bool:
    return found.difference > bound


def _auroc(truth: Array, said: Array, weights: Array) -> Array:
    return weighted_ranking(truth, said, weights)[0]


def _brier(truth: Array, said: Array, weights: Array) -> Array:
    known = truth != UNKNOWN
    inputs = np.where(known, (said - truth) ** 2, 0).astype(np.float32)
    return ratio(weights @ inputs, weights @ known.astype(np.float32))


def _sensitivity(truth: Array, said: Array, weights: Array) -> Array:
    """The share of the positives among the FLAG_SHARE of all films that are given the highest probabilities."""
    has = weights * (truth == 1)
    flagged = _flagged(said, weights, FLAG_SHARE * weights.sum(axis=1))
    return ratio((has * flagged).sum(axis=1), has.sum(axis=1))


def _flagged(said: Array, weights: Array, films: Array) -> Array:
    """Whether a film (R, N), in draws that count it (R, N) times, is among the `films` (R,) with the highest `said`.

    In [0, 1]: films of equal probability at the cut share what is left, as though one of them were drawn.
    """
    heights, height = np.unique(-said, return_inverse=True)  # the highest first
    order = np.argsort(height, kind="stable")
    starts = np.searchsorted(height[order], np.arange(len(heights)))
    together = np.add.reduceat(weights[:, order], starts, axis=1)  # (R, heights): films of one probability
    above = np.cumsum(together, axis=1) - together
    share = np.clip(np.nan_to_num(ratio(films[:, None] - above, together)), 0, 1)
    return np.asarray(share[:, height])
