import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from atlas.federated.clock import Timeline
from atlas.papers.federated.fedcompass import experiment as e
from atlas.problems.images import Images
from atlas.run import Run

SETTING = e.Setting(
    clients=2, least_steps=2, most_steps=10, memory=0.9, buffer=2, jitter=0.0, seconds=40.0, points=4,
    features=3, hidden=4, batch=5, test=6,
)  # fmt: skip


def at_speed(*seconds: float) -> Callable[[int, int], float]:
    return lambda client, steps: seconds[client] * steps


def jobs(line: Timeline) -> list[tuple[int, int, int, float, float]]:
    return [(j.client, j.steps, j.version, j.begin, j.end) for j in line.jobs]


def compass(setting: e.Setting, duration: Callable[[int, int], float], until: float) -> Timeline:
    return e.FedCompass(setting.clients, duration, setting).run(until)


def test_compass_lets_clients_arrive_together() -> None:
    """Seconds per step 1 and 2.5, at most 10 steps.

    First reports at 10 and 25. Client 0: at 10 opens a group for 20, at 20 one for 30. Client 1 has 5 seconds left for it at 25:
    2 steps, until 30. There client 0 opens a group for 40, in which client 1 does 4 steps.
    """
    line = compass(SETTING, at_speed(1, 2.5), 40)
    assert jobs(line)[:7] == [
        (0, 10, 0, 0, 10), (1, 10, 0, 0, 25), (0, 10, 1, 10, 20), (0, 10, 2, 20, 30),
        (1, 2, 3, 25, 30), (0, 10, 4, 30, 40), (1, 4, 4, 30, 40),
    ]  # fmt: skip
    assert line.times == [10, 20, 25, 30, 40] and line.merged == [[0], [2], [1], [3, 4], [5, 6]]
    assert line.staleness().tolist() == [0, 0, 2, 1, 0, 0, 0]
    assert line.idle(40) == 0


def test_compass_opens_a_group_that_meets_another() -> None:
    """Seconds per step 1 and 6.1: at 61 client 1 has time for one step, too few, until client 0's group arrives at 70.

    That group is closed at 75; 10 steps later, at 85, client 0 could be back, and (85 - 61) / 6.1 = 3.9: client 1 opens a group with
    3 steps, until 79.3, which client 0 joins at 70 with 9 steps.
    """
    line = compass(SETTING, at_speed(1, 6.1), 79.5)
    assert [j[:3] for j in jobs(line) if j[0] == 1][:2] == [(1, 10, 0), (1, 3, 7)]
    assert jobs(line)[-4:-2] == [(1, 3, 7, 61, pytest.approx(79.3)), (0, 9, 8, 70, 79)]
    assert line.times[-1] == pytest.approx(79.3) and len(line.merged[-1]) == 2


def test_compass_closes_a_group_without_the_late() -> None:
    """Client 1 is slow once: its job of 4 steps at 30 takes 40 seconds instead of 10; the group of 10 seconds is closed at 45."""

    def duration(client: int, steps: int) -> float:
        return (1.0, 2.5)[client] * steps * (4 if (client, steps) == (1, 4) else 1)

    line = compass(SETTING, duration, 75)
    group, late = 5, 6
    assert (line.jobs[group].end, line.jobs[late].end) == (40, 70)
    update = line.merged.index([group])
    assert line.times[update] == 45  # 30 + 1.5 * 10
    after = [m for m, t in zip(line.merged, line.times, strict=True) if t >= 70]
    assert late in after[0] and len(after[0]) == 2  # waits in the buffer for the next update
    assert 70 in [j.begin for j in line.jobs if j.client == 1]  # but works on at once


def test_estimates_are_a_moving_average() -> None:
    speeds = iter([1.0, 2.0, 1.0])
    server = e.FedCompass(
        1, lambda client, steps: next(speeds) * steps, dataclasses.replace(SETTING, clients=1)
    )
    server.run(10.0)
    assert server.speed[0] == 1.0
    server.run(30.0)
    assert server.speed[0] == pytest.approx(0.1 * 1.0 + 0.9 * 2.0)


def test_the_other_methods() -> None:
    """Two clients who take 10 and 20 seconds for a job."""
    duration = at_speed(1, 2)
    avg, buff, async_ = (c(2, duration, SETTING).run(41) for c in (e.FedAvg, e.FedBuff, e.FedAsync))
    assert avg.times == [20, 40] and avg.idle(40) == 0.25
    assert async_.times == [10, 20, 20, 30, 40, 40] and buff.times == [20, 30, 40]
    assert async_.staleness().tolist() == [0, 1, 1, 0, 2, 1]


