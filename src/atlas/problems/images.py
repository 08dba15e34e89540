"""Image classification for small networks: Fashion-MNIST or digits as tensors."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from atlas import data


class Images(NamedTuple):
    """x: (n, features) float32; y: (n,) classes."""

    x: Tensor
    y: Tensor

    def batch(self, shape: tuple[int, ...], generator: torch.Generator) -> Images:
        """Images drawn with replacement, e.g. shape (seeds, n): x (seeds, n, features)."""
        index = torch.randint(len(self.y), shape, generator=generator, device=self.y.device)
        return Images(self.x[index], self.y[index])


def fashion(
    form: Literal["half", "pca"] = "half", train: int | None = None, test: int | None = 4000, device: torch.device | str = "cpu",
    features: int = 64,
) -> tuple[Images, Images]:  # fmt: skip
    """The first `train` and `test` images of Fashion-MNIST (None: all), centred by the mean of those for training.

    half: 14 x 14 pixels (the mean of 2 x 2), 196 features of the size of pixels. pca: the first `features` principal
    components of the training images, each scaled to variance 1.
    """
    sets = []
    for split, most in (("train", train), ("test", test)):
        x, y = (torch.from_numpy(array[:most]) for array in data.images("fashion_mnist", split))
        sets.append((x.to(device), y.to(device)))
    (x, y), (x_test, y_test) = sets
    if form == "half":
        x, x_test = (F.avg_pool2d(v.view(-1, 1, 28, 28), 2).flatten(1) for v in (x, x_test))
    mean = x.mean(0)
    x, x_test = x - mean, x_test - mean
    if form == "pca":
        variances, directions = torch.linalg.eigh((x.mT @ x / len(x)).double())
        top = slice(-features, None)
        whitening = (directions[:, top] * variances[top].rsqrt()).flip(-1).float()
        x, x_test = x @ whitening, x_test @ whitening
    return Images(x, y), Images(x_test, y_test)
