import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from atlas.measure import load_experiment, make_setting
from atlas.paper import find
from atlas.papers.language.ntk_attention import experiment as e
from atlas.run import Run

F64 = torch.float64


def problem(S: int = 2, n: int = 3, d: int = 4, m: int = 5, l: int = 2):
    torch.manual_seed(0)
    W, X = torch.randn(S, m, d, dtype=F64), torch.randn(S, n, d, dtype=F64)
    return W, X, torch.randn(S, n, l, dtype=F64), torch.randn(S, l, m, dtype=F64).sign()


def test_gradient_step_by_autograd() -> None:
    W, X, y, a = problem()
    W.requires_grad_()
    loss = 0.5 * (e.response(W, X, a, 2.0)[0] - y).square().sum((1, 2))
    gradient = torch.autograd.grad(loss.sum(), W)[0]
    eta = torch.tensor([0.1, 0.3], dtype=F64)
    stepped, value = e.gradient_step(W.detach(), X, y, a, 2.0, eta)
    torch.testing.assert_close(stepped, W.detach() - eta[:, None, None] * gradient)
    torch.testing.assert_close(value, loss.detach())


def test_kernel_by_autograd() -> None:
    W, X, _, a = problem(S=1)
    J = torch.autograd.functional.jacobian(lambda w: e.response(w, X, a, 1.5)[0].flatten(), W).reshape(6, -1)
    torch.testing.assert_close(e.kernel(W, X, a, 1.5)[0], J @ J.T)


def test_exact_attention_is_torchs() -> None:
    Q, K, V, K_P, V_P = (torch.randn(n, 6, dtype=F64) for n in (4, 3, 3, 7, 7))
    expected = scaled_dot_product_attention(Q[None], torch.cat([K_P, K])[None], torch.cat([V_P, V])[None])[0]
    torch.testing.assert_close(e.exact_attention(Q, K, V, K_P, V_P), expected)


@pytest.mark.parametrize("degree", [0, 1, 3, 6])
def test_features_give_the_taylor_polynomial(degree: int) -> None:
    q, k = torch.randn(5, 3, dtype=F64), torch.randn(4, 3, dtype=F64)
    u = q @ k.T / math.sqrt(3)
    expected = sum(u**g / math.factorial(g) for g in range(degree + 1))
    phi = e.taylor_features(q, degree)
    assert phi.shape[1] == math.comb(3 + degree, degree)
    torch.testing.assert_close(phi @ e.taylor_features(k, degree).T, expected * torch.ones_like(u))


def test_compression_adds_up_over_chunks() -> None:
    K, V = torch.randn(11, 3, dtype=F64), torch.randn(11, 3, dtype=F64)
    for whole, parts in zip(e.compress(K, V, 2), e.compress(K, V, 2, chunk=4), strict=True):
        torch.testing.assert_close(whole, parts)


def test_smoke_table_is_reproducible() -> None:
    paper = find("ntk_attention")
    module = load_experiment(paper)
    one, two = (module.measure(make_setting(paper, module, "smoke"), Run(paper.slug, 1)) for _ in range(2))
    assert one.equals(two)
