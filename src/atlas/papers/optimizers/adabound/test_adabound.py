import pytest
import torch
from pytorch_optimizer import AdaBound
from torch import Tensor

from atlas.papers.optimizers.adabound.experiment import bounded_step

F64 = torch.float64
ALPHA, BETAS, GAMMA, FINAL = 0.05, (0.8, 0.95), 0.02, 0.1


def scalar(value: float | bool) -> Tensor:
    return torch.tensor(value, dtype=torch.bool if isinstance(value, bool) else F64)


def ours(gradients: Tensor, start: Tensor, gamma: float, maximum: bool) -> list[Tensor]:
    """x after every step, with Adam's corrections in alpha, as in networks."""
    x, memory = start.clone(), [torch.zeros_like(start) for _ in range(3)]
    path = []
    for t, g in enumerate(gradients, 1):
        alpha = scalar(ALPHA * (1 - BETAS[1] ** t) ** 0.5 / (1 - BETAS[0] ** t))
        x = x - bounded_step(g, *memory, t, alpha, BETAS, scalar(gamma), scalar(FINAL), scalar(maximum))
        path.append(x)
    return path


def theirs(optimizer, gradients: Tensor, start: Tensor) -> list[Tensor]:
    p = torch.nn.Parameter(start.clone())
    algorithm, path = optimizer([p]), []
    for g in gradients:
        p.grad = g.clone()
        algorithm.step()
        path.append(p.detach().clone())
    return path


def problem() -> tuple[Tensor, Tensor]:
    """Gradients of four sizes, so that some rates meet the lower bound, some the upper and some neither."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([0.01, 0.3, 1.0, 30.0], dtype=F64)
    return torch.randn(60, 3, 4, generator=generator, dtype=F64) * sizes, torch.randn(
        3, 4, generator=generator, dtype=F64
    )


@pytest.mark.parametrize("maximum", [False, True])
def test_every_step_is_that_of_pytorch_optimizer(maximum: bool) -> None:
    """AdaBound and AMSBound in float64 with eps = 0; the package adds 1e-15 to v, which is all that is left. Both have the
    corrections of Adam, which the paper's algorithm leaves out and its code has."""
    gradients, start = problem()
    package = lambda p: AdaBound(p, ALPHA, FINAL, BETAS, GAMMA, ams_bound=maximum, eps=0.0)
    expected = theirs(package, gradients, start)
    for a, b in zip(ours(gradients, start, GAMMA, maximum), expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


@pytest.mark.parametrize("maximum", [False, True])
def test_without_bounds_it_is_torchs_adam_and_amsgrad(maximum: bool) -> None:
    gradients, start = problem()
    adam = lambda p: torch.optim.Adam(p, ALPHA, BETAS, eps=0.0, amsgrad=maximum)
    for a, b in zip(ours(gradients, start, 0.0, maximum), theirs(adam, gradients, start), strict=True):
        torch.testing.assert_close(a, b, atol=1e-13, rtol=0)


def test_closed_bounds_are_torchs_sgd() -> None:
    """With dampening torch's momentum is a mean of gradients, too, except for its first step."""
    gradients, start = problem()
    gradients[0] = 0  # and v = 0: the rate before it is clipped is infinite
    sgd = lambda p: torch.optim.SGD(p, FINAL, momentum=BETAS[0], dampening=BETAS[0])
    expected = theirs(sgd, gradients, start)
    for a, b in zip(ours(gradients, start, torch.inf, False), expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-13, rtol=0)


def test_a_step_of_the_theory_by_hand() -> None:
    """t = 4: l = 0.1 (1 - 1/1.08), u = 0.1 (1 + 1/0.08); v = 4, then 1.95 with a larger running maximum."""
    m, v, V = (torch.full((3,), value, dtype=F64) for value in (0.0, 2.0, 9.0))
    g, alpha = torch.ones(3, dtype=F64), torch.tensor([1.0, 100.0, 0.001], dtype=F64)
    largest = torch.tensor([True, False, False])
    step = bounded_step(g, m, v, V, 4, alpha, BETAS, scalar(GAMMA), scalar(FINAL), largest)
    assert v.tolist() == pytest.approx([1.95] * 3) and V.tolist() == pytest.approx([9.0, 1.95, 1.95])
    assert step.tolist() == pytest.approx([0.2 / 3, 0.2 * 0.1 * (1 + 1 / 0.08), 0.2 * 0.1 * (1 - 1 / 1.08)])
