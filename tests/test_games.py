import math

import pytest
import scipy.stats
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from atlas.problems.games import ToyGAN, ring, sliced_wasserstein


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_ring_has_its_modes() -> None:
    x = ring(40000, generator=seeded(), modes=4, width=0.05)
    mode = (torch.atan2(x[:, 1], x[:, 0]) / (math.pi / 2)).round().long() % 4
    for k, centre in enumerate(((1, 0), (0, 1), (-1, 0), (0, -1))):
        of = x[mode == k]
        assert len(of) / len(x) == pytest.approx(0.25, abs=0.01)
        assert of.mean(0).tolist() == pytest.approx(centre, abs=2e-3)
        assert of.std(0).tolist() == pytest.approx([0.05, 0.05], rel=0.03)
    assert ring(5, 2, 3, generator=seeded()).shape == (2, 3, 5, 2)


def test_sliced_wasserstein_is_scipys_distance_of_projections() -> None:
    a, b = torch.randn(2, 50, 2, generator=seeded(), dtype=torch.float64) + torch.tensor(
        [[[0.0, 0]], [[1, 2]]]
    )
    angles = [math.pi * k / 8 for k in range(8)]
    expected = [
        scipy.stats.wasserstein_distance(*(math.cos(t) * s[:, 0] + math.sin(t) * s[:, 1] for s in (a, b)))
        for t in angles
    ]
    assert sliced_wasserstein(a, b, 8).item() == pytest.approx(sum(expected) / 8)
    # a shift of length 1 is seen as |cos|, whose mean is 2 / pi
    shifted = a + torch.tensor([0.6, 0.8])
    assert sliced_wasserstein(a, shifted, 400).item() == pytest.approx(2 / math.pi, rel=1e-4)


def test_gradients_are_those_of_two_single_networks() -> None:
    """Each of a batch of pairs against torch.nn modules with cross-entropy on labels 1 (data) and 0 (generated)."""
    gan, generator = ToyGAN((5, 4)), seeded()
    d, g = (n.initial(2, 3, generator=generator) for n in (gan.discriminator, gan.generator))
    x, z = ring(6, 3, generator=generator), torch.randn(3, 6, 2, generator=generator)
    of_d, of_g = gan.discriminator_gradient(d, g, x, z), gan.generator_gradient(d, g, z)

    def module(network: object, theta: torch.Tensor, out: int) -> torch.nn.Sequential:
        layers = [
            torch.nn.Linear(2, 5),
            torch.nn.ReLU(),
            torch.nn.Linear(5, 4),
            torch.nn.ReLU(),
            torch.nn.Linear(4, out),
        ]
        built = torch.nn.Sequential(*layers)
        parts = network.split(theta)  # type: ignore[attr-defined]
        with torch.no_grad():
            for k, layer in enumerate(built[::2], 1):
                layer.weight.copy_(parts[f"weight {k}"].T)
                layer.bias.copy_(parts[f"bias {k}"])
        return built

    for i, s in ((0, 0), (1, 2)):
        D, G = module(gan.discriminator, d[i, s], 1), module(gan.generator, g[i, s], 2)
        fake, one, zero = G(z[s]), torch.ones(6, 1), torch.zeros(6, 1)
        loss = binary_cross_entropy_with_logits(D(x[s]), one) + binary_cross_entropy_with_logits(
            D(fake), zero
        )
        for network, got, value, of in (
            (gan.discriminator, of_d, loss, D),
            (gan.generator, of_g, binary_cross_entropy_with_logits(D(fake), one), G),
        ):
            gradients = torch.autograd.grad(value, list(of.parameters()), retain_graph=True)
            parts = network.split(got[i, s])
            for k in (1, 2, 3):
                torch.testing.assert_close(parts[f"weight {k}"], gradients[2 * k - 2].T)
                torch.testing.assert_close(parts[f"bias {k}"], gradients[2 * k - 1])
