import numpy as np
import torch

from training.augmentation import Augmentation

STILL = Augmentation(rotation_degrees=0, translation=0, scale=0, brightness=0, contrast=0)


def images() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 32, 32), dtype=np.uint8))


def test_what_is_drawn_depends_on_seed_and_position_alone() -> None:
    augment = Augmentation()
    whole = augment(images(), seed=3, positions=[10, 11, 12, 13])
    assert torch.equal(augment(images()[2:], seed=3, positions=[12, 13]), whole[2:])
    torch.manual_seed(99)
    np.random.seed(99)
    assert torch.equal(augment(images(), seed=3, positions=[10, 11, 12, 13]), whole)
    assert not torch.equal(augment(images(), seed=4, positions=[10, 11, 12, 13]), whole)
    assert not torch.equal(augment(images(), seed=3, positions=[11, 12, 13, 14]), whole)


def test_nothing_asked_is_nothing_done() -> None:
    assert torch.allclose(STILL(images(), seed=0, positions=range(4)), images().float(), atol=1e-2)


def test_gray_values_stay_in_range() -> None:
    strong = Augmentation(brightness=0.9, contrast=3)(images(), seed=0, positions=range(4))
    assert strong.min() >= 0
    assert strong.max() <= 255


def test_the_heart_stays_on_its_side() -> None:
    films = torch.zeros(200, 32, 32, dtype=torch.uint8)
    films[:, 14:22, 20:28] = 255
    moved = Augmentation()(films, seed=1, positions=range(200))
    assert (moved[:, :, 16:].sum(dim=(1, 2)) > moved[:, :, :16].sum(dim=(1, 2))).all()
