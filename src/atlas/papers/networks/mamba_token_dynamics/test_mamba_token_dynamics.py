import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from atlas.measure import load_experiment, make_setting
from atlas.paper import find
from atlas.papers.networks.mamba_token_dynamics import experiment as e
from atlas.run import Run


def reference_velocity(x: np.ndarray, mu: float, S: float, a: float) -> np.ndarray:
    """The double sum of the paper, term by term."""
    Delta = np.log1p(np.exp(S * x))
    out = np.zeros_like(x)
    for l in range(len(x)):
        for j in range(l + 1):
            out[l] += mu * x[l] * x[j] ** 2 * math.exp(-a * Delta[j + 1 : l + 1].sum()) * Delta[j]
    return out


def system(*parameters: float, coupled: bool = True) -> e.System:
    return e.System(*(torch.tensor([p], dtype=torch.float64) for p in parameters), coupled=coupled)


def test_velocity_is_the_double_sum() -> None:
    x = np.array([0.7, -1.2, 0.4, 1.5])
    ours = system(1.3, -0.8, 0.6).velocity(torch.tensor(x)[None])[0]
    np.testing.assert_allclose(ours, reference_velocity(x, 1.3, -0.8, 0.6), rtol=1e-12)


@pytest.mark.parametrize(("mu", "S"), [(-1.1, 0.9), (0.7, -1.3)])
def test_path_agrees_with_scipy(mu: float, S: float) -> None:
    x0, times = np.array([0.8, 1.3, 0.6]), np.array([1.0, 20.0, 150.0])
    expected = solve_ivp(
        lambda t, x: reference_velocity(x, mu, S, 0.9), (0, 150), x0, t_eval=times, rtol=1e-10, atol=1e-12
    )
    ours = system(mu, S, 0.9).integrate(torch.tensor(x0)[None], torch.tensor(times).log(), 0.02, -12.0)[0]
    np.testing.assert_allclose(ours, expected.y, rtol=1e-5)


def test_single_token_converges_as_its_closed_form_says() -> None:
    # one token near zero: dx/dt = mu log(2) x^3, so x = (x0^-2 - 2 mu log(2) t)^(-1/2)
    x0, mu, t = 1e-3, -1.5, 1e7
    x = system(mu, 1.0, 1.0).integrate(
        torch.tensor([[x0]], dtype=torch.float64), torch.tensor([math.log(t)]), 0.02, -7.0
    )
    assert x.item() == pytest.approx((x0**-2 - 2 * mu * math.log(2) * t) ** -0.5, rel=1e-3)


def test_blow_up_is_infinite() -> None:
    x = system(1.0, 1.0, 1.0).integrate(
        torch.tensor([[1.0, 1.0]], dtype=torch.float64), torch.tensor([5.0]), 0.02, -7.0
    )
    assert torch.isinf(x).all()


def test_smoke_table_is_reproducible() -> None:
    paper = find("mamba_token_dynamics")
    module = load_experiment(paper)
    one, two = (module.measure(make_setting(paper, module, "smoke"), Run(paper.slug, 1)) for _ in range(2))
    assert one.equals(two)
