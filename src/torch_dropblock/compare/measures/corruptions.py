"""Corrupted images: noise, blur, low contrast and JPEG, each at three levels.

The levels are numbers 1, 3 and 5 of CIFAR-10-C for images up to 64 pixels, and of ImageNet-C for larger ones. The
corruptions are torchvision's, so the accuracies are close to those benchmarks', but not the same.

Source: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
ICLR 2019.
"""

from __future__ import annotations

import io
import math

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

# levels for small and for large images: standard deviation (of a range of 1), that of the blur in pixels, contrast
# factor, JPEG's quality
LEVELS = {
    "noise": ((0.04, 0.08, 0.10), (0.08, 0.18, 0.38)),
    "blur": ((0.4, 0.7, 1.0), (1.0, 3.0, 6.0)),
    "contrast": ((0.75, 0.4, 0.15), (0.4, 0.2, 0.05)),
    "jpeg": ((80, 58, 40), (25, 15, 7)),
}
CHUNK_PIXELS = 2**22


def corrupted(images: Tensor, kind: str, level: float, generator: torch.Generator) -> Tensor:
    """Corrupt uint8 images (N, C, S, S); the generator, of the CPU, draws the noise."""
    chunks = torch.split(images, max(1, CHUNK_PIXELS // images.shape[-1] ** 2))  # floats take four times the memory
    return torch.cat([_corrupted(chunk, kind, level, generator) for chunk in chunks])


def _corrupted(images: Tensor, kind: str, level: float, generator: torch.Generator) -> Tensor:
    if kind == "noise":
        noise = torch.randn(images.shape, generator=generator).to(images.device)
        return (images + 255 * level * noise).round().clamp(0, 255).to(torch.uint8)
    if kind == "blur":
        blurred: Tensor = functional.gaussian_blur(images, [2 * math.ceil(3 * level) + 1] * 2, [level] * 2)
        return blurred
    if kind == "contrast":
        low: Tensor = functional.adjust_contrast(images, level)
        return low
    return torch.stack([_jpeg(image, int(level)) for image in images.cpu()]).to(images.device)


def _jpeg(image: Tensor, quality: int) -> Tensor:
    """Compress an image (C, H, W) with Pillow; torchvision's own function is deprecated since 0.29."""
    stream = io.BytesIO()
    functional.to_pil_image(image).save(stream, "JPEG", quality=quality)
    pixels: Tensor = functional.pil_to_tensor(Image.open(stream))
    return pixels
