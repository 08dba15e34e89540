"""The batched residual network against modules of torch.nn, one network at a time."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atlas.models.convolutional import ResNet
from atlas.models.networks import cross_entropy, value_and_gradient


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.more = outputs - inputs
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=2 if self.more else 1, padding=1, bias=False),
            nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """The shortcut without parameters of the ResNet paper (its option A)."""
        short = x
        if self.more:
            short = F.avg_pool2d(x, 1, stride=2)
            short = torch.cat([short, torch.zeros(len(x), self.more, *short.shape[2:])], 1)
        return F.relu(self.body(x) + short)


def as_module(network: ResNet, theta: Tensor) -> nn.Sequential:
    """The same network of torch.nn; theta (P,)."""
    first, last = network.channels[0], network.channels[-1]
    module = nn.Sequential(
        nn.Unflatten(1, (1, network.side, network.side)),
        nn.Conv2d(1, first, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU(),
        *(Block(a, b) for a, b in itertools.pairwise(network.channels)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, network.classes),
    )  # fmt: skip
    parts = iter(network.split(theta).values())  # in the order of the modules
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = next(parts).permute(3, 0, 1, 2).clone()
        elif isinstance(layer, nn.BatchNorm2d | nn.Linear):
            layer.weight.data = (
                next(parts).mT.clone() if isinstance(layer, nn.Linear) else next(parts).clone()
            )
            layer.bias.data = next(parts).clone()
    assert next(parts, None) is None
    return module


@pytest.mark.parametrize("network", [ResNet(), ResNet((4, 4, 4, 6), side=9, classes=3)])
def test_every_network_of_a_batch_is_that_of_torch_nn(network: ResNet) -> None:
    theta = network.initial(2, 3, generator=generator())
    theta += 0.1 * torch.randn(theta.shape, generator=generator(1))  # so that biases and scales matter
    x = torch.randn(3, 8, network.side**2, generator=generator(2))
    y = torch.randint(network.classes, (3, 8), generator=generator(3))
    losses, gradient = value_and_gradient(lambda theta: cross_entropy(network(theta, x), y), theta)
    assert losses.shape == (2, 3) and gradient.shape == theta.shape
    for rate, seed in itertools.product(range(2), range(3)):
        module = as_module(network, theta[rate, seed])
        loss = F.cross_entropy(module(x[seed]), y[seed])
        loss.backward()
        torch.testing.assert_close(losses[rate, seed], loss.detach())
        parts = network.split(gradient[rate, seed])
        linear, block = module[-1], module[5].body
        torch.testing.assert_close(parts["bias out"], linear.bias.grad, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(parts["weight out"], linear.weight.grad.mT, atol=1e-6, rtol=1e-4)
        first = parts["weight 0"].permute(3, 0, 1, 2)
        torch.testing.assert_close(first, module[1].weight.grad, atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(parts["scale 4"], block[4].weight.grad, atol=1e-6, rtol=1e-4)


def test_initial_weights_and_number_of_parameters() -> None:
    network = ResNet((8, 8, 16))
    by_hand = 9 * 8 + 2 * 9 * 8 * 8 + 9 * 8 * 16 + 9 * 16 * 16 + 2 * (3 * 8 + 2 * 16) + 16 * 10 + 10
    assert network.size == by_hand
    parts = network.split(network.initial(100, generator=generator()))
    assert float(parts["weight 4"].var() * 9 * 16) == pytest.approx(2, rel=0.02)  # a ReLU follows
    assert float(parts["weight out"].var() * 16) == pytest.approx(1, rel=0.05)
    assert (parts["scale 2"] == 1).all() and (parts["bias 2"] == 0).all()
