"""Loss functions, and what each does to the network's logits.

A weighted loss moves the best logit of every finding by a known amount, log(positive weight / negative weight). That
shift goes into the checkpoint, and calibration takes it back before it fits anything.
"""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from training.manifest import UNKNOWN
from training.settings import UnusableSettings

LOSSES: Final = ("bce", "wbce", "wbce_normalised", "asymmetric")


def targets(labels: NDArray[np.uint8]) -> Tensor:
    """A manifest's labels as the losses take them: float32 of the same shape, NaN for unknown."""
    given = torch.from_numpy(labels)
    return given.float().masked_fill(given == UNKNOWN, torch.nan)


class Loss(nn.Module):
    """The sum over findings of the mean over the films whose label is known; a finding without any adds nothing."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits and labels (0, 1, or NaN for unknown), both (N, F) -> a scalar."""
        known = ~labels.isnan()
        # Unknown labels are replaced before they are used: a NaN that is masked afterwards still reaches the gradient.
        of_pairs = self.of_pairs(logits, labels.nan_to_num()) * known
        return (of_pairs.sum(dim=0) / known.sum(dim=0).clamp(min=1)).sum()

    def of_pairs(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss (N, F) of each film and finding, from logits and 0/1 labels (N, F)."""
        raise NotImplementedError


class WeightedBce(Loss):
    """Binary cross entropy with a weight for each finding's positives and one for its negatives.

    -(wp y log q + wn (1 - y) log(1 - q)), q = sigmoid(logit).
    """

    positive: Tensor  # (F,)
    negative: Tensor  # (F,)

    def __init__(self, positive: Tensor, negative: Tensor) -> None:
        super().__init__()
        self.register_buffer("positive", positive)
        self.register_buffer("negative", negative)

    def of_pairs(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See Loss."""
        hit, silence = labels * logsigmoid(logits), (1 - labels) * logsigmoid(-logits)  # (N, F), both <= 0
        return -(self.positive * hit + self.negative * silence)

    @property
    def shift(self) -> Tensor:
        """(F,): what the weights add to the best logit (natural-log odds)."""
        return (self.positive / self.negative).log()


class AsymmetricLoss(Loss):
    """Ridnik et al., Asymmetric Loss for Multi-Label Classification, ICCV 2021, with the paper's constants.

    Easy negatives count little (focusing 4, against 1 for positives), and those below .05 not at all.
    """

    def __init__(self, *, focus_positive: float = 1, focus_negative: float = 4, margin: float = 0.05) -> None:
        super().__init__()
        self.focus_positive, self.focus_negative, self.margin = focus_positive, focus_negative, margin

    def of_pairs(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See Loss."""
        hit = torch.sigmoid(logits)
        silence = (1 - hit + self.margin).clamp(max=1)  # probability of "no", rounded up by the margin
        positive = labels * (1 - hit) ** self.focus_positive * logsigmoid(logits)
        negative = (1 - labels) * (1 - silence) ** self.focus_negative * silence.clamp(min=1e-7).log()
        return -(positive + negative)


class Bce(Loss):
    """Plain binary cross entropy."""

    def of_pairs(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See Loss."""
        return binary_cross_entropy_with_logits(logits, labels, reduction="none")


def make_loss(name: str, *, frequency: Tensor) -> Loss:
    """A loss by its name; frequency (F,) is each finding's share of the training films, in [0, 1].

    wbce             as in the paper's source: positives weigh the frequency of negatives, negatives that of positives
    wbce_normalised  the same divided by 2f(1 - f), so that a rare finding counts as much as a common one; by wbce's
                     own weights Hernia counts 84 times less than Consolidation on NIH

    Raises UnusableSettings for another name, or when a weighted loss meets a finding that all films have or none.
    """
    if name == "bce":
        return Bce()
    if name == "asymmetric":
        return AsymmetricLoss()
    if name not in LOSSES:
        raise UnusableSettings(f"no loss is called {name!r}; there are {', '.join(LOSSES)}")
    if not ((frequency > 0) & (frequency < 1)).all():
        raise UnusableSettings(f"{name} needs films with and without each finding in training")
    mass = 2 * frequency * (1 - frequency) if name == "wbce_normalised" else torch.ones_like(frequency)
    return WeightedBce((1 - frequency) / mass, frequency / mass)


def shift_of(loss: nn.Module, *, findings: int) -> tuple[float, ...]:
    """The loss's shift of each finding's best logit: 0 unless it weighs positives and negatives differently."""
    return tuple(loss.shift.tolist()) if isinstance(loss, WeightedBce) else (0.0,) * findings
