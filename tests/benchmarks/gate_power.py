"""How often each check of the gate passes, fails or stays undecided: the table "Power" of the retraining page.

python -m tests.benchmarks.gate_power [--repeats 40] [--positives 10 30 100 300] [--checks CHECK ...]

Films are drawn of which a tenth has each finding. A champion and a challenger score them with true AUROCs that are
known, 70 % of the noise in common, as two networks of one kind have. What the gate decides is counted over the repeats.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from training.findings import FINDINGS
from training.gate import Check, Rules
from worker.ranking.priority import DEFAULT_POLICY
from worker.retraining.judging import Comparison

Array = NDArray[np.floating]

PREVALENCE = 0.1
OWN_NOISE = 0.3  # the share of a network's noise, in variance, that the other has not
POSITIVES = (10, 30, 100, 300)


def draw_films(positives: int, rng: np.random.Generator) -> pd.DataFrame:
    """Films of as many patients, of which a given number have each finding, independent of all else."""
    films = round(positives / PREVALENCE)
    labels = np.zeros((films, len(FINDINGS)), dtype=np.uint8)
    labels[:positives] = 1
    described = pd.DataFrame(rng.permuted(labels, axis=0), columns=list(FINDINGS))
    return described.assign(
        image=[f"{film}.png" for film in range(films)], patient_id=[str(film) for film in range(films)],
        age_years=rng.choice([30.0, 50.0, 70.0], films), sex=rng.choice(["M", "F"], films),
        view_position=rng.choice(["AP", "PA"], films), split="test",
    )  # fmt: skip


@dataclass(frozen=True)
class Network:
    """A network whose probabilities are calibrated, unless `surer`, by which its log odds are multiplied.

    blind_to: films of this view it scores by chance.
    """

    auroc: float
    surer: float = 1.0
    blind_to: str = ""

    def probabilities(self, films: pd.DataFrame, common: Array, rng: np.random.Generator) -> Array:
        """(N, F), of films whose noise `common` (N, F) is another network's too."""
        truth = films[list(FINDINGS)].to_numpy() == 1
        apart = np.sqrt(2) * norm.ppf(self.auroc)
        noise = np.sqrt(1 - OWN_NOISE) * common + np.sqrt(OWN_NOISE) * rng.normal(size=common.shape)
        odds = np.log(PREVALENCE / (1 - PREVALENCE)) + apart * (apart * truth + noise) - apart**2 / 2
        probabilities = 1 / (1 + np.exp(-self.surer * odds))
        unseen = (films["view_position"] == self.blind_to).to_numpy()
        probabilities[unseen] = rng.permutation(probabilities[unseen])
        return np.asarray(probabilities)


GOOD = Network(0.80)
FAIR = Network(0.65)
CHANCE = Network(0.501)
FAULTS = {  # check, subject -> the fault that it is there to find
    "macro_auroc": Network(0.70), "auroc": Network(0.70), "sensitivity": Network(0.70), "ece": Network(0.80, surer=2),
    "gap view": Network(0.80, blind_to="PA"), "baseline all_zero": Network(0.80, surer=3),
    "baseline prevalence": Network(0.80, surer=3), "baseline view_age_sex": CHANCE, "skill": CHANCE,
    "time_to_report": Network(0.70), "macro_auroc, recent": Network(0.70),
}  # fmt: skip


@dataclass(frozen=True)
class Scenario:
    """Two networks, and which checks are counted on them."""

    name: str
    champion: Network
    challenger: Network
    checks: tuple[str, ...]


def scenarios(checks: Sequence[str]) -> list[Scenario]:
    """Every pair of networks with those of the checks that are counted on it."""
    faults: dict[Network, list[str]] = {}
    for check in checks:
        faults.setdefault(FAULTS[check], []).append(check)
    skill = tuple(check for check in checks if check == "skill")
    pairs = [
        Scenario("better, .85 beside .80", GOOD, Network(0.85), tuple(checks)),
        Scenario("as good, .80", GOOD, GOOD, tuple(checks)),
        *(Scenario("its own fault", GOOD, fault, tuple(found)) for fault, found in faults.items()),
        Scenario(".65 beside chance", CHANCE, FAIR, skill),
        Scenario("chance beside chance", CHANCE, CHANCE, skill),
    ]
    return [pair for pair in pairs if pair.checks]


def decide(scenario: Scenario, *, positives: int, seed: int, replicates: int) -> list[Check]:
    """The gate's checks of one draw of films."""
    rng = np.random.default_rng([seed, positives])
    films, train = draw_films(positives, rng), draw_films(30, rng)
    common = rng.normal(size=(len(films), len(FINDINGS)))
    champion, challenger = (
        network.probabilities(films, common, rng) for network in (scenario.champion, scenario.challenger)
    )
    compare = Comparison(train, Rules(replicates=replicates), DEFAULT_POLICY)
    checks: list[Check] = []
    if scenario.checks != ("time_to_report",):
        checks += compare.films(films, champion, challenger, films_from="gold")
    if "macro_auroc, recent" in scenario.checks:
        checks += compare.recent(films, champion, challenger)
    if "time_to_report" in scenario.checks:
        checks.append(compare.time_to_report(films, champion, challenger, most=0.0))
    return checks


def named(check: Check) -> str:
    """As FAULTS names it: the check of one urgent finding stands for those of the others."""
    subject = check.subject if check.name in ("gap", "baseline") else ""
    return f"{check.name} {subject}".strip() + (", recent" if check.films_from == "recent" else "")


def power(scenario: Scenario, *, positives: int, repeats: int, replicates: int) -> dict[str, str]:
    """Check -> how often it passed, was undecided and failed, in percent: "60/30/10"."""
    counts: dict[str, Counter[str]] = {check: Counter() for check in scenario.checks}
    for seed in range(repeats):
        checks = {named(check): check for check in reversed(decide(scenario, positives=positives, seed=seed,
                                                                   replicates=replicates))}  # fmt: skip
        for name in scenario.checks:
            counts[name][checks[name].result] += 1
    return {name: "/".join(f"{100 * count[result] / repeats:.0f}" for result in ("passed", "undecided", "failed"))
            for name, count in counts.items()}  # fmt: skip


def print_table(checks: Sequence[str], sizes: Sequence[int], *, repeats: int, replicates: int) -> None:
    """A row per check and scenario, as the page has it."""
    print(f"| check | challenger | {' | '.join(map(str, sizes))} |")
    print("|---|---|" + "---|" * len(sizes))
    for scenario in scenarios(checks):
        columns = [power(scenario, positives=size, repeats=repeats, replicates=replicates) for size in sizes]
        for check in scenario.checks:
            print(f"| {' | '.join([check, scenario.name, *(column[check] for column in columns)])} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--replicates", type=int, default=200, help="bootstrap draws of a judging")
    parser.add_argument("--positives", type=int, nargs="+", default=POSITIVES, help="films with each finding")
    parser.add_argument("--checks", nargs="+", choices=FAULTS, default=[*FAULTS], metavar="CHECK",
                        help=f"only these: {', '.join(FAULTS)}")  # fmt: skip
    arguments = parser.parse_args()
    print_table(arguments.checks, arguments.positives, repeats=arguments.repeats, replicates=arguments.replicates)


if __name__ == "__main__":
    main()
