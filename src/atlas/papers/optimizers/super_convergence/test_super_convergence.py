import torch

from atlas.models.convolutional import ResNet
from atlas.models.networks import accuracy, cross_entropy, value_and_gradient
from atlas.papers.optimizers.super_convergence import experiment as e
from atlas.problems.images import Images
from atlas.run import Run

SETTING = e.Setting(channels=(2, 3), batch=6, test_batch=10, seeds=2, together=2)


def test_at_a_constant_rate_the_update_is_torchs() -> None:
    """Caffe has the rate inside the momentum, torch outside: the same while the rate is constant."""
    theta = torch.randn(5, dtype=torch.float64)
    weight, v = torch.nn.Parameter(theta.clone()), torch.zeros_like(theta)
    sgd = torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=0.05)
    for _ in range(10):
        weight.grad = weight.detach().sin()
        e.update(theta, v, theta.sin(), 0.1, 0.9, 0.05)
        sgd.step()
    torch.testing.assert_close(theta, weight.detach())


def test_two_steps_of_different_rate_by_hand() -> None:
    theta, v = torch.tensor([2.0]), torch.zeros(1)
    e.update(theta, v, torch.tensor([1.0]), 0.5, 0.9, 0.25)  # v = 0.5 (1 + 0.5) = 0.75
    assert v.item() == 0.75 and theta.item() == 1.25
    e.update(theta, v, torch.tensor([1.0]), 0.0, 0.5, 0.25)  # a rate of 0 leaves the momentum: v = 0.375
    assert v.item() == 0.375 and theta.item() == 0.875


def test_the_standard_schedule_is_that_of_the_authors_solver() -> None:
    """solver.prototxt: base_lr 0.35, gamma 0.1, stepvalues 50000 and 70000 of 80000, momentum 0.9."""
    plan = e.piecewise_constant(80000, 0.35, 1e-4)
    rates = plan.rate[[0, 49999, 50000, 69999, 70000, 79999]]
    torch.testing.assert_close(rates, torch.tensor([0.35, 0.35, 0.035, 0.035, 0.0035, 0.0035]).double())
    assert (plan.momentum == 0.9).all()


def test_one_cycle_has_its_least_momentum_at_the_peak() -> None:
    plan = e.one_cycle(100, 3.0, 1e-4)
    assert plan.rate.max() == 3.0 and plan.momentum[plan.rate.argmax()] == plan.momentum.min() == 0.85
    assert (plan.rate.diff()[:44] > 0).all() and (plan.rate.diff()[44:] < 0).all()
    torch.testing.assert_close(plan.rate[[0, -1]], torch.tensor([0.3, 0.0003]).double())


def images(n: int) -> Images:
    generator = torch.Generator().manual_seed(n)
    return Images(torch.randn(n, 196, generator=generator), torch.randint(10, (n,), generator=generator))


def test_runs_of_a_batch_are_those_made_alone() -> None:
    """Different lengths, rates and decays together, against a loop over one run with torch.optim.SGD."""
    train, test, run = images(30), images(20), Run("super_convergence", 0)
    subset = torch.stack([torch.arange(8), torch.arange(20, 28)])
    plans = [
        e.piecewise_constant(3, 0.2, 0.01),
        e.one_cycle(6, 0.3, 0.1),
        e.piecewise_constant(5, 0.01, 0.0),
    ]
    together = e.train(plans, train, subset, test, "test", SETTING, run)
    for plan, found in zip(plans, together, strict=True):
        assert torch.equal(e.train([plan], train, subset, test, "test", SETTING, run)[0], found)

    network, seed = ResNet((2, 3)), 1
    constant = e.Schedule(torch.full((4,), 0.1).double(), torch.full((4,), 0.9).double(), 0.01)
    found = e.train([constant], train, subset, test, "test", SETTING, run)[0, seed]
    weight = torch.nn.Parameter(network.initial(2, generator=run.generator("test", "start"))[seed])
    sgd, generator = (
        torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=0.01),
        run.generator("test", "batches"),
    )
    for _ in range(4):
        picked = subset[seed, torch.randint(8, (2, 6), generator=generator)[seed]]
        x, y = train.x[picked], train.y[picked]
        weight.grad = value_and_gradient(lambda t, x=x, y=y: cross_entropy(network(t, x), y), weight)[1]
        sgd.step()
    halves = [
        accuracy(network(weight.detach(), x), y)
        for x, y in zip(test.x.split(10), test.y.split(10), strict=True)
    ]
    torch.testing.assert_close(found, torch.stack(halves).mean())


def test_a_run_that_diverges_is_not_a_number() -> None:
    train, test = images(10), images(10)
    plan = e.Schedule(torch.full((3,), 1e30).double(), torch.zeros(3).double(), 1e10)
    found = e.train([plan], train, torch.arange(10).expand(2, 10), test, "test", SETTING, Run("x", 0))
    assert found.isnan().all()
