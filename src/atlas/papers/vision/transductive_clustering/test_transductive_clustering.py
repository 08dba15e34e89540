import numpy as np
import torch
from sklearn.cluster import KMeans

from atlas.measure import load_experiment, make_setting
from atlas.paper import find
from atlas.papers.vision.transductive_clustering import experiment as e
from atlas.run import Run

F64 = torch.float64


def task(P: int = 30, d: int = 3, K: int = 4):
    g = torch.Generator().manual_seed(0)
    f, shots = torch.randn(1, P, d, generator=g, dtype=F64), 2 * torch.randn(1, K, d, generator=g, dtype=F64)
    return f, shots, torch.eye(K, dtype=F64)[None]


def test_assignment_minimises_the_linearised_energy() -> None:
    """The update is the minimiser over the simplex of z'(a - lambda W z_old) + sum z log z, found by scipy."""
    from scipy.optimize import minimize

    f, shots, _ = task()
    a, z, W = e.distances(f, shots), torch.softmax(torch.randn(1, 30, 4, dtype=F64), -1), e.affinity(f, 3)
    new = e.assignment_step(a, z, W, 0.7)[0, 5].numpy()
    linear = (a - 0.7 * W @ z)[0, 5].numpy()
    found = minimize(
        lambda p: p @ linear + (p * np.log(p + 1e-300)).sum(), np.full(4, 0.25), bounds=[(1e-9, 1)] * 4,
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1}, method="SLSQP", options={"ftol": 1e-14},
    )  # fmt: skip
    np.testing.assert_allclose(new, found.x, atol=1e-5)


def test_prototypes_minimise_the_energy() -> None:
    f, shots, labels = task()
    z = torch.softmax(torch.randn(1, 30, 4, dtype=F64), -1)
    m = e.prototype_step(f, z, shots, labels).requires_grad_()
    cost = ((shots - m).square().sum((1, 2)) + (z * e.distances(f, m)).sum((1, 2))).sum()
    assert torch.autograd.grad(cost, m)[0].abs().max() < 1e-10


def test_affinity_is_symmetric_and_positive_semidefinite() -> None:
    W = e.affinity(torch.randn(3, 25, 4, dtype=F64), 3)
    torch.testing.assert_close(W, W.mT)
    assert torch.linalg.eigvalsh(W).min() > -1e-10


def test_k_means_is_that_of_scikit_learn() -> None:
    """Without labelled points (weight zero) from the same start."""
    f, shots, labels = task(P=60)
    ours = e.k_means(f, shots, labels, 50)[0].argmax(-1)
    # the shots count as points of their class: give them to scikit-learn as well, and start it at the shots
    points = torch.cat([f[0], shots[0]]).numpy()
    theirs = KMeans(4, init=shots[0].numpy(), n_init=1, max_iter=300, algorithm="lloyd").fit(points)
    if (theirs.labels_[60:] == np.arange(4)).all():  # scikit-learn left the shots with their classes
        np.testing.assert_array_equal(ours, theirs.labels_[:60])
    else:
        raise AssertionError("choose another seed: scikit-learn moved a shot")


def test_no_iteration_is_the_nearest_prototype() -> None:
    f, shots, labels = task()
    z = e.k_means(f, shots, labels, 0)
    np.testing.assert_array_equal(z.argmax(-1), torch.cdist(f, shots).argmin(-1))


def test_smoke_table_is_reproducible() -> None:
    paper = find("transductive_clustering")
    module = load_experiment(paper)
    one, two = (module.measure(make_setting(paper, module, "smoke"), Run(paper.slug, 1)) for _ in range(2))
    assert one.equals(two)
