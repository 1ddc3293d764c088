"""The gate: whether a challenger may take the champion's place, judged on films that neither learned from.

Both are asked about the same films, and every difference has a paired bootstrap over patients: the same draws for both,
so that what is hard for either cancels. The retraining page of the docs says why each check decides as it does.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from training.manifest import findings_in
from training.metrics import (
    baselines,
    groups,
    patient_draws,
    ratio,
    weighted_brier,
    weighted_calibration_error,
    weighted_ranking,
)

Array = npt.NDArray[np.floating]
Result: TypeAlias = Literal["passed", "failed", "undecided"]
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
"""A gap has grown when it has in all but this share of the draws."""
LITTLE: Final = 0.1
"""An AUROC whose whole interval lies at most this far above chance has shown that the finding is not seen."""


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

    Beside a baseline `champion` is None; there and beside chance the difference is the challenger's to those. A check
    is undecided where these films are too few for what it asks and nothing in them speaks against the challenger; then
    `positives_needed` says how many films with the finding would decide it, if its figures stay as they are.
    """

    number: int
    films_from: str
    name: str
    subject: str
    champion: float | None = None
    challenger: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    bound: float | None = None
    result: Result = "undecided"
    positives_needed: int | None = None
    note: str | None = None


def overall(results: Iterable[Result]) -> Result:
    """The result of a whole verdict: failed where any check has, else undecided where any is, else passed."""
    known = set(results)
    if not known or "failed" in known:
        return "failed"
    return "undecided" if "undecided" in known else "passed"


class _Measured(NamedTuple):
    """The challenger's figure less the other's, its 95 % interval, and the share of draws in which it is 0 or less.

    rival_low: the lower end of the champion's own interval, where the other is chance.
    """

    difference: float
    low: float
    high: float
    fallen: float
    rival_low: float = math.nan


class _Question(NamedTuple):
    """A figure of the challenger beside that of `other`, probabilities (N, F), and how its difference is decided.

    positives: films with the finding, or with any of several. too_few: why these films cannot show it, if they cannot;
    empty otherwise. rival: the champion, where `other` is chance. futile: the difference at which the interval's other
    end would decide, where it can. note: what else to know of the answer.
    """

    name: str
    subject: str
    figure: Figure
    other: Array
    bound: float
    decide: Callable[[_Measured, float], Result]
    positives: int = 0
    too_few: str = ""
    rival: Array | None = None
    futile: float = math.inf
    note: str | None = None


class JudgedFilms(NamedTuple):
    """A manifest of films, one or more, that neither checkpoint learned from; where they are `films_from`, as checks
    say; and the films to `train` the baselines on."""

    manifest: pd.DataFrame
    films_from: str
    train: pd.DataFrame


def judge(
    films: JudgedFilms,
    champion: npt.ArrayLike,
    challenger: npt.ArrayLike,
    *,
    rules: Rules,
    categories: Mapping[str, str],
    rng: np.random.Generator,
) -> list[Check]:
    """Every check of a challenger beside a champion and the baselines, but for those that need a reading room.

    champion, challenger: calibrated probabilities (N, F) for the films, columns as the manifest's findings. categories:
    finding -> "A" to "D". Memory: 4 bytes per film and draw.
    """
    old, new = np.asarray(champion, dtype=float), np.asarray(challenger, dtype=float)
    bench = _Bench.of(films.manifest, rules, categories)
    known = baselines(films.train, films.manifest)
    questions = [*bench.rankings(old), *bench.gaps(old), *bench.beside(known, champion=old)]
    draws = list(patient_draws(films.manifest["patient_id"], rng=rng, replicates=rules.replicates))
    return [
        _answer(question, new, draws, Check(number, films.films_from, question.name, question.subject), rules)
        for number, question in enumerate(questions, start=1)
    ]


def judge_mean(
    line: Check,
    champion: Array,
    challenger: Array,
    *,
    counts: Array,
    bound: float,
    draws: Sequence[Array],
    rules: Rules,
) -> Check:
    """The check `line`, on a mean that may grow by at most `bound`.

    champion, challenger: what each film adds up to (N,), over the `counts` (N,) times that it was measured; a film that
    was not measured has 0 in all three. draws: of patients, (R, N).
    """
    question = _Question(
        line.name, line.subject, lambda totals, weights: ratio(weights @ totals, weights @ counts), champion, bound,
        _clearly_at_most, int(np.count_nonzero(counts)), futile=bound,
    )  # fmt: skip
    return _answer(question, challenger, draws, line, rules)


