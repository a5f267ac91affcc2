"""Faults of pictures: what a camera may do to a photograph that a model was not trained on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms import v2


def noise(images: Tensor) -> Tensor:
    """Gaussian noise with a deviation of 0.15."""
    drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + 0.15 * drawn).clamp(0, 1)


def blur(images: Tensor) -> Tensor:
    """A Gaussian of 1.5 pixels."""
    found: Tensor = v2.functional.gaussian_blur(images, [9, 9], [1.5, 1.5])
    return found


def contrast(images: Tensor) -> Tensor:
    """A third of the contrast."""
    found: Tensor = v2.functional.adjust_contrast(images, 0.33)
    return found


# Pictures [n, 3, height, width] with values from 0 to 1 -> the same with the fault.
FAULTS: dict[str, Callable[[Tensor], Tensor]] = {"noise": noise, "blur": blur, "contrast": contrast}
