import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from sklearn.linear_model import Perceptron

from atlas.papers.optimization.perceptron_lr_gd import experiment as e
from atlas.run import Run

RUN = Run("perceptron_lr_gd", 0)


def data(S: int = 3, n: int = 12, d: int = 4) -> torch.Tensor:
    setting = e.Setting(dim=d)
    return e.easy(S, n, setting, torch.Generator().manual_seed(1))


def test_lr_gd_is_torch_sgd_on_the_mean_logistic_loss() -> None:
    z, gamma = data(), torch.tensor([0.5, 20.0], dtype=torch.float64)
    theta = torch.zeros(3, 4, 2, dtype=torch.float64)
    for _ in range(6):
        theta = e.step(theta, z, gamma, e.gradient_descent)
    for g in range(2):
        weight = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
        sgd = torch.optim.SGD([weight], lr=float(gamma[g]))
        for _ in range(6):
            sgd.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(
                z[1] @ weight, torch.ones(12, dtype=torch.float64)
            ).backward()
            sgd.step()
        torch.testing.assert_close(theta[1, :, g], weight.detach())


def test_normalised_weights_by_hand() -> None:
    margins = torch.tensor([-3.0, -0.1, 0.0, 2.0], dtype=torch.float64)
    w = np.array([1 / (1 + math.exp(m)) for m in margins])
    found = e.normalised_gradient_descent(margins.view(1, 4, 1)).flatten()
    assert found.numpy() == pytest.approx(w / w.sum())


def test_with_a_huge_step_both_are_perceptrons() -> None:
    """Weights of margins times 1e9: 1/n for every misclassified example, or 1 over their number; 1/2 on the boundary."""
    margins = torch.tensor([-3.0, -0.1, 1.0, 2.0], dtype=torch.float64).view(1, 4, 1)
    assert e.gradient_descent(1e9 * margins).flatten().tolist() == [0.25, 0.25, 0, 0]
    assert e.batch_perceptron(margins).flatten().tolist() == [0.25, 0.25, 0, 0]
    assert e.batch_perceptron(0 * margins).flatten().tolist() == [0.125] * 4
    mean = e.normalised_gradient_descent(torch.tensor([-1e9, -1e9 + 1e-9, 1e9]).view(1, 3, 1))
    assert mean.flatten().tolist() == [0.5, 0.5, 0]


def test_of_one_example_a_step_is_rosenblatts_perceptron() -> None:
    """One epoch of scikit-learn's perceptron over a single example from a start that misclassifies it."""
    z, start = torch.tensor([[[0.3, -0.7]]], dtype=torch.float64), np.array([[-1.0, 0.5]])
    model = Perceptron(fit_intercept=False, max_iter=1, tol=None)
    x, y = np.array([[0.3, -0.7], [0.0, 0.0]]), [1, -1]  # a second class, whose example changes nothing
    model.fit(x, y, coef_init=start.copy())
    theta = e.step(torch.from_numpy(start).view(1, 2, 1), z, torch.ones(1), e.batch_perceptron)
    assert theta.flatten().numpy() == pytest.approx(model.coef_[0])


def test_iterations_on_the_hard_data_have_a_closed_form() -> None:
    """No jitter, a huge step: after theta_1 = sum z / 2n only z_n = (-0.9, 0.2) is misclassified, and moves by 0.85 / n a step."""
    n, setting = 50, e.Setting(jitter=0.0, start=1)
    z = e.hard(1, n, setting, torch.Generator())
    found = {
        method: float(e.separate(z, (1e12,), method, 1000, "test", setting, RUN)[0]) for method in e.LOGISTIC
    }
    first = (-0.9 * (n - 1) + 0.85) / (2 * n)  # <z_n, theta_1>
    assert found["LR+GD"] == 2 + math.floor(-first * n / 0.85)
    x, y, t = (n - 1 - 0.9) / n, 0.2 / n, 1  # normalised: the mean, then the mean over the misclassified
    while (wrong := (x <= 0, -0.9 * x + 0.2 * y <= 0)) != (False, False):
        assert wrong in ((True, False), (False, True))
        x, y, t = (x + 1, y, t + 1) if wrong[0] else (x - 0.9, y + 0.2, t + 1)
    assert found["Normalized LR+GD"] == t


def test_margins_against_a_general_solver() -> None:
    z = data()
    for Z, bound in zip(z.numpy(), e.novikoff(z), strict=True):
        shortest = minimize(
            lambda w: w @ w, np.eye(4)[0] / Z[:, 0].min(), jac=lambda w: 2 * w, method="SLSQP", tol=1e-12,
            constraints={"type": "ineq", "fun": lambda w: Z @ w - 1, "jac": lambda w: Z},
        )  # fmt: skip
        assert float(bound) == pytest.approx((Z**2).sum(1).max() * shortest.fun, rel=1e-6)


def test_images_with_both_labels_cannot_be_separated() -> None:
    z = data()
    for Z, solvable in ((z[0], True), (e.contradictory(z, 2)[0], False)):
        found = linprog(np.zeros(4), A_ub=-Z.numpy(), b_ub=-np.ones(len(Z)), bounds=(None, None))
        assert found.success == solvable


def test_the_distance_from_the_perceptron_vanishes() -> None:
    setting = e.Setting(limit_steps=(1.0, 1e9), compared=20)
    distance = e.distance_from_perceptron(data(), setting, RUN)
    assert distance[:, 1].max() < 1e-12 < 0.1 < distance[:, 0].min()
