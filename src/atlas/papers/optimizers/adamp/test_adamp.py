import pytest
import torch
from pytorch_optimizer import SGDP, AdamP
from torch import Tensor

from atlas.papers.optimizers.adamp.experiment import (
    adam_direction,
    direction_on_sphere,
    projected,
    projected_vector,
    rosenbrock,
    sgd_direction,
)

F64 = torch.float64
RATE = 0.05


def scale_invariant(W: Tensor) -> Tensor:
    """Every column counts by its direction only: all are projected. W (inputs, outputs)."""
    target = torch.linspace(-1, 1, W.numel(), dtype=F64).view(W.shape)
    return (W / W.norm(dim=0) * target).sum().square() + (W / W.norm(dim=0)).pow(3).sum()


def whole_invariant(W: Tensor) -> Tensor:
    """Only the whole matrix is scale-invariant."""
    return (W / W.norm()).pow(3).sum() + (W / W.norm())[0].sum()


def plain(W: Tensor) -> Tensor:
    return (W - 1).square().sum()


def follow(loss, step, optimizer, steps: int = 40) -> float:
    """Largest difference between our path and the package's, whose weights are (outputs, inputs)."""
    W = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    parameter = torch.nn.Parameter(W.mT.contiguous())
    algorithm, off = optimizer([parameter]), 0.0
    for t in range(1, steps + 1):
        (g,) = torch.autograd.grad(loss(W.requires_grad_()), W)
        W = W.detach()
        W = W - RATE * projected(step(g, t), W, g)
        parameter.grad = torch.autograd.grad(loss(parameter.mT), parameter)[0].contiguous()
        algorithm.step()
        off = max(off, float((W - parameter.detach().mT).abs().max()))
    return off


LOSSES = [scale_invariant, whole_invariant, plain]


@pytest.mark.parametrize("loss", LOSSES)
def test_every_step_of_sgdp_is_that_of_pytorch_optimizer(loss) -> None:
    """Float64, eps = 0. The package keeps the momentum as the paper does; the authors' own code projects the buffer, too."""
    p = torch.zeros(6, 3, dtype=F64)
    off = follow(
        loss, lambda g, t: sgd_direction(g, p).clone(), lambda w: SGDP(w, RATE, momentum=0.9, eps=0.0)
    )
    assert off < 1e-11


@pytest.mark.parametrize("loss", LOSSES)
def test_every_step_of_adamp_is_that_of_pytorch_optimizer(loss) -> None:
    """Float64, eps = 0: the package adds eps to sqrt(v) before it corrects v, we after it, as Adam's paper does."""
    m, v = torch.zeros(6, 3, dtype=F64), torch.zeros(6, 3, dtype=F64)
    off = follow(
        loss,
        lambda g, t: adam_direction(g, m, v, t, (0.8, 0.95), 0.0),
        lambda w: AdamP(w, RATE, (0.8, 0.95), eps=0.0),
    )
    assert off < 1e-11


def test_which_weights_are_projected() -> None:
    """Columns, the whole matrix or nothing: by which inner products with w vanish afterwards."""
    W = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=F64, requires_grad=True)
    radial = {}
    for loss in LOSSES:
        (g,) = torch.autograd.grad(loss(W), W)
        q = projected(torch.ones_like(W), W.detach(), g)
        radial[loss] = (q * W.detach()).sum(0)
    assert radial[scale_invariant].abs().max() < 1e-14
    assert radial[whole_invariant].sum().abs() < 1e-14 and radial[whole_invariant].abs().max() > 0.01
    torch.testing.assert_close(radial[plain], W.detach().sum(0))


def test_columns_without_gradient_count_as_orthogonal() -> None:
    W, g = torch.eye(3, dtype=F64), torch.zeros(3, 3, dtype=F64)
    assert torch.diagonal(projected(torch.ones(3, 3, dtype=F64), W, g)).abs().max() == 0


def test_norm_growth_by_the_papers_lemma() -> None:
    """||w_T||^2 - ||w_0||^2 = eta^2 sum_t (||p_t||^2 + 2 sum_{k<t} beta^(t-k) ||p_k||^2), exactly, for any tangent gradients."""
    generator, beta = torch.Generator().manual_seed(0), 0.9
    w = torch.randn(5, generator=generator, dtype=F64)
    before, p, squares = w @ w, torch.zeros_like(w), []
    for _ in range(30):
        g = torch.randn(5, generator=generator, dtype=F64)
        g = g - (g @ w) / (w @ w) * w
        p = sgd_direction(g, p, beta)
        squares.append(float(p @ p))
        w = w - RATE * p
    lemma = sum(s + 2 * sum(beta ** (t - k) * squares[k] for k in range(t)) for t, s in enumerate(squares))
    assert float(w @ w - before) == pytest.approx(RATE**2 * lemma, rel=1e-12)


def test_direction_on_sphere_by_hand() -> None:
    """From the north pole towards (3, 4) in the plane, whatever the length."""
    pole = torch.tensor([0.0, 0.0, 2.0], dtype=F64)
    for new in ([0.3, 0.4, 2.0], [3.0, 4.0, 0.1], [30.0, 40.0, -7.0]):
        found = direction_on_sphere(pole, torch.tensor(new, dtype=F64))
        torch.testing.assert_close(found, torch.tensor([0.6, 0.8, 0.0], dtype=F64))


def test_vectors_and_the_minimum() -> None:
    w, p = torch.tensor([3.0, 4.0], dtype=F64), torch.tensor([1.0, 0.0], dtype=F64)
    orthogonal, along = torch.tensor([-4.0, 3.0], dtype=F64), torch.tensor([1.0, 1.0], dtype=F64)
    torch.testing.assert_close(projected_vector(p, w, orthogonal), torch.tensor([0.64, -0.48], dtype=F64))
    torch.testing.assert_close(projected_vector(p, w, along), p)
    assert rosenbrock(torch.tensor([0.5, 0.5, 0.5**0.5], dtype=F64)) == 0
