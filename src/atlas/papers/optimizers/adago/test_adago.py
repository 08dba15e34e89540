import pytest
import torch

from atlas.measure import load_experiment, make_setting
from atlas.optim.orthogonal import newton_schulz
from atlas.paper import find
from atlas.papers.optimizers.adago import experiment as e
from atlas.run import Run

F64 = torch.float64


def test_a_step_is_that_of_torch_muon() -> None:
    """Our Muon step (constant alpha) against torch.optim.Muon, up to its bfloat16 iteration."""
    torch.manual_seed(0)
    W, G = torch.randn(6, 4), torch.randn(6, 4)
    parameter = torch.nn.Parameter(W.clone())
    optimizer = torch.optim.Muon([parameter], lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.0)
    parameter.grad = G.clone()
    optimizer.step()
    one = torch.tensor(1.0)
    rule = e.AdaGO(one, torch.tensor(0.0), torch.tensor(0.0), constant=True, orthogonal=newton_schulz)
    alpha, direction, *_ = rule.step(G, *rule.start(W))
    scale = 0.1 * max(1, 6 / 4) ** 0.5  # torch scales the step by sqrt(max(1, rows/columns))
    torch.testing.assert_close(W - scale * alpha * direction, parameter.detach(), atol=5e-3, rtol=0)


def test_two_steps_by_hand() -> None:
    """On multiples of the identity the direction is the identity and only the scalar recursion is left."""
    t = lambda v: torch.tensor(v, dtype=F64)
    rule = e.AdaGO(eta=t(0.5), mu=t(0.9), eps=t(0.01), gamma=2.0, v0=1.0)
    M, v2 = rule.start(torch.zeros(2, 2, dtype=F64))
    G = torch.eye(2, dtype=F64) * 3 / 2**0.5  # norm 3, clipped at gamma = 2
    alpha, direction, M, v2 = rule.step(G, M, v2)
    assert (alpha.item(), v2.item()) == pytest.approx((0.5 * 2 / 5**0.5, 5.0))
    torch.testing.assert_close(direction, torch.eye(2, dtype=F64))
    torch.testing.assert_close(M, 0.1 * G)
    alpha, _, M, v2 = rule.step(G / 300, M, v2)  # norm 0.01: the lower clamp decides
    assert (alpha.item(), v2.item()) == pytest.approx((0.01, 5.0001))


def test_adam_is_torchs() -> None:
    torch.manual_seed(0)
    parameters = e.initial((3, 4, 4, 1), 1, torch.Generator().manual_seed(0), torch.device("cpu"))
    x, y = torch.randn(1, 16, 3), torch.randn(1, 16, 1)
    loss = lambda p: (e.forward(p, x) - y).square().mean((1, 2))
    ours = e.train(Run("toy"), "task", "Adam", torch.tensor([0.01]), parameters, loss, 5, torch.Generator())
    theirs = [torch.nn.Parameter(p.clone()) for p in parameters]
    optimizer = torch.optim.Adam(theirs, lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        loss(theirs).sum().backward()
        optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-4, atol=1e-6)


def test_smoke_table_is_reproducible() -> None:
    paper = find("adago")
    module = load_experiment(paper)
    one, two = (module.measure(make_setting(paper, module, "smoke"), Run(paper.slug, 1)) for _ in range(2))
    assert one.equals(two)
