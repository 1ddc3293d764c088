"""The start of a `mobilenet_lungs`: a network that finds the lungs, and one that learned from lungs alone.

Nobody outlined lungs for us. But of many patients there are whole films in one set and films with the lungs alone in
another. Such a film is laid over a whole one of the same patient, stretched and turned until the lungs fit, and its
outline becomes that of the whole film. A patient breathes differently on each film, so no outline is exact; a small
network learned from hundreds of them is more even than they are.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_closing, binary_fill_holes
from torch import Tensor
from torch.nn.functional import (
    adaptive_avg_pool2d,
    affine_grid,
    avg_pool2d,
    binary_cross_entropy_with_logits,
    grid_sample,
)

from training import last_layer
from training.checkpoint import Calibration, Header, save_checkpoint
from training.errors import TrainingFailed
from training.fit import Films
from training.grids import LungOutline, MobileNetLungs, level_outside
from training.imaging.allocator import keep_freed_memory
from training.imaging.preprocessing import Greys
from training.losses import targets
from training.manifest import counts
from training.networks import imagenet_weights, input_of, start_from
from training.prepared import Prepared
from training.settings import UnusableSettings

BLACK: Final = 0.5  # greys; less is left where a film was black, by the filter that made it smaller
SIDE: Final = 112  # of the films that are laid over each other, in pixels
LEAST_ALIKE: Final = 0.75  # correlation inside the lungs of a pair that is learned from
MOST_PAIRS: Final = 4  # of one whole film
LUNGS_SHARE: Final = (0.12, 0.5)  # of a film that is not black: with less or more its outline failed
STARTS: Final = ((1.0, 0.0), (1.1, 0.0), (0.9, 0.0), (1.0, 0.1), (1.0, -0.1))  # scale, and way down in half films
STEPS: Final = 80  # of each start
EPOCHS, BATCH = 30, 16
RIDGE_PENALTY: Final = 5.0  # training-records.md, 17
FILMS_AT_ONCE, PAIRS_AT_ONCE = 32, 256
KEPT_ASIDE: Final = 8  # every eighth patient judges the outline


class TooFewPairs(TrainingFailed):
    """Too few whole films have a film of the same patient with the lungs alone."""


class Pairs(NamedTuple):
    """Whole films and films of the lungs alone of the same patients: ranks (P,) in each set."""

    whole: NDArray[np.int64]
    lungs: NDArray[np.int64]


def make_start(
    films: Prepared,
    lungs: Prepared,
    path: Path,
    *,
    weights: Path | bool,
    seed: int,
    code_commit: str = "",
    tell: Callable[[str], None] = lambda _: None,
) -> float:
    """Write the checkpoint that a `mobilenet_lungs` starts from; the Dice coefficient of its outlines.

    films: whole. lungs: of the lungs alone, black elsewhere, in part of the same patients; findings are learned from
    the films of all other patients, so that the whole films can judge. weights: of ImageNet's MobileNetV2, a file or
    True to let torchvision fetch them. The Dice coefficient is against the outlines laid over films of patients kept
    aside; those are not exact themselves. Raises TooFewPairs, WrongWeights, and UnusableSettings where the two sets
    differ in size or findings.
    """
    if (films.findings, films.preprocessing.size) != (lungs.findings, lungs.preprocessing.size):
        raise UnusableSettings("the whole films and those of the lungs were prepared for other findings or sizes")
    keep_freed_memory()  # the layers' outputs are large blocks: handing them back takes as long as the sums
    network = MobileNetLungs(findings=len(lungs.findings))
    start_from(network, imagenet_weights("mobilenet_v2", weights))
    network.outline, facts = learn_outline(films, lungs, seed=seed, tell=tell)

    apart = ~_has_whole_film(lungs, films)
    part = lungs.manifest[apart]
    solve_lungs(network, lungs, np.flatnonzero(apart))
    tell(f"findings learned from {len(part):,} films of the lungs of {part['patient_id'].nunique():,} patients")
    training = {
        "settings": {"ridge_penalty": RIDGE_PENALTY, "seed": seed, "start": getattr(weights, "name", "imagenet")},
        **counts({"train": part}, findings=lungs.findings),
        "outline": facts,
    }
    zeros = (0.0,) * len(lungs.findings)
    header = Header(
        network="mobilenet_lungs",
        findings=lungs.findings,
        preprocessing=input_of("mobilenet_lungs", size=lungs.preprocessing.size),
        calibration=Calibration(shift=zeros, slope=tuple(1.0 for _ in zeros), intercept=zeros),
        training=training,
        code_commit=code_commit,
    )
    save_checkpoint(path, header, state=network.state_dict(), half=True)
    return float(facts["dice"])


def learn_outline(
    films: Prepared, lungs: Prepared, *, seed: int, tell: Callable[[str], None]
) -> tuple[LungOutline, dict[str, float]]:
    """The network that finds the lungs, how many films and pairs it learned from, and its Dice coefficient on films
    that were kept aside and fitted a pair as well. Raises TooFewPairs."""
    both = _has_whole_film(lungs, films)
    share = np.zeros(len(lungs.manifest))  # of films that can be in a pair; of no others it is needed
    share[both] = [lungs_of(film).mean() for film in _films(lungs, np.flatnonzero(both))]
    pairs = pairs_of(films.manifest, lungs.manifest, share=share)
    _enough(len(np.unique(pairs.whole)))
    tell(f"{len(pairs.whole):,} pairs of {len(np.unique(pairs.whole)):,} whole films")
    whole, of_lungs = _small(_films(films, pairs.whole)), _small(_films(lungs, pairs.lungs))
    inside = _small(255 * lungs_of(film).astype(np.uint8) for film in _films(lungs, pairs.lungs))
    parts = zip(*(torch.split(each, PAIRS_AT_ONCE) for each in (whole, of_lungs, inside)), strict=True)
    laid = [lay_over(*part) for part in parts]

    alike, outlines = np.concatenate([fit for fit, _ in laid]), torch.cat([outline for _, outline in laid])
    learned = [np.flatnonzero((pairs.whole == rank) & (alike >= LEAST_ALIKE)) for rank in np.unique(pairs.whole)]
    learned = [which for which in learned if len(which)]
    _enough(len(learned))
    first = np.array([which[0] for which in learned])
    found = torch.stack([outlines[which].mean(dim=0) for which in learned])
    patients = films.manifest["patient_id"].to_numpy(dtype=str)[pairs.whole[first]]
    aside = np.isin(patients, np.unique(patients)[::KEPT_ASIDE])
    _enough(int((~aside).sum()))
    outline, dice = fit_outline(whole[first], found, aside=aside, seed=seed, tell=tell)
    return outline, {"films": len(learned), "pairs": int((alike >= LEAST_ALIKE).sum()), "dice": round(dice, 4)}


@torch.inference_mode()
def solve_lungs(network: MobileNetLungs, lungs: Prepared, which: NDArray[np.int64]) -> None:
    """Solve the layer that reads the lungs from these films of them, by their ranks (n,); see `training.last_layer`.

    It says what the evidence adds, and not how frequent a finding is: that says the layer to which it is added.
    """
    network = network.eval().to(memory_format=torch.channels_last)
    layer, preprocessing = network.lungs, input_of("mobilenet_lungs", size=lungs.preprocessing.size)
    sums = last_layer.no_films(inputs=layer.evidence.in_features, findings=len(lungs.findings))
    films = Films.of(lungs, None)
    for start in range(0, len(which), FILMS_AT_ONCE):
        here = which[start : start + FILMS_AT_ONCE]
        images, labels = films.read(here), targets(films.labels[here])
        inside = torch.from_numpy(np.stack([lungs_of(film) for film in images.numpy()]))[:, None].float()
        alone = level_outside(preprocessing.tensor(images), inside)  # these films are black there
        alone = alone.contiguous(memory_format=torch.channels_last)
        last_layer.add(sums, network.pooled_of_lungs(alone, inside), labels)
    penalty = RIDGE_PENALTY * layer.inputs_alike()
    mean, variance, weight, bias = last_layer.solve(sums, penalty=penalty, eps=layer.norm.eps)
    layer.set_last_layer(mean, variance, weight, torch.zeros_like(bias))


def _enough(films: int) -> None:
    if films < BATCH:
        raise TooFewPairs(f"only {films} whole films have a film of the same patient's lungs alone that fits")


def lungs_of(film: Greys) -> NDArray[np.bool_]:
    """Where a film with the lungs alone is not black, (size, size); dark places within the lungs belong to them."""
    edge = 2  # so that what touches the film's border is closed as elsewhere
    inside: NDArray[np.bool_] = binary_fill_holes(binary_closing(np.pad(film >= BLACK, edge), iterations=edge))
    return inside[edge:-edge, edge:-edge]


def pairs_of(films: pd.DataFrame, lungs: pd.DataFrame, *, share: NDArray[np.floating]) -> Pairs:
    """Pairs of the manifests' films: at most MOST_PAIRS of a whole film, those of its own view where there are any.

    share: of each film of `lungs` that is lung, (N,).
    """
    usable = lungs.assign(rank=np.arange(len(lungs)))[(share > LUNGS_SHARE[0]) & (share < LUNGS_SHARE[1])]
    of_patient = dict(iter(usable.groupby(usable["patient_id"].astype(str))))
    whole: list[int] = []
    of_lungs: list[int] = []
    for rank, (patient, view) in enumerate(zip(films["patient_id"].astype(str), films["view_position"], strict=True)):
        others = of_patient.get(patient, usable[:0])
        same_view = others[others["view_position"] == view]
        chosen = (same_view if len(same_view) else others)["rank"][:MOST_PAIRS].tolist()
        whole += [rank] * len(chosen)
        of_lungs += chosen
    return Pairs(np.array(whole, dtype=np.int64), np.array(of_lungs, dtype=np.int64))


def lay_over(whole: Tensor, lungs: Tensor, inside: Tensor) -> tuple[NDArray[np.float32], Tensor]:
    """Stretch, turn and move each whole film until it agrees with the lungs: how well it does, and the lungs on it.

    whole, lungs, inside: (P, 1, SIDE, SIDE), the last the share of each place that is lung. The result is the
    correlation inside the lungs (P,), and where the lungs lie on the whole film, 0 to 1, as `inside` is shaped.
    """
    smooth, core = avg_pool2d(whole, 3, 1, 1, count_include_pad=False), (inside > 0.99).float()
    best, found = torch.full((len(whole),), -1.0), torch.zeros(len(whole), 2, 3)
    same = torch.eye(2, 3)
    for scale, down in STARTS:
        change = torch.zeros(len(whole), 2, 3)
        change[:, 0, 0], change[:, 1, 1], change[:, 1, 2] = scale - 1, scale - 1, down
        change.requires_grad_()
        optimizer = torch.optim.Adam([change], lr=0.01)
        for _ in range(STEPS):
            tried = change.detach().clone()
            grid = affine_grid(same + change, list(whole.shape), align_corners=False)
            moved = grid_sample(smooth, grid, align_corners=False, padding_mode="border")
            alike = _correlation(moved, lungs, core)
            stretched = change[:, :, :2].square().sum(dim=(1, 2)) / 2
            optimizer.zero_grad()
            torch.autograd.backward((stretched - alike).sum())
            optimizer.step()
        better = alike.detach() > best
        best[better], found[better] = alike.detach()[better], (same + tried)[better]
    last_row = torch.tensor([[[0.0, 0.0, 1.0]]]).expand(len(whole), 1, 3)
    back = torch.linalg.inv(torch.cat([found, last_row], dim=1))[:, :2]
    grid = affine_grid(back, list(inside.shape), align_corners=False)
    correlations: NDArray[np.float32] = best.numpy()
    return correlations, grid_sample(inside, grid, align_corners=False)


def fit_outline(
    films: Tensor, outlines: Tensor, *, aside: NDArray[np.bool_], seed: int, tell: Callable[[str], None]
) -> tuple[LungOutline, float]:
    """The network learned from films and outlines (N, 1, SIDE, SIDE) that are not `aside` (N,), and the mean Dice
    coefficient of its outlines on those that are."""
    torch.manual_seed(seed)
    drawn, network = torch.Generator().manual_seed(seed), LungOutline().to(memory_format=torch.channels_last)
    outlines = adaptive_avg_pool2d(outlines, LungOutline.SIDE)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-4)
    learned = torch.from_numpy(np.flatnonzero(~aside))
    steps = len(learned) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=EPOCHS * steps + 1)
    for epoch in range(EPOCHS):
        network.train()
        order = learned[torch.randperm(len(learned), generator=drawn)]
        for step in range(steps):
            which = order[step * BATCH : (step + 1) * BATCH]
            shown, target = _disturbed(films[which], outlines[which], drawn)
            logits = network(shown)
            loss = binary_cross_entropy_with_logits(logits, target) + 1 - _dice(logits.sigmoid(), target).mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
        if (epoch + 1) % 10 == 0:
            tell(f"outline, epoch {epoch + 1}/{EPOCHS}: loss {loss.item():.3f}")
    network.eval()
    with torch.inference_mode():
        found = network(films[torch.from_numpy(aside)]) > 0
    true = outlines[torch.from_numpy(aside)] > 0.5
    return network, float(_dice(found.float(), true.float()).mean())


def _has_whole_film(lungs: Prepared, films: Prepared) -> NDArray[np.bool_]:
    """Which films of the lungs (N,) are of a patient who has a whole film too."""
    patients, whole = (prepared.manifest["patient_id"].astype(str) for prepared in (lungs, films))
    return patients.isin(whole).to_numpy()


def _films(prepared: Prepared, ranks: NDArray[np.int64]) -> Iterator[Greys]:
    """These films of a prepared set, each (size, size); one at a time, since a set may be larger than the memory."""
    films = Films.of(prepared, None)
    return (films.read(ranks[which : which + 1])[0].numpy() for which in range(len(ranks)))


def _small(films: Iterable[Greys]) -> Tensor:
    """(N, 1, SIDE, SIDE) in [0, 1]."""
    return torch.stack([adaptive_avg_pool2d(torch.from_numpy(film)[None].float() / 255, SIDE) for film in films])


def _correlation(first: Tensor, second: Tensor, inside: Tensor) -> Tensor:
    """Of pairs of films (P, 1, h, w) over the places inside (1) and not outside (0): (P,)."""
    places = inside.sum(dim=(1, 2, 3), keepdim=True) + 1e-3
    first, second = (
        (film - (film * inside).sum(dim=(1, 2, 3), keepdim=True) / places) * inside for film in (first, second)
    )
    squares = first.square().sum(dim=(1, 2, 3)) * second.square().sum(dim=(1, 2, 3))
    return (first * second).sum(dim=(1, 2, 3)) / (squares + 1e-6).sqrt()


def _dice(first: Tensor, second: Tensor) -> Tensor:
    """Of shares (N, 1, h, w): (N,)."""
    both = (first * second).sum(dim=(1, 2, 3))
    return (2 * both + 1) / (first.sum(dim=(1, 2, 3)) + second.sum(dim=(1, 2, 3)) + 1)


def _disturbed(films: Tensor, outlines: Tensor, drawn: torch.Generator) -> tuple[Tensor, Tensor]:
    """Turned, stretched, moved and mirrored, and films also lighter or darker and with grain."""

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=drawn) - 0.5

    count = len(films)
    angle, mirror = random(count) * 0.3, torch.where(random(count) < 0, -1.0, 1.0)
    scale, move = 1 + random(count, 2) * 0.3, random(count, 2) * 0.2
    rows = (
        torch.stack([angle.cos() * scale[:, 0] * mirror, -angle.sin() * scale[:, 1], move[:, 0]], dim=1),
        torch.stack([angle.sin() * scale[:, 0] * mirror, angle.cos() * scale[:, 1], move[:, 1]], dim=1),
    )
    grid = affine_grid(torch.stack(rows, dim=1), list(films.shape), align_corners=False)
    films = grid_sample(films, grid, align_corners=False, padding_mode="border")
    grid = affine_grid(torch.stack(rows, dim=1), list(outlines.shape), align_corners=False)
    outlines = grid_sample(outlines, grid, align_corners=False)
    films = films.clamp(0, 1) ** (1 + random(count, 1, 1, 1) * 0.8)
    films = films + torch.randn(films.shape, generator=drawn) * 0.02
    return films.contiguous(memory_format=torch.channels_last), outlines