class _Bench(NamedTuple):
    """The films that both are judged on: labels (N, F), columns of urgent findings and of those with films enough.

    rarer: (F,) films that have a finding, or have it not, whichever are fewer.
    """

    films: pd.DataFrame
    rules: Rules
    findings: tuple[str, ...]
    truth: Array
    urgent: list[int]
    rarer: list[int]
    enough: list[int]

    @classmethod
    def of(cls, films: pd.DataFrame, rules: Rules, categories: Mapping[str, str]) -> "_Bench":
        findings = findings_in(films)
        truth = films[list(findings)].to_numpy(dtype=float)
        urgent = [k for k, finding in enumerate(findings) if categories.get(finding) in URGENT]
        rarer = np.minimum((truth == 1).sum(axis=0), (truth == 0).sum(axis=0)).tolist()
        enough = [k for k, count in enumerate(rarer) if count >= rules.min_positives]
        return cls(films, rules, findings, truth, urgent, rarer, enough)

    def rankings(self, champion: Array) -> Iterator[_Question]:
        """How well both rank the films, and how far their probabilities can be believed."""
        rules, none, without = self.rules, self._none, self._without
        positives = sum(self.rarer[k] for k in self.enough)
        yield _Question(
            "macro_auroc", "", self._macro(_auroc), champion, rules.macro_auroc, _surely_at_least, positives, none,
            note=without,
        )  # fmt: skip
        for k in self.urgent:
            auroc, decide = self._of(k, _auroc), _at_least if k in self.enough else _not_worse
            yield _Question(
                "auroc", self.findings[k], auroc, champion, rules.finding_auroc, decide, too_few=self._few(k)
            )
        if FLAGGED in self.findings:
            k = self.findings.index(FLAGGED)
            flagged, decide = self._of(k, _sensitivity), _clearly_at_least if k in self.enough else _not_clearly_worse
            yield _Question(
                "sensitivity", FLAGGED, flagged, champion, rules.sensitivity, decide, self.rarer[k], self._few(k),
                futile=rules.sensitivity,
            )  # fmt: skip
        ece = self._macro(weighted_calibration_error)
        yield _Question("ece", "", ece, champion, rules.ece, _at_most, too_few=none, note=without)

    def gaps(self, champion: Array) -> Iterator[_Question]:
        """Whether one sex, age band or view is overlooked more than another."""
        least = self.rules.min_positives
        for attribute in ATTRIBUTES:
            every = [members for name, _, members in groups(self.films) if name == attribute]
            large = [members for members in every if self._comparable(members) >= least]
            # Films of one group alone have no gap that could grow; else two groups must be large enough to compare.
            enough = len(large) >= min(2, max(1, len(every)))
            why = "" if enough else f"no two groups with {least} findings each that others of the group have not"
            figure = self._gap(large) if enough else _nothing
            yield _Question("gap", attribute, figure, champion, self.rules.gap, _at_most_or_chance, too_few=why)

    def beside(self, probabilities: Mapping[str, Array], *, champion: Array) -> Iterator[_Question]:
        """Whether the challenger is worth more than silence, a constant, what needs no film, and chance."""
        brier, auroc, none = self._macro(weighted_brier), self._macro(_auroc), self._none
        for name, figure, decide in (
            ("all_zero", brier, _below), ("prevalence", brier, _below), ("view_age_sex", auroc, _above),
        ):  # fmt: skip
            yield _Question("baseline", name, figure, probabilities[name], 0, decide, too_few=none)
        # Beside a champion that knows nothing of a finding, a challenger that knows nothing either is no worse.
        chance = np.full(self.truth.shape, 0.5)
        for k in self.urgent:
            yield _Question(
                "skill", self.findings[k], self._of(k, _auroc), chance, 0, _skilled if k in self.enough else _open,
                self.rarer[k], self._few(k), champion, LITTLE,
            )  # fmt: skip

    def _of(self, k: int, figure: OfFinding) -> Figure:
        return lambda probabilities, weights: figure(self.truth[:, k], probabilities[:, k], weights)

    def _macro(self, figure: OfFinding) -> Figure:
        """The mean over the findings with films enough; a draw that has none of a finding leaves it out."""
        if not self.enough:
            return _nothing
        each = [self._of(k, figure) for k in self.enough]
        return lambda probabilities, weights: np.nanmean([of(probabilities, weights) for of in each], axis=0)

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

        def overlooked(of: npt.NDArray[np.bool_], probabilities: Array, weights: Array) -> Array:
            truth, counted = self.truth[of], weights[:, of]
            columns = zip(truth.T, probabilities[of].T, strict=True)
            rates = 1 - np.stack([_auroc(*column, counted) for column in columns], axis=1)
            positives = np.where(np.isfinite(rates), counted @ (truth == 1).astype(np.float32), 0)  # (R, F)
            return ratio(np.nansum(rates * positives, axis=1), positives.sum(axis=1))

        def figure(probabilities: Array, weights: Array) -> Array:
            rates = np.stack([overlooked(of, probabilities, weights) for of in members])  # (G, R)
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


