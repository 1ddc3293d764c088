import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from training.losses import LOSSES, WeightedBce, make_loss, shift_of, targets
from training.manifest import UNKNOWN

RNG = np.random.default_rng(0)
LOGITS = torch.tensor(RNG.normal(size=(50, 3)), dtype=torch.float64)
LABELS = torch.tensor(RNG.random((50, 3)) < [0.5, 0.2, 0.1], dtype=torch.float64)
FREQUENCY = LABELS.mean(dim=0)


def transcribed(labels: NDArray[np.float64], outputs: NDArray[np.float64]) -> float:
    """The loss as the paper's source gives it (deeplearning.ai, AI for Medical Diagnosis, week 1)."""
    frequency_positive = labels.mean(axis=0)
    positive_weights, negative_weights = 1 - frequency_positive, frequency_positive
    loss = 0.0
    for k in range(labels.shape[1]):
        positive = positive_weights[k] * labels[:, k] * np.log(outputs[:, k])
        negative = negative_weights[k] * (1 - labels[:, k]) * np.log(1 - outputs[:, k])
        loss += -np.mean(positive + negative)
    return loss


def test_wbce_is_the_papers_formula() -> None:
    loss = make_loss("wbce", frequency=FREQUENCY)(LOGITS, LABELS)
    assert loss.item() == pytest.approx(transcribed(LABELS.numpy(), torch.sigmoid(LOGITS).numpy()), rel=1e-12)


def test_normalised_findings_count_alike_and_their_classes_too() -> None:
    silent = torch.zeros_like(LOGITS)  # every log likelihood is log 2
    assert make_loss("wbce_normalised", frequency=FREQUENCY)(silent, LABELS).item() == pytest.approx(3 * np.log(2))
    loss = make_loss("wbce_normalised", frequency=FREQUENCY)
    assert isinstance(loss, WeightedBce)
    assert torch.allclose(loss.positive * FREQUENCY, torch.full((3,), 0.5, dtype=torch.float64))
    assert torch.allclose(loss.negative * (1 - FREQUENCY), torch.full((3,), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_agree_with_differences(name: str) -> None:
    loss = make_loss(name, frequency=FREQUENCY)
    assert torch.autograd.gradcheck(lambda logits: loss(logits, LABELS), LOGITS.clone().requires_grad_())


@pytest.mark.parametrize("name", ["bce", "wbce", "wbce_normalised"])
def test_the_best_constant_logit_is_the_base_rates_plus_the_shift(name: str) -> None:
    loss = make_loss(name, frequency=FREQUENCY)
    base = (FREQUENCY / (1 - FREQUENCY)).log()
    constant = (base + torch.tensor(shift_of(loss, findings=3), dtype=torch.float64)).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(constant.expand(50, 3), LABELS), constant)
    assert gradient.abs().max() < 1e-12


def test_asymmetric_loss_forgets_negatives_below_its_margin() -> None:
    loss = make_loss("asymmetric", frequency=FREQUENCY)
    assert loss(torch.full((4, 3), -4.0), torch.zeros(4, 3)) == 0
    assert loss(torch.full((4, 3), -4.0), torch.ones(4, 3)) > 9


def test_extreme_logits_stay_finite() -> None:
    for name in LOSSES:
        logits = torch.tensor([[-200.0, 200.0, 0.0]], requires_grad=True)
        loss = make_loss(name, frequency=FREQUENCY.float())(logits, torch.tensor([[1.0, 0.0, 1.0]]))
        loss.backward()
        assert torch.isfinite(loss)
        assert logits.grad is not None
        assert torch.isfinite(logits.grad).all()


def test_a_finding_that_no_film_has_cannot_be_weighed() -> None:
    with pytest.raises(ValueError, match="with and without"):
        make_loss("wbce", frequency=torch.tensor([0.5, 0.0]))
    with pytest.raises(ValueError, match="no loss is called"):
        make_loss("focal", frequency=FREQUENCY)


@pytest.mark.parametrize("name", LOSSES)
def test_unknown_labels_weigh_nothing(name: str) -> None:
    """The loss of each finding, and its gradient, are those of the films whose label is known."""
    known = torch.tensor(RNG.random((50, 3)) < 0.6)
    loss = make_loss(name, frequency=FREQUENCY)
    logits = LOGITS.clone().requires_grad_()
    whole = loss(logits, LABELS.masked_fill(~known, torch.nan))
    (gradient,) = torch.autograd.grad(whole, logits)
    assert (gradient[~known] == 0).all()
    for k in range(3):
        here = known[:, k]
        only = torch.full_like(LABELS, torch.nan)
        only[here, k] = LABELS[here, k]
        assert loss(LOGITS, only).item() == pytest.approx(loss.of_pairs(LOGITS, LABELS)[here, k].mean().item())
        whole = whole - loss(LOGITS, only)
    assert whole.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_a_finding_of_which_a_batch_knows_nothing_adds_nothing(name: str) -> None:
    loss = make_loss(name, frequency=FREQUENCY)
    labels = LABELS.clone()
    labels[:, 1] = torch.nan
    logits = LOGITS.clone().requires_grad_()
    loss(logits, labels).backward()
    assert logits.grad is not None
    assert (logits.grad[:, 1] == 0).all()
    assert torch.isfinite(logits.grad).all()
    nothing = torch.full((4, 3), torch.nan)
    assert loss(torch.randn(4, 3), nothing) == 0


def test_a_manifests_unknown_is_the_losses_nan() -> None:
    given = targets(np.array([[0, 1, UNKNOWN]], dtype=np.uint8))
    assert given.dtype == torch.float32
    assert given[0, :2].tolist() == [0, 1]
    assert given[0, 2].isnan()
