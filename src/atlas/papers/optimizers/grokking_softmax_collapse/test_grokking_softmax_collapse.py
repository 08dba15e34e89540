import math

import pandas as pd
import pytest
import torch
from scipy.linalg import null_space
from torch import Tensor

from atlas.papers.optimizers.grokking_softmax_collapse.experiment import (
    Adder,
    Setting,
    measure,
    perp_grad,
    softmax_loss,
    stablemax_loss,
)
from atlas.run import Run


def test_perp_grad_is_the_projection_on_what_is_orthogonal_to_the_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    g, w = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    found = perp_grad(g, w)
    for one, gradient, weights in zip(found, g, w, strict=True):
        basis = torch.from_numpy(null_space(weights.reshape(1, -1).numpy()))
        expected = basis @ (basis.T @ gradient.flatten())
        expected *= gradient.norm() / expected.norm()
        assert torch.allclose(one.flatten(), expected, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_softmax_collapses_at_the_unit_roundoff(dtype: torch.dtype) -> None:
    """1 + exp(-z) rounds to 1 where exp(-z) is below half the spacing of the numbers above 1."""
    edge = -math.log(torch.finfo(dtype).eps / 2)
    y = torch.tensor(0)
    for distance, collapsed in ((0.1, True), (-0.1, False)):
        z = torch.tensor([edge + distance, 0.0], dtype=dtype, requires_grad=True)
        loss = softmax_loss(z, y)
        (g,) = torch.autograd.grad(loss, z)
        assert (loss == 0) == collapsed and (g[0] == 0) == collapsed


def test_softmax_is_that_of_torch() -> None:
    z = torch.randn(
        50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True
    )
    y = torch.arange(50) % 7
    ours, theirs = softmax_loss(10 * z, y), torch.nn.functional.cross_entropy(10 * z, y, reduction="none")
    assert torch.allclose(ours, theirs, atol=1e-12)
    found, expected = (torch.autograd.grad(loss.sum(), z)[0] for loss in (ours, theirs))
    assert torch.allclose(found, expected, atol=1e-12)


def test_stablemax_by_hand() -> None:
    z = torch.tensor([[3.0, 0.0, -1.0, -3.0], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    found = stablemax_loss(z, torch.tensor([0, 2]))
    assert found.tolist() == pytest.approx([math.log((4 + 1 + 1 / 2 + 1 / 4) / 4), math.log(4)])


def test_stablemax_has_a_finite_gradient_where_the_unused_branch_has_none() -> None:
    z = torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float16, requires_grad=True)
    (g,) = torch.autograd.grad(stablemax_loss(z, torch.tensor([0])).sum(), z)
    s, slope = (2, 0.5, 1), (1, 0.25, 1)
    expected = [-1 / s[0] + 1 / sum(s), slope[1] / sum(s), slope[2] / sum(s)]
    assert g[0].tolist() == pytest.approx(expected, rel=2e-3)


def alone(setting: Setting, seed: int, method: str) -> tuple[float, float]:
    """One network, by torch.nn and torch.optim: training accuracy and alignment at the end."""
    p, net = setting.p, Adder(setting.p, setting.hidden)
    generator = Run("grokking_softmax_collapse", 0).generator("networks")
    order = torch.rand(setting.seeds, p * p, generator=generator).argsort(-1)[seed]
    start = net.split(net.initial(setting.seeds, generator=generator)[seed])
    layers = [torch.nn.Linear(rows, columns, bias=False) for rows, columns in net.shapes.values()]
    for layer, weight in zip(layers, start.values(), strict=True):
        layer.weight.data = weight.T.clone()
    model = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
    adam = torch.optim.Adam(model.parameters(), setting.rate, betas=setting.betas, eps=setting.eps)
    pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p))[
        order < int(setting.train_fraction * p * p)
    ]
    x = torch.nn.functional.one_hot(pairs, p).flatten(1).float()
    y = pairs.sum(1) % p
    last = setting.perp_steps if method == "perpGrad" else setting.steps
    for t in range(last + 1):
        z = model(x)
        adam.zero_grad()
        if method == "StableMax":
            s = torch.where(z < 0, 1 / (1 - z), z + 1)
            (-(s / s.sum(1, keepdim=True)).log()[range(len(y)), y]).mean().backward()
        else:
            torch.nn.functional.cross_entropy(z, y).backward()
        if method == "perpGrad":
            for layer in layers:
                w, g = layer.weight.data, gradient(layer)
                flat = g - (g.flatten() @ w.flatten()) / (w.flatten() @ w.flatten()) * w
                layer.weight.grad = flat * g.norm() / flat.norm()
        if t < last:
            adam.step()
    g = torch.cat([gradient(layer).flatten() for layer in layers])
    w = torch.cat([layer.weight.data.flatten() for layer in layers])
    return float((z.argmax(1) == y).float().mean()), float(-(g @ w) / g.norm() / w.norm())


def gradient(layer: torch.nn.Linear) -> Tensor:
    assert layer.weight.grad is not None
    return layer.weight.grad


def test_training_is_that_of_single_networks() -> None:
    setting = Setting(
        p=5, hidden=6, train_fraction=0.6, seeds=2, steps=15, float16_steps=5, perp_steps=10, looks=4
    )
    table = measure(setting, Run("grokking_softmax_collapse", 0))

    def last(method: str, metric: str, seed: int) -> float:
        rows: pd.DataFrame = table[(table.method == method) & (table.metric == metric) & (table.seed == seed)]
        return float(rows.sort_values("x").value.iloc[-1])

    for method in ("softmax float32", "softmax float64", "StableMax", "perpGrad"):
        for seed in range(2):
            accuracy, alignment = alone(setting, seed, method)
            assert last(method, "training accuracy", seed) == pytest.approx(accuracy)
            assert last(method, "alignment with the weights", seed) == pytest.approx(alignment, abs=1e-4)