# ------------------------------------------------------------------------------------------------------- the answers


def _answer(question: _Question, challenger: Array, draws: Sequence[Array], line: Check, rules: Rules) -> Check:
    line = replace(line, bound=question.bound)
    everyone = np.ones((1, len(challenger)), dtype=np.float32)
    before, after = (float(question.figure(each, everyone)[0]) for each in (question.other, challenger))
    measured = _measured(question, challenger, draws, difference=after - before)
    if measured is None:
        why = question.too_few or "these films give it no value"
        return replace(line, positives_needed=rules.min_positives, note=f"undecided: {why}")
    result = question.decide(measured, question.bound)
    needed = None
    if result == "undecided":
        needed = rules.min_positives if question.too_few else _needed(question, measured)
    champion: float | None = before
    if question.name in BESIDE:
        champion = None if question.rival is None else float(question.figure(question.rival, everyone)[0])
    return replace(
        line, champion=champion, challenger=after, difference=measured.difference, low=measured.low, high=measured.high,
        result=result, positives_needed=needed, note=_note(question, measured, result, needed, before=before),
    )  # fmt: skip


def _measured(question: _Question, challenger: Array, draws: Sequence[Array], *, difference: float) -> _Measured | None:
    """The difference with its interval; None where these films give it no value."""
    apart = _apart(question, challenger, draws)
    if not np.isfinite(difference) or not apart.size:
        return None
    low, high = np.quantile(apart, (0.025, 0.975))
    rival_low = math.nan
    if question.rival is not None and (rival := _apart(question, question.rival, draws)).size:
        rival_low = float(np.quantile(rival, 0.025))
    # Rounded, so that a difference of just the bound is not beyond it by the last bit of a float.
    return _Measured(*np.round([difference, low, high, (apart <= 0).mean(), rival_low], 6).tolist())


def _apart(question: _Question, probabilities: Array, draws: Sequence[Array]) -> Array:
    """The figure less the other's in each draw that gives both a value."""
    drawn = [question.figure(probabilities, each) - question.figure(question.other, each) for each in draws]
    apart = np.concatenate(drawn)
    return apart[np.isfinite(apart)]


def _needed(question: _Question, measured: _Measured) -> int | None:
    """How many positives would decide it at today's difference: an interval's width falls with their square root."""
    difference, low, high = measured[:3]
    ways = [(difference - low, difference - question.bound), (high - difference, question.futile - difference)]
    numbers = [question.positives * (half / room) ** 2 for half, room in ways if 0 < room < math.inf]
    return max(question.positives + 1, math.ceil(min(numbers))) if numbers else None


