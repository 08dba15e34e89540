import math

import pytest
import torch
from torch import Tensor

from atlas.federated.compression import dense_bits, identity, scaled_sign, sign_bits
from atlas.papers.federated.onebit_adam.experiment import (
    Setting,
    adam_step,
    dense_steps,
    onebit_adam_step,
    train,
)
from atlas.problems.text import corpus
from atlas.run import Run

BETAS = (0.9, 0.98)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_warm_up_is_torchs_adam_without_its_bias_correction() -> None:
    gamma, x, m, v = torch.tensor(0.1), normal(5), torch.zeros(5).double(), torch.zeros(5).double()
    weight = torch.nn.Parameter(x.clone())
    adam = torch.optim.Adam([weight], betas=BETAS, eps=0.0)
    for t, g in enumerate(normal(30, 5, seed=1), 1):
        x, m, v = adam_step(x, g, m, v, gamma, BETAS)
        # what Adam multiplies its step by to correct the bias, taken out again
        adam.param_groups[0]["lr"] = 0.1 * (1 - BETAS[0] ** t) / math.sqrt(1 - BETAS[1] ** t)
        weight.grad = g.clone()
        adam.step()
    torch.testing.assert_close(x, weight.detach(), atol=1e-6, rtol=0)


def test_without_compression_it_is_momentum_sgd_in_scaled_coordinates() -> None:
    """With y = v^(1/4) x the step is momentum SGD on y; its gradient is that on x over v^(1/4)."""
    n, d = 4, 5
    x, v, gradients = normal(d), normal(d, seed=1).square() + 0.1, normal(20, n, d, seed=2)
    m, e, E = gradients[0].mean(0), torch.zeros(n, d).double(), torch.zeros(d).double()
    y = torch.nn.Parameter(v**0.25 * x)
    sgd = torch.optim.SGD([y], lr=0.1, momentum=0.9, dampening=0.9)
    for g in gradients:
        x, m, e, E = onebit_adam_step(x, g, m, v, e, E, torch.tensor(0.1), 0.9, identity)
        y.grad = g.mean(0) / v**0.25
        sgd.step()
    torch.testing.assert_close(x, y.detach() / v**0.25, atol=1e-6, rtol=0)


def test_compressed_steps_worker_by_worker() -> None:
    n, d, gamma = 3, 6, 0.05
    v, gradients = normal(d, seed=1).square(), normal(8, n, d, seed=2)
    v[4] = 0.0
    x, m, e, E = normal(d), normal(d, seed=3), torch.zeros(n, d).double(), torch.zeros(d).double()
    x2, m2, error, server = x.tolist(), m.tolist(), [[0.0] * d for _ in range(n)], [0.0] * d

    def signs(u: list[float]) -> list[float]:
        scale = math.sqrt(sum(a * a for a in u) / d)
        return [scale if a >= 0 else -scale for a in u]

    for g in gradients:
        x, m, e, E = onebit_adam_step(
            x, g, m, v, e, E, torch.tensor(gamma, dtype=torch.float64), 0.9, lambda u: scaled_sign(u, 2)
        )
        arrived = list(server)
        for i in range(n):
            meant = [0.9 * m2[j] + 0.1 * float(g[i, j]) + error[i][j] for j in range(d)]
            sent = signs(meant)
            error[i] = [meant[j] - sent[j] for j in range(d)]
            arrived = [arrived[j] + sent[j] / n for j in range(d)]
        m2 = signs(arrived)
        server = [arrived[j] - m2[j] for j in range(d)]
        m2[4] = 0.0  # masked
        x2 = [x2[j] - gamma * m2[j] / (math.sqrt(float(v[j])) + 1e-8) for j in range(d)]
    assert x.tolist() == pytest.approx(x2, rel=1e-10) and m.tolist() == pytest.approx(m2, rel=1e-10)
    assert E.tolist() == pytest.approx(server, rel=1e-10, abs=1e-12)


def test_volume_is_the_papers_formula() -> None:
    """Against 16-bit Adam 1 / (w + (1 - w) / 16) for the share w of the warm-up, but for the scales: with 15 % the 5 times."""
    setting, d = Setting(), 10**6
    dense = dense_steps("1-bit Adam", setting)
    bits = dense * dense_bits(d, 16) + (setting.steps - dense) * sign_bits(d)
    w = setting.warm_up
    ratio = setting.steps * dense_bits(d, 16) / bits
    assert ratio == pytest.approx(1 / (w + (1 - w) / 16), rel=1e-3) and round(ratio) == 5


def test_up_to_the_end_of_the_warm_up_it_is_adam() -> None:
    setting = Setting(workers=2, batch=2, steps=20, hidden=4, embedding=2, held_out=20, betas=(0.9, 0.8))
    text, run, rates = corpus(), Run("onebit_adam", 0), torch.tensor([0.02, 0.04])
    curves = {}
    for warm_up in (0.5, 0.999):
        chosen = Setting(**{**vars(setting), "warm_up": warm_up})
        curves[warm_up], _ = train("1-bit Adam", rates, 2, 20, "test", 1.0, chosen, text, run)
    adam, _ = train("Adam", rates, 2, 20, "test", 1.0, setting, text, run)
    assert adam.shape == (2, 2, 21)
    torch.testing.assert_close(curves[0.5][..., :11], adam[..., :11], rtol=0, atol=0)
    assert (curves[0.5][..., 11:] != adam[..., 11:]).all()
    torch.testing.assert_close(curves[0.999], adam, rtol=0, atol=0)
