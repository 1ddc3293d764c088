import numpy as np
import torch

from training.augmentation import GRAIN, SHARPNESS, SHIFT, Augmentation, slightly_changed

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


def test_a_slight_change_of_a_flat_film_is_grain_alone() -> None:
    flat = torch.full((4, 64, 64), 90, dtype=torch.uint8)
    changes = slightly_changed(flat, drawn=torch.Generator().manual_seed(0)) - 90
    assert set(changes.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert abs((changes != 0).float().mean().item() - GRAIN) < 0.01
    assert abs(changes.mean().item()) < 0.01


def test_a_slight_change_moves_a_slope_by_parts_of_a_pixel_and_sharpens_or_smooths_a_spot() -> None:
    slope = (3 * torch.arange(64).float() + 20).expand(200, 64, 64)
    drawn = torch.Generator().manual_seed(0)
    moved = (slightly_changed(slope, drawn=drawn) - slope)[:, 1:-1, 1:-1].mean(dim=(1, 2))
    assert moved.abs().max() < 3 * SHIFT + 0.05
    assert moved.min() < -2 * SHIFT
    assert moved.max() > 2 * SHIFT
    spot = torch.zeros(200, 9, 9)
    spot[:, 4, 4] = 100
    height = slightly_changed(spot + 100, drawn=drawn)[:, 4, 4] - 200
    assert height.abs().max() <= 100 * SHARPNESS + 1
    assert height.min() < -50 * SHARPNESS
    assert height.max() > 50 * SHARPNESS


def test_a_slight_change_is_drawn_by_the_generator_alone_and_stays_in_range() -> None:
    films = torch.cat([torch.zeros(1, 32, 32), torch.full((1, 32, 32), 255.0), images().float()])
    first, again = (slightly_changed(films, drawn=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert (first.min(), first.max()) == (0, 255)
    assert not torch.equal(first, slightly_changed(films, drawn=torch.Generator().manual_seed(2)))
