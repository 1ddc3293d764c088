"""Scripts as others would write them: one film at a time, from path to probabilities; and the parts of the limit."""

from collections.abc import Callable

import numpy as np
import torch
from pydicom import dcmread
from pydicom.pixels.processing import apply_voi_lut
from torch import nn

from training.checkpoint import SHIPPED, build, load_checkpoint

Body = Callable[[str], object]


def naive() -> Body:
    """The script that everybody writes first: pixel_array, apply_voi_lut, resize, a batch of one."""
    from torchvision.transforms.functional import resize

    checkpoint = load_checkpoint(SHIPPED)
    network, preprocessing = build(checkpoint), checkpoint.preprocessing
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))

    @torch.no_grad()
    def score(path: str) -> np.ndarray:
        film = dcmread(path)
        pixels = apply_voi_lut(film.pixel_array, film).astype(np.float32)
        if film.PhotometricInterpretation == "MONOCHROME1":
            pixels = pixels.max() - pixels
        pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min())
        network_input = resize(torch.from_numpy(pixels)[None], [preprocessing.size] * 2, antialias=True)  # (1, s, s)
        image = (network_input.repeat(3, 1, 1) - mean) / std  # (3, s, s)
        return checkpoint.calibration.probabilities(network(image[None]).numpy())

    return score


def torchxrayvision_like() -> Body:
    """The steps of torchxrayvision 1.3's reader (utils.load_image, XRayCenterCrop, XRayResizer) and its DenseNet121.

    XRayResizer's default engine is scikit-image, whose resize is a Gaussian and a linear zoom by SciPy. Random weights
    cost what trained ones cost.
    """
    from scipy import ndimage
    from torchvision.models import densenet121

    network = densenet121(weights=None, num_classes=18).eval()
    network.features.conv0 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)

    def resized(image: np.ndarray, size: int) -> np.ndarray:
        factors = np.array(image.shape) / size
        smooth = ndimage.gaussian_filter(image, np.maximum(0, (factors - 1) / 2), mode="constant")
        return ndimage.zoom(smooth, 1 / factors, order=1, mode="grid-constant", grid_mode=True)

    @torch.no_grad()
    def score(path: str) -> np.ndarray:
        film = dcmread(path)
        pixels = film.pixel_array
        if film.PhotometricInterpretation == "MONOCHROME1":
            pixels = pixels.max() - pixels
        pixels = pixels - pixels.min()
        image = (2 * (pixels / pixels.max()).astype(np.float32) - 1) * 1024  # to [-1024, 1024]
        side = min(image.shape)
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        network_input = resized(image[top : top + side, left : left + side], 224).astype(np.float32)  # (224, 224)
        return torch.sigmoid(network(torch.from_numpy(network_input)[None, None])).numpy()

    return score


BODIES: dict[str, Callable[[], Body]] = {"naive": naive, "torchxrayvision": torchxrayvision_like}