def test_waves_keep_the_order_of_every_timeline() -> None:
    """Replayed with numbers for models, where a job adds to the sum of what it has seen."""
    setting = dataclasses.replace(SETTING, clients=6)
    run = Run("fedcompass", 0)
    lines = [e.simulate(m, "exponential", "0", setting, run) for m in e.METHODS]
    expected = []
    for line in lines:  # in order of time
        models = [1.0]
        for merged in line.merged:
            tau = {j: len(models) - 1 - line.jobs[j].version for j in merged}
            reports = {j: np.sin(models[line.jobs[j].version] + line.jobs[j].client) for j in merged}
            models.append(models[-1] - sum(reports[j] * (1 + tau[j]) ** -0.5 / 6 for j in merged))
        expected.append(models)
    found: list[list[float]] = [[] for _ in lines]
    slots: dict[tuple[int, int], float] = {}
    for wave in e.in_waves(lines):
        assert [job.steps for job in wave.jobs] == sorted((job.steps for job in wave.jobs), reverse=True)
        for k, slot, client, _ in wave.jobs:
            slots[k, slot] = np.sin(slots[k, slot] + client)
        for k, version, merged, weights, begin in wave.updates:
            assert version == len(found[k])
            change = sum(slots[k, s] * w for s, w in zip(merged, weights, strict=True))
            found[k].append(found[k][-1] - change if version else 1.0)
            slots |= {(k, s): found[k][-1] for s in begin}
    for a, b in zip(found, expected, strict=True):
        assert a == pytest.approx(b)


def test_training_is_local_adam_and_the_mean_of_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rounds of FedAvg with alpha = 1, by torch.nn and Adam's formulas, on the batches that the experiment drew."""
    setting = dataclasses.replace(SETTING, most_steps=3, seconds=6.0, points=2, test=50)
    run, generator = Run("fedcompass", 0), torch.Generator().manual_seed(0)
    images, test = (
        Images(torch.randn(n, 3, generator=generator), torch.randint(10, (n,), generator=generator))
        for n in (40, 50)
    )
    clients = e.split_data(images, ["0"], ["alike"], setting, run)
    batches: list[Images] = []
    draw = e.Clients.batch
    monkeypatch.setattr(e.Clients, "batch", lambda *args: batches.append(draw(*args)) or batches[-1])
    start = e.network(setting).initial(1, generator=generator)
    line = e.FedAvg(2, at_speed(0.5, 1), setting).run(6.0)
    one, rate = torch.ones(1, 1, 1), torch.full((1, 1, 1), 0.1)
    seed = torch.zeros(1, dtype=torch.long)
    found = e.train([line], seed, start, clients, test, rate, one, "test", setting, run)

    def model(theta: torch.Tensor) -> torch.nn.Sequential:
        net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 10))
        for p, part in zip(net.parameters(), e.network(setting).split(theta).values(), strict=True):
            p.data = part.t().clone()
        return net

    theta = start[0]
    for r in range(2):
        moved = []
        for client in range(2):
            net = model(theta)
            m, v = ([torch.zeros_like(p) for p in net.parameters()] for _ in range(2))
            for t, batch in enumerate(batches[3 * r : 3 * r + 3], 1):
                loss = F.cross_entropy(net(batch.x[client, 0]), batch.y[client, 0])
                gradients = torch.autograd.grad(loss, list(net.parameters()))
                for p, g, m_, v_ in zip(net.parameters(), gradients, m, v, strict=True):
                    m_.copy_(0.9 * m_ + 0.1 * g)
                    v_.copy_(0.999 * v_ + 0.001 * g**2)
                    p.data -= 0.1 * m_ / (1 - 0.9**t) / ((v_ / (1 - 0.999**t)) ** 0.5 + 1e-8)
            moved.append(torch.cat([p.detach().t().flatten() for p in net.parameters()]))
        theta = torch.stack(moved).mean(0)
        expected = (model(theta)(test.x).argmax(-1) == test.y).float().mean()
        assert found[0, 0, 0, r].item() == pytest.approx(expected.item())


def test_server_step_by_hand() -> None:
    """Two reports, one of which has missed three updates: w - alpha (d_1 + d_2 / 2) / n."""
    w = torch.tensor([[1.0, 2.0]])
    reports = torch.tensor([[[1.0, 0.0]], [[4.0, 8.0]]])
    weights = torch.tensor([e.staleness_weight(0), e.staleness_weight(3)]) / 10
    found = e.server_step(w, reports, weights, torch.tensor([2.0]))
    assert torch.allclose(found, torch.tensor([[1 - 2 * 3 / 10, 2 - 2 * 4 / 10]]))


def test_batches_come_from_their_client() -> None:
    """Every image is its own label's number here, so a batch tells whose it is."""
    setting = dataclasses.replace(SETTING, clients=3)
    y = torch.arange(60) % 10
    clients = e.split_data(Images(torch.arange(60.0).view(-1, 1), y), ["a", "b"], e.UNLIKE, setting, Run("x"))
    assert clients.order.sort(-1).values.eq(torch.arange(60)).all()
    seed, client = torch.tensor([1, 0, 1]), torch.tensor([2, 1, 0])
    batch = clients.batch(seed, client, 500, torch.Generator().manual_seed(0))
    for j, c in np.ndindex(3, 2):
        first, size = (int(v[seed[j], c, client[j]]) for v in (clients.first, clients.size))
        own = clients.order[seed[j], c, first : first + size]
        assert batch.x[j, c, :, 0].long().unique().tolist() == own.sort().values.tolist()
        assert torch.equal(batch.y[j, c], y[batch.x[j, c, :, 0].long()])
