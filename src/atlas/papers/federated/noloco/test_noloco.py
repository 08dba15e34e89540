import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from atlas.models.characters import CharacterMLP
from atlas.models.networks import cross_entropy
from atlas.papers.federated.noloco.experiment import (
    ALONE,
    DILOCO,
    NOLOCO,
    Setting,
    group_mean,
    outer_step,
    replica_spread,
    shuffled,
    train,
    tree_all_reduce,
)
from atlas.problems.text import corpus
from atlas.run import Run


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_means_of_groups_by_hand() -> None:
    u = torch.tensor([[1.0], [2.0], [4.0], [8.0]])
    order = torch.tensor([3, 0, 2, 1])  # pairs {3, 0} and {2, 1}
    assert group_mean(u, order, 2).flatten().tolist() == [4.5, 3.0, 3.0, 4.5]
    assert group_mean(u, order, 4).flatten().tolist() == [3.75] * 4
    assert torch.equal(group_mean(u, order, 1), u)


def test_everybody_is_in_one_pair() -> None:
    order = shuffled((5, 8), torch.Generator().manual_seed(0))
    assert (order.sort(-1).values == torch.arange(8)).all() and (order[0] != order[1]).any()


def test_diloco_is_momentum_sgd_on_the_mean_movement() -> None:
    N, d = 4, 3
    start, order = normal(d), torch.arange(N)
    phi, M = start.expand(N, d).clone(), torch.zeros(N, d).double()
    weight = torch.nn.Parameter(start.clone())
    sgd = torch.optim.SGD([weight], lr=0.7, momentum=0.3)
    for moved in normal(10, N, d, seed=1):
        phi, M = outer_step(phi, phi + moved, M, order, N, 0.7, 0.3, 0.0)
        weight.grad = -moved.mean(0)
        sgd.step()
    torch.testing.assert_close(phi, weight.detach().expand(N, d))


def test_noloco_pair_by_pair() -> None:
    alpha, beta, gamma, N = 0.7, 0.5, 0.6, 4
    phi, theta, M, order = (
        normal(N, 3),
        normal(N, 3, seed=1),
        normal(N, 3, seed=2),
        torch.tensor([2, 0, 3, 1]),
    )
    found, momentum = outer_step(phi, theta, M, order, 2, alpha, beta, gamma)
    for i, j in ((2, 0), (0, 2), (3, 1), (1, 3)):
        step = beta * M[i] + alpha * (theta[i] - phi[i] + theta[j] - phi[j]) / 2
        step += gamma * ((phi[i] + phi[j]) / 2 - phi[i])
        torch.testing.assert_close(momentum[i], step)
        torch.testing.assert_close(found[i], phi[i] + step)


def test_the_replicas_mean_moves_as_in_diloco() -> None:
    phi, theta, M = normal(6, 3), normal(6, 3, seed=1), normal(6, 3, seed=2)
    pairs, _ = outer_step(phi, theta, M, torch.randperm(6), 2, 0.7, 0.5, 0.7)
    everybody, _ = outer_step(phi, theta, M, torch.arange(6), 6, 0.7, 0.5, 0.0)
    torch.testing.assert_close(pairs.mean(0), everybody.mean(0))


def test_special_cases() -> None:
    phi, theta, zero, order = (
        normal(4, 3),
        normal(4, 3, seed=1),
        torch.zeros(4, 3).double(),
        torch.randperm(4),
    )
    alone, _ = outer_step(phi, theta, zero, order, 1, 1.0, 0.0, 0.0)
    torch.testing.assert_close(alone, theta)
    gossip, _ = outer_step(phi, theta, zero, order, 2, 1.0, 0.0, 1.0)
    torch.testing.assert_close(gossip, group_mean(theta, order, 2))