def _note(question: _Question, measured: _Measured, result: Result, needed: int | None, *, before: float) -> str | None:
    parts = [question.note]
    if question.name in BESIDE:
        parts.append(f"the baseline: {before:.4f}" if question.name == "baseline" else "beside chance, .5")
    if result == "undecided":
        more = f"about {needed} positives would decide it" if needed else "the difference is the bound itself"
        parts.append(f"undecided: {question.too_few or more}")
    elif question.too_few:
        parts.append(f"{question.too_few}, and worse beyond the bound")
    elif question.name == "gap" and result == "passed" and measured.difference > question.bound:
        parts.append(f"above the bound, but no growth in {measured.fallen:.0%} of the draws: chance")
    elif question.name == "skill" and result == "failed":
        parts.append("the champion has shown skill" if measured.rival_low > 0 else "shown to know next to nothing")
    return "; ".join(part for part in parts if part) or None


def _decided(passes: bool) -> Result:
    return "passed" if passes else "failed"


def _surely_at_least(measured: _Measured, bound: float) -> Result:
    """Passed when the interval lies above the bound; failed already when the difference is below it."""
    if measured.low < bound <= measured.difference:
        return "undecided"
    return _decided(measured.low >= bound)


def _clearly_at_least(measured: _Measured, bound: float) -> Result:
    """Passed or failed when the whole interval lies on that side of the bound."""
    return "passed" if measured.low >= bound else _not_clearly_worse(measured, bound)


def _not_clearly_worse(measured: _Measured, bound: float) -> Result:
    """On too few films nothing passes, and what is surely worse fails."""
    return "failed" if measured.high < bound else "undecided"


def _clearly_at_most(measured: _Measured, bound: float) -> Result:
    """As _clearly_at_least, of a figure that should be low."""
    if measured.low > bound:
        return "failed"
    return "passed" if measured.high <= bound else "undecided"


def _at_least(measured: _Measured, bound: float) -> Result:
    return _decided(measured.difference >= bound)


def _not_worse(measured: _Measured, bound: float) -> Result:
    """On too few films nothing passes, and what is worse fails."""
    return "undecided" if measured.difference >= bound else "failed"


def _at_most(measured: _Measured, bound: float) -> Result:
    return _decided(measured.difference <= bound)


def _at_most_or_chance(measured: _Measured, bound: float) -> Result:
    """The worst group less the best is mostly noise on some hundred films: what fails is growth that is no chance."""
    return _decided(measured.difference <= bound or measured.fallen > CHANCE)


def _below(measured: _Measured, bound: float) -> Result:
    return _decided(measured.difference < bound)


def _above(measured: _Measured, bound: float) -> Result:
    return _decided(measured.difference > bound)


def _skilled(measured: _Measured, bound: float) -> Result:
    """Passed when surely better than chance. Failed when surely little better, or when the champion is and this is not.

    Whether it is worse than the champion is the check on the finding's AUROC.
    """
    if measured.low > bound:
        return "passed"
    return "failed" if measured.rival_low > bound or measured.high <= LITTLE else "undecided"


def _open(_measured: _Measured, _bound: float) -> Result:
    return "undecided"


# ------------------------------------------------------------------------------------------------------- the figures


def _nothing(_probabilities: Array, weights: Array) -> Array:
    return np.full(len(weights), np.nan)


def _auroc(truth: Array, probabilities: Array, weights: Array) -> Array:
    return weighted_ranking(truth, probabilities, weights)[0]


def _sensitivity(truth: Array, probabilities: Array, weights: Array) -> Array:
    """The share of the positives among the FLAG_SHARE of all films that are given the highest probabilities."""
    present = weights * (truth == 1)
    flagged = _flagged(probabilities, weights, FLAG_SHARE * weights.sum(axis=1))
    return ratio((present * flagged).sum(axis=1), present.sum(axis=1))


def _flagged(probabilities: Array, weights: Array, films: Array) -> Array:
    """Whether a film (R, N), in draws that count it (R, N) times, is among the `films` (R,) most probable ones.

    In [0, 1]: films of equal probability at the cut share what is left, as though one of them were drawn.
    """
    heights, height = np.unique(-probabilities, return_inverse=True)  # the highest first
    order = np.argsort(height, kind="stable")
    starts = np.searchsorted(height[order], np.arange(len(heights)))
    together = np.add.reduceat(weights[:, order], starts, axis=1)  # (R, heights): films of one probability
    above = np.cumsum(together, axis=1) - together
    share = np.clip(np.nan_to_num(ratio(films[:, None] - above, together)), 0, 1)
    return np.asarray(share[:, height])
