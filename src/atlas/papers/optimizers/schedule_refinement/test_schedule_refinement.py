import math

import numpy as np
import pytest
import torch
from scipy import ndimage, optimize
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch.optim.lr_scheduler import LambdaLR, LinearLR

from atlas.papers.optimizers.schedule_refinement import experiment as e
from atlas.run import Run

RUN = Run("schedule_refinement", 0)


def norms(T: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 1 + torch.rand(3, T, generator=generator) + 3 * torch.exp(-torch.arange(T) / 10)


def test_the_filter_is_scipys_with_the_padding_of_the_official_code() -> None:
    g = norms(200)
    for row, found in zip(g.numpy(), e.median_filter(g, 0.1).numpy(), strict=True):
        padded = np.pad(row, (0, 42), mode="reflect")
        assert (found == ndimage.median_filter(padded, size=21, mode="nearest")[:-42]).all()


def test_refinement_by_hand() -> None:
    found = e.refine(torch.tensor([2.0, 1.0, 2.0, 1.0]), "SGD", 0.1)  # w = 1/4, 1, 1/4, 1; no filter
    assert found.tolist() == [0.25 * 2.25 / 1.25, 1.0, 0.25 / 1.25, 0.0]
    found = e.refine(torch.tensor([2.0, 1.0, 2.0, 1.0]), "Adam", 0.1)  # w = 1/2, 1, 1/2, 1
    assert found.tolist() == pytest.approx([0.5 * 2.5 / 1.5, 1.0, 0.5 / 1.5, 0.0])


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_constant_norms_give_linear_decay(optimizer: e.Optimizer) -> None:
    found = e.refine(torch.full((50,), 3.7), optimizer, 0.1)
    torch.testing.assert_close(found, torch.linspace(1, 0, 50, dtype=torch.float64), atol=1e-12, rtol=0)


def test_the_refined_schedule_has_the_least_bound() -> None:
    """With steps eta_t = w_t sum_{p>t} w_p / sum w the last iterate is within (D^2 + sum w_t^2 g_t^2) / (2 sum w) of the
    optimum; for norms g that is least at w_t = D / (g_t^2 sqrt(sum 1/g^2)).
    """
    g, D = norms(30)[0].double(), 2.0

    def bound(w: np.ndarray) -> float:
        return (D**2 + (w * g.numpy()) @ (w * g.numpy())) / (2 * w.sum())

    best = torch.from_numpy(optimize.minimize(bound, np.full(30, 0.1), tol=1e-12).x)
    eta = best * (best.sum() - best.cumsum(0))
    torch.testing.assert_close(e.refine(g, "SGD", 0.0), eta / eta.max(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_training_is_torchs(optimizer: e.Optimizer) -> None:
    problem = e.data_sets(60, RUN)["mixture"]
    setting, S, T = e.Setting(batch=4), 2, 8
    rates = 0.1 * torch.rand(3, S, T, generator=torch.Generator().manual_seed(1))
    loss, wrong, norm = e.train(problem, optimizer, rates, "test", setting, RUN)
    generator = RUN.generator("batches", "test")
    batches = [torch.randint(60, (S, 4), generator=generator) for _ in range(T)]
    model = torch.nn.Linear(21, 5, bias=False)
    torch.nn.init.zeros_(model.weight)
    step = {"SGD": torch.optim.SGD, "Adam": torch.optim.Adam}[optimizer](model.parameters(), lr=1.0)
    schedule = LambdaLR(step, lambda t: float(rates[2, 1, min(t, T - 1)]))
    for t in range(T):
        step.zero_grad()
        i = batches[t][1]
        torch.nn.functional.cross_entropy(model(problem.x[i]), problem.y[i]).backward()
        gradient = model.weight.grad
        assert float(norm[2, 1, t]) == pytest.approx(
            float(gradient.norm(p=2 if optimizer == "SGD" else 1)), rel=1e-4
        )
        step.step()
        schedule.step()
    logits = model(problem.x).detach()
    assert float(loss[2, 1]) == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, problem.y)), rel=1e-5
    )
    assert float(wrong[2, 1]) == pytest.approx(float((logits.argmax(-1) != problem.y).float().mean()))


def test_the_minimum_is_that_of_scikit_learn() -> None:
    for name in ("breast cancer", "diabetes"):
        problem = e.data_sets(60, RUN)[name]
        x, y = problem.x.double().numpy(), problem.y.numpy()
        fit = LogisticRegression(
            C=float("inf"), fit_intercept=False, solver="newton-cholesky", tol=1e-12
        ).fit(x, y)
        assert problem.minimum() == pytest.approx(log_loss(y, fit.predict_proba(x)), abs=1e-7)


def test_the_noisy_problem_without_noise_is_torchs_sgd() -> None:
    """All horizons at once against one at a time; G = 1, D = 1, the worst slope of two."""
    setting = e.Setting(horizons=(30, 10), slopes=(0.5, 1.0, 2), dim=3, noise=0.0, noisy_seeds=1)
    for T, found in zip((10, 30), e.noisy_gaps(setting, RUN), strict=True):
        ends = []
        for s in (0.5, 1.0):
            x = torch.nn.Parameter(torch.full((3,), 1 / math.sqrt(3), dtype=torch.float64))
            sgd = torch.optim.SGD([x], lr=1 / math.sqrt(T))
            schedule = LinearLR(sgd, 1.0, 0.0, total_iters=T)
            for _ in range(T):
                sgd.zero_grad()
                (s * x.abs().sum() / math.sqrt(3)).backward()
                sgd.step()
                schedule.step()
            ends.append(float(s * x.detach().abs().sum() / math.sqrt(3)))
        assert float(found) == pytest.approx(max(ends), rel=1e-9)