@pytest.mark.parametrize("gamma", [0.7, 0.0])
def test_the_spread_is_that_of_the_exact_second_moments(gamma: float) -> None:
    """The covariance of (phi, M) of four replicas is a fixed point of its mean over the three pairings, here by iteration."""
    H, a, N, omega = 5, 0.5, 4, 0.02
    contraction = (1 - omega * a) ** H
    noise = (omega * a) ** 2 * sum((1 - omega * a) ** (2 * k) for k in range(H))  # variance of D_i
    eye, steps = torch.eye(N).double(), []
    for pairs in ([(0, 1), (2, 3)], [(0, 2), (1, 3)], [(0, 3), (1, 2)]):
        W = torch.zeros(N, N).double()  # the mean over pairs
        for i, j in pairs:
            W[i, i] = W[j, j] = W[i, j] = W[j, i] = 0.5
        push = 0.7 * (contraction - 1) * W + gamma * (W - eye)
        steps.append((torch.cat([torch.cat([eye + push, 0.5 * eye], 1), torch.cat([push, 0.5 * eye], 1)]),
                      0.49 * noise * torch.cat([W, W]) @ torch.cat([W, W]).mT))  # fmt: skip
    P = torch.zeros(2 * N, 2 * N).double()
    for _ in range(3000):
        P = sum(F @ P @ F.mT + Q for F, Q in steps) / len(steps)
    exact = P[:N, :N].diag().mean() - P[:N, :N].sum() / N**2
    setting = Setting(dim=1, quadratic_replicas=N, quadratic_seeds=400, inner_rates=(omega,), quadratic_inner=H,
                      quadratic_outer=300)  # fmt: skip
    found = replica_spread(replace(NOLOCO, gamma=gamma), setting, Run("noloco", 0))
    assert found.shape == (1, 400)
    assert float(found.mean()) == pytest.approx(float(exact) * N / (N - 1), rel=0.05)


def test_inner_steps_are_torchs_adam() -> None:
    """A single replica whose slow weights follow it: the losses of plain Adam with the schedule."""
    setting = Setting(steps=6, inner_steps=2, points=3, hidden=4, embedding=2, held_out=20)
    text, run = corpus(), Run("noloco", 0)
    found = train([ALONE], [0.02], 1, 5, 1, "test", setting, text, run)
    network = CharacterMLP(text.vocabulary, setting.context, 2, 4)
    theta = network.initial(1, generator=run.generator("test", "initial")).requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: 0.1 + 0.9 * (1 + math.cos(math.pi * t / 6)) / 2
    )
    generator, (x_val, y_val) = run.generator("test", "batches"), text.held_out(20, setting.context)
    losses = [cross_entropy(network(theta, x_val), y_val).item()]
    for t in range(6):
        x, y = text.batch((1, 5), setting.context, generator)
        optimizer.zero_grad()
        cross_entropy(network(theta, x), y).sum().backward()
        optimizer.step()
        schedule.step()
        if t % 2:
            losses.append(cross_entropy(network(theta, x_val), y_val).item())
            shuffled((1, 1), generator)  # which the groups take
    assert found.flatten().tolist() == pytest.approx(losses, abs=1e-4)


def test_training_uses_the_rows_groups() -> None:
    """After one synchronisation of all replicas with alpha = 1 they are their mean, whatever the group says besides."""
    setting = Setting(steps=4, inner_steps=4, points=1, hidden=4, embedding=2, held_out=40)
    rows = [replace(DILOCO, alpha=1.0), replace(NOLOCO, group=4, alpha=1.0), NOLOCO]
    losses = train(rows, [0.02] * 3, 4, 3, 2, "test", setting, corpus(), Run("noloco", 0))[..., -1]
    torch.testing.assert_close(losses[0], losses[1])
    assert (losses[0] != losses[2]).all()


def test_message_times() -> None:
    generator = torch.Generator().manual_seed(0)
    for workers in (2, 8, 256):  # equal times: down and up the tree
        assert tree_all_reduce(workers, 0.0, 3, generator).tolist() == [2 * math.log2(workers)] * 3
    pair = tree_all_reduce(2, 0.5, 200_000, generator)  # a message and its answer: mean of a log-normal
    assert float(pair.mean()) == pytest.approx(2 * math.exp(0.125), rel=0.01)
    four = tree_all_reduce(4, 0.5, 200_000, generator)
    up_1, up_2, up_3, down_1, down_2, down_3 = torch.exp(0.5 * normal(6, 200_000))
    root = torch.maximum(up_1, up_3 + up_2)  # 3 sends to 2, then 1 and 2 send to 0
    last = root + torch.maximum(down_1, down_2 + down_3)
    assert float(four.mean()) == pytest.approx(float(last.mean()), rel=0.01)


def test_all_pairings_are_equally_likely() -> None:
    order = shuffled((6000, 4), torch.Generator().manual_seed(0)).tolist()
    partners = [row[row.index(0) ^ 1] for row in order]  # places 0 and 1 are a pair, 2 and 3
    for j in range(1, 4):
        assert partners.count(j) / 6000 == pytest.approx(1 / 3, abs=0.03)
