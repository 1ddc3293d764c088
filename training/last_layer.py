"""The last layer in closed form: a ridge regression on what a network, as it started, reads from the films.

No rate and no steps. Every pass over the films adds to sums, and the layer is solved from them. On few films that ranks
as well as fine-tuning all layers (docs/reference/training-records.md), and costs one way through the network.
"""

import torch
from torch import Tensor

Sums = dict[str, Tensor]
"""Over films, of the last layer's inputs x (D,) and labels y (F,): float64, all that the solution needs.

films ()        how many
inputs (D,)     of x
products (D, D) of x x', and of weighted changes of x (`add_changes`)
known (F,)      of the films with a label, and with "x" of their x, (D, F)
positive (F,)   of those that have the finding, likewise
"""


def no_films(*, inputs: int, findings: int) -> Sums:
    """The sums over no films."""
    shapes = {
        "films": (),
        "inputs": (inputs,),
        "products": (inputs, inputs),
        "known": (findings,),
        "known_x": (inputs, findings),
        "positive": (findings,),
        "positive_x": (inputs, findings),
    }
    return {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}


def add(sums: Sums, inputs: Tensor, labels: Tensor) -> None:
    """Add films: inputs (N, D), labels (N, F) as `losses.targets` makes them."""
    known, positive = (~labels.isnan()).to(inputs.dtype), (labels == 1).to(inputs.dtype)
    parts = {
        "films": torch.tensor(float(len(inputs))),
        "inputs": inputs.sum(dim=0),
        "products": inputs.T @ inputs,
        "known": known.sum(dim=0),
        "known_x": inputs.T @ known,
        "positive": positive.sum(dim=0),
        "positive_x": inputs.T @ positive,
    }
    for name, part in parts.items():
        sums[name] += part.cpu().double()


def add_changes(sums: Sums, changes: Tensor, *, weight: float) -> None:
    """Penalise what slight changes of films change in the inputs (N, D): as if half of every film were moved by the
    weight's root times its change, and half against it (Bishop 1995, Training with Noise is Equivalent to Tikhonov
    Regularization)."""
    sums["products"] += weight * (changes.T @ changes).cpu().double()


def solve(sums: Sums, *, penalty: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean and variance (D,) of the inputs, and weight (F, D) and bias (F,) for inputs standardised by them and `eps`,
    as a batch norm does.

    penalty: of each input's weight (D,), in films. The weighted sums are in log odds: one Newton step of the penalised
    logistic regression that starts from every finding's frequency. They rank films as the ridge regression does; a
    calibration follows.
    """
    films, mean = sums["films"], sums["inputs"] / sums["films"]
    covariance = sums["products"] / films - torch.outer(mean, mean)
    variance = covariance.diagonal().clamp(min=0).clone()
    spread = (variance + eps).sqrt()
    correlation = covariance / torch.outer(spread, spread)
    correlation.diagonal().add_(penalty / films)
    frequency = (sums["positive"] + 0.5) / (sums["known"] + 1)  # never 0 or 1
    told = (sums["positive_x"] - frequency * sums["known_x"]) / spread[:, None] / films  # (D, F)
    told -= (mean / spread)[:, None] * (sums["positive"] - frequency * sums["known"]) / films
    slope = torch.cholesky_solve(told, torch.linalg.cholesky(correlation)) / (frequency * (1 - frequency))
    return mean, variance, slope.T, torch.logit(frequency)
