"""Participation patterns against what is known of them; local training against torch."""

import pytest
import torch
from torch import Tensor

from atlas.federated.averaging import local_sgd
from atlas.federated.participation import Bernoulli, Cyclic, Markov, Pattern, masks

P = torch.tensor([0.02, 0.1, 0.3, 0.5, 0.9], dtype=torch.float64)
ROUNDS, COPIES = 1000, 100


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(pattern: Pattern) -> Tensor:
    """(rounds, copies, clients)"""
    return masks(pattern, ROUNDS, generator()).double()


def correlation(active: Tensor, lag: int) -> Tensor:
    """Of a client's presence with that `lag` rounds later."""
    centred = active - P
    return (centred[lag:] * centred[:-lag]).mean((0, 1)) / (P * (1 - P))


def many(p: Tensor = P) -> Tensor:
    return p.expand(COPIES, len(p))


@pytest.mark.parametrize("enter", [0.05, 0.3])
def test_markov_frequency_and_correlation(enter: float) -> None:
    """The second eigenvalue of the chain is r = 1 - enter - leave: correlation r^lag, and by it the error of the frequency."""
    pattern = Markov(many(), enter)
    active = drawn(pattern)
    into, leave = (rate[0] for rate in pattern.rates)
    r = 1 - into - leave
    assert torch.allclose(into / (into + leave), P)  # stationary
    assert into[2:].tolist() == pytest.approx([enter] * 3) and (leave <= 1).all()
    error = (P * (1 - P) * (1 + r) / (1 - r) / (ROUNDS * COPIES)).sqrt()
    assert ((active.mean((0, 1)) - P).abs() < 4 * error).all()
    for lag in (1, 2, 5):
        # wide for rare clients, whose pairs are few
        assert ((correlation(active, lag) - r**lag).abs() < 0.05).all()
    first = (P * (1 - P) / COPIES).sqrt()
    assert ((active[0].mean(0) - P).abs() < 4 * first).all()


def test_a_rare_client_comes_back_at_a_lower_rate_so_that_it_can_be_rare() -> None:
    enter, leave = Markov(P, 0.05).rates
    assert leave[0] == 1 and enter[0].item() == pytest.approx(0.02 / 0.98)
    active = masks(Markov(many(P[:1]), 0.05), 500, generator())
    assert not (active[1:] & active[:-1]).any()  # never twice in a row


def test_bernoulli_frequency_and_independence() -> None:
    active = drawn(Bernoulli(many()))
    assert ((active.mean((0, 1)) - P).abs() < 4 * (P * (1 - P) / (ROUNDS * COPIES)).sqrt()).all()
    for lag in (1, 2):
        assert (correlation(active, lag).abs() < 4 / (ROUNDS * COPIES) ** 0.5).all()
    flat = active.reshape(-1, len(P)).T
    between = torch.corrcoef(flat) - torch.eye(len(P), dtype=torch.float64)
    assert between.abs().max() < 5 / (ROUNDS * COPIES) ** 0.5


def test_bernoulli_gaps_are_geometric() -> None:
    """Mean 1/p, variance (1 - p)/p^2."""
    times = masks(Bernoulli(torch.tensor([0.2], dtype=torch.float64)), 50_000, generator())[:, 0].nonzero()[
        :, 0
    ]
    gaps = times.diff().double()
    assert gaps.mean().item() == pytest.approx(5.0, abs=4 * (20 / len(gaps)) ** 0.5)
    assert gaps.var().item() == pytest.approx(20.0, rel=0.1)


def test_cyclic_period_and_frequency_are_exact() -> None:
    cycle = 40
    pattern = Cyclic(many(), cycle)
    active = masks(pattern, 3 * cycle, generator())
    assert torch.equal(active[cycle:], active[:-cycle])
    expected = torch.tensor([1, 4, 12, 20, 36])  # 0.02 * 40 is less than a round: at least one
    for begin in (0, 7):
        assert (active[begin : begin + cycle].sum(0) == expected).all()
    assert torch.equal(pattern.frequency[0], expected.double() / cycle)
    assert (active[:cycle].int().diff(dim=0, append=active[:1].int()).abs().sum(0) == 2).all()  # in one piece
    first = (~active[: 2 * cycle - 1] & active[1 : 2 * cycle]).int().argmax(0)
    assert len(first.unique()) > cycle / 2  # at times of their own


@pytest.mark.parametrize("pattern", [Bernoulli(many()), Markov(many(), 0.1), Cyclic(many(), 30)])
def test_patterns_go_on_from_their_state(pattern: Pattern) -> None:
    g = generator(3)
    whole = masks(pattern, 12, g)
    g = generator(3)
    state = pattern.start(g)
    for _ in range(5):
        state = pattern.next(state, g)
    other = generator(8)
    other.set_state(g.get_state())
    for t in range(5, 12):
        assert torch.equal(pattern.active(state), whole[t])
        state = pattern.next(state, other)


def test_one_client_with_one_step_is_sgd_and_more_steps_too() -> None:
    """From round to round the server takes over the only client's model, for two rates at once."""
    a, b = torch.rand(5, generator=generator()).double() + 0.5, torch.randn(5, generator=generator()).double()
    rates = torch.tensor([0.1, 0.3], dtype=torch.float64)
    for steps in (1, 3):
        x = torch.zeros(2, 5, dtype=torch.float64)
        for _ in range(4):
            x = local_sgd(x, 1, steps, rates.view(2, 1, 1), lambda y, k: a * (y - b)).mean(-2)
        for rate, found in zip(rates.tolist(), x, strict=True):
            theirs = torch.zeros(5, dtype=torch.float64, requires_grad=True)
            optimizer = torch.optim.SGD([theirs], rate)
            for _ in range(4 * steps):
                optimizer.zero_grad()
                (a * (theirs - b).square() / 2).sum().backward()
                optimizer.step()
            torch.testing.assert_close(found, theirs.detach(), atol=1e-14, rtol=0)


def test_clients_start_from_the_servers_model_and_go_their_own_ways() -> None:
    towards = torch.tensor([[1.0], [3.0]])
    y = local_sgd(torch.zeros(1), 2, 2, 0.5, lambda y, k: y - towards)
    assert y.tolist() == [[0.75], [2.25]]
