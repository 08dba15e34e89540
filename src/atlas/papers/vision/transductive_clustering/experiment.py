"""Transductive Few-Shot Learning: Clustering is All You Need? (arXiv 2106.09516).

Prototype-based clustering with Laplacian regularisation and labelled shots, by the paper's parallel bound optimiser; on random
tasks for its monotonicity, and on few-shot tasks of real images for its accuracy. All tasks are one batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from atlas import data
from atlas.measurements import Recorder
from atlas.run import Run


@dataclass(frozen=True)
class Setting:
    random_tasks: int = 200
    random_points: int = 80
    random_dim: int = 8
    iterations: int = 1500
    random_weight: float = 0.5  # lambda on the random tasks
    control_weight: float = 20.0  # lambda with the indefinite affinity
    tasks: int = 1200
    ways: int = 5
    shots: tuple[int, ...] = (1, 5)
    queries: int = 15  # per class
    neighbours: int = 3
    tuning_tasks: int = 150
    weights: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)  # lambda, chosen on tasks of validation classes
    scales: tuple[float, ...] = (5.0, 10.0, 20.0)  # of the squared distances, likewise
    few_shot_iterations: int = 30
    backbones: int = 4  # independently trained; the tasks are spread over them
    epochs: int = 3
    base_images: int = 1000  # per base class: kind of clothing and rotation
    features: int = 64


# The method


def distances(f: Tensor, m: Tensor) -> Tensor:
    """Squared distances (B, P, K) of points f (B, P, d) to prototypes m (B, K, d)."""
    return torch.cdist(f, m, compute_mode="donot_use_mm_for_euclid_dist").square()


def assignment_step(a: Tensor, z: Tensor, W: Tensor, weight: float) -> Tensor:
    """z_p <- softmax(-a_p + lambda sum_q w_pq z_q), all points in parallel. a, z (B, P, K), W (B, P, P)."""
    return torch.softmax(-a + weight * W @ z, -1)


def prototype_step(f: Tensor, z: Tensor, shots: Tensor, labels: Tensor) -> Tensor:
    """m_k <- mean of the labelled and the assigned points of k. shots (B, S, d), labels (B, S, K) one-hot."""
    every, weight = torch.cat([shots, f], 1), torch.cat([labels, z], 1)
    return (weight.mT @ every) / weight.sum(1).clamp_min(1e-12)[..., None]


def energy(a: Tensor, z: Tensor, W: Tensor, weight: float, shot_cost: Tensor) -> Tensor:
    """sum_pk z a - (lambda/2) sum_pq w_pq z_p'z_q + sum_pk z log z + cost of the labelled points, (B,)."""
    coupling = (z * (W @ z)).sum((1, 2)) * weight / 2
    return (z * a).sum((1, 2)) - coupling + torch.special.xlogy(z, z).sum((1, 2)) + shot_cost


def affinity(f: Tensor, k: int) -> Tensor:
    """Symmetric k-nearest-neighbour graph (B, P, P), made positive semidefinite by a shift of its diagonal."""
    near = torch.cdist(f, f).topk(min(k + 1, f.shape[1]), largest=False).indices[..., 1:]
    W = torch.zeros(*f.shape[:2], f.shape[1], dtype=f.dtype, device=f.device).scatter_(2, near, 1.0)
    W = torch.maximum(W, W.mT)
    return W + torch.diag_embed(W.sum(-1))  # diagonally dominant


def cluster(
    f: Tensor, shots: Tensor, labels: Tensor, W: Tensor, weight: float, scale: float, iterations: int
) -> Tensor:
    """Soft assignments (B, P, K) of the queries f, prototypes started from the labelled shots."""
    m = prototype_step(
        f, torch.zeros(*f.shape[:2], labels.shape[-1], dtype=f.dtype, device=f.device), shots, labels
    )
    z = torch.softmax(-scale * distances(f, m), -1)
    for _ in range(iterations):
        z = assignment_step(scale * distances(f, m), z, W, weight)
        m = prototype_step(f, z, shots, labels)
    return z


def k_means(f: Tensor, shots: Tensor, labels: Tensor, iterations: int) -> Tensor:
    """Hard assignments without regularisation, from the same start; iterations=0 is the nearest-prototype classifier."""
    K = labels.shape[-1]
    m = prototype_step(f, torch.zeros(*f.shape[:2], K, dtype=f.dtype, device=f.device), shots, labels)
    z = nn.functional.one_hot(distances(f, m).argmin(-1), K).to(f.dtype)
    for _ in range(iterations):
        m = prototype_step(f, z, shots, labels)
        z = nn.functional.one_hot(distances(f, m).argmin(-1), K).to(f.dtype)
    return z


def descend(setting: Setting, run: Run, psd: bool) -> tuple[Tensor, Tensor]:
    """Run the optimiser on random tasks; largest increase of the energy in any half-step, and the last residual (B,)."""
    g = run.generator("random tasks", str(psd))
    B, P, d, K = setting.random_tasks, setting.random_points, setting.random_dim, setting.ways

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64, device=run.device)

    centres = 1.5 * normal(B, K, d)
    own = torch.randint(K, (B, P), generator=g, device=run.device)
    f = centres.gather(1, own[..., None].expand(-1, -1, d)) + normal(B, P, d)
    shots = centres + normal(B, K, d)
    labels = torch.eye(K, dtype=torch.float64, device=run.device).expand(B, -1, -1)
    if psd:
        W, weight = affinity(f, setting.neighbours), setting.random_weight
    else:  # a bipartite graph: its eigenvalues come in pairs of opposite sign
        half = torch.arange(P, device=run.device) < P // 2
        edges = torch.rand(B, P, P, generator=g, device=run.device) < 0.1
        W = (edges & (half[:, None] & ~half[None, :])).double()
        W, weight = W + W.mT, setting.control_weight
    m = shots.clone()
    z = torch.softmax(normal(B, P, K), -1)

    def cost(m: Tensor) -> Tensor:
        return (shots - m).square().sum((1, 2))

    last = energy(distances(f, m), z, W, weight, cost(m))
    rise = torch.full((B,), -torch.inf, dtype=torch.float64, device=run.device)
    residual = rise
    # a cycle shows within a few hundred iterations; convergence may take longer
    for _ in run.progress(range(setting.iterations if psd else min(setting.iterations, 300)), "descent"):
        a = distances(f, m)
        new = assignment_step(a, z, W, weight)
        residual = (new - z).abs().amax((1, 2))
        now = energy(a, new, W, weight, cost(m))
        rise, last, z = torch.maximum(rise, now - last), now, new
        m = prototype_step(f, z, shots, labels)
        now = energy(distances(f, m), z, W, weight, cost(m))
        rise, last = torch.maximum(rise, now - last), now
        if float(residual.max()) < 1e-9:
            break
    return rise / last.abs().clamp_min(1.0), residual


# Few-shot tasks of real images


class Backbone(nn.Module):
    """A small convolutional network; `embed` gives the features before its classifier."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(1568, features),
        )
        self.classify = nn.Sequential(nn.ReLU(), nn.Linear(features, classes))


BASE = (0, 1, 3, 5, 7, 9)  # T-shirt, trouser, dress, sandal, sneaker, ankle boot


def train_backbone(setting: Setting, run: Run, x: Tensor, y: Tensor, number: int) -> Backbone:
    """Plain supervised training on the base classes; no episodes, no meta-learning."""
    devices = [run.device] if run.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(run.generator("backbone", number, device="cpu").initial_seed())
        model = Backbone(setting.features, int(y.max()) + 1).to(run.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    generator = run.generator("batches", number)
    state = {"model": model, "optimizer": optimizer, "batches": generator}
    for _ in run.checkpoint(f"training backbone {number}", setting.epochs, state):
        order = torch.randperm(len(x), generator=generator, device=run.device)
        for batch in order.split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model.classify(model.embed(x[batch])), y[batch]).backward()
            optimizer.step()
    return model


def load_images(device: torch.device) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Images (n, 1, 28, 28) by class: base (six kinds of clothing in four rotations), validation (digits 5 to 9), novel
    (the other four kinds of clothing, digits 0 to 4)."""
    x, y = data.images("fashion_mnist", "train")
    digits, labels = data.images("digits", "train")
    images = torch.as_tensor(x, device=device).reshape(-1, 1, 28, 28)
    small = torch.as_tensor(digits, device=device).reshape(-1, 1, 8, 8)
    large = nn.functional.interpolate(small, 28, mode="bilinear")
    base = [images[np.flatnonzero(y == c)].rot90(k, (2, 3)) for c in BASE for k in range(4)]
    numbers = [large[np.flatnonzero(labels == c)] for c in range(10)]
    return (
        base,
        numbers[5:],
        [images[np.flatnonzero(y == c)] for c in range(10) if c not in BASE] + numbers[:5],
    )


@dataclass
class Tasks:
    f: Tensor  # queries (B, Q, d)
    truth: Tensor  # their classes (B, Q)
    shots: Tensor  # (B, K * shots, d)
    labels: Tensor  # one-hot (B, K * shots, K)


def draw_tasks(
    classes: list[Tensor], B: int, ways: int, shots: int, counts: np.ndarray, rng: np.random.Generator
) -> Tasks:
    """B tasks from lists of features; counts (B, ways): queries of each class, the same total in every task."""
    f, truth, support = [], [], []
    for b in range(B):
        chosen = rng.choice(len(classes), ways, replace=False)
        picks = [
            classes[c][rng.choice(len(classes[c]), shots + n, replace=False)]
            for c, n in zip(chosen, counts[b], strict=True)
        ]
        support.append(torch.cat([p[:shots] for p in picks]))
        f.append(torch.cat([p[shots:] for p in picks]))
        truth.append(np.repeat(np.arange(ways), counts[b]))
    device = classes[0].device
    labels = torch.eye(ways, device=device).repeat_interleave(shots, 0).expand(B, -1, -1)
    return Tasks(
        torch.stack(f), torch.as_tensor(np.stack(truth), device=device), torch.stack(support), labels
    )


def accuracies(setting: Setting, tasks: Tasks, weight: float, scale: float) -> dict[str, Tensor]:
    """Query accuracy (B,) of every method."""
    n = setting.few_shot_iterations
    W = (
        affinity(tasks.f, setting.neighbours)
        if tasks.f.shape[1] > 1
        else torch.zeros(len(tasks.f), 1, 1, device=tasks.f.device)
    )
    found = {
        "nearest prototype": k_means(tasks.f, tasks.shots, tasks.labels, 0),
        "K-means": k_means(tasks.f, tasks.shots, tasks.labels, n),
        "regularised clustering": cluster(tasks.f, tasks.shots, tasks.labels, W, weight, scale, n),
    }
    return {name: (z.argmax(-1) == tasks.truth).float().mean(1) for name, z in found.items()}


def measure(setting: Setting, run: Run) -> pd.DataFrame:
    table = run.table()
    for name, psd in (("semidefinite affinity", True), ("indefinite affinity", False)):
        rise, residual = descend(setting, run, psd)
        table.add(name, "largest increase of the energy", x=setting.iterations, value=rise)
        table.add(name, "last change of the assignments", x=setting.iterations, value=residual)

    base, validation, novel = load_images(run.device)
    x = torch.cat([c[: setting.base_images] for c in base])
    y = torch.cat(
        [torch.full((min(len(c), setting.base_images),), i, device=run.device) for i, c in enumerate(base)]
    )
    for b in run.checkpoint("backbones", setting.backbones, {"table": table}):
        model = train_backbone(setting, run, x, y, b)
        with torch.no_grad():
            mean = model.embed(x[:: max(1, len(x) // 2000)]).mean(0)
            features = [[nn.functional.normalize(model.embed(c[:2000]) - mean, dim=-1) for c in group]
                        for group in (validation, novel)]  # fmt: skip
        for shots in setting.shots:
            few_shot(setting, run, b, shots, *features, table)
    return table.frame()


def few_shot(
    setting: Setting,
    run: Run,
    b: int,
    shots: int,
    validation: list[Tensor],
    novel: list[Tensor],
    table: Recorder,
) -> None:
    """Choose lambda and the scale on tasks of validation classes; measure all methods on tasks of novel classes."""
    K, B, rng = setting.ways, setting.tasks // setting.backbones, run.rng("tasks", b, shots)
    even = np.full((setting.tuning_tasks, K), setting.queries)
    tuning = draw_tasks(validation, setting.tuning_tasks, K, shots, even, rng)
    grid = [(w, s) for w in setting.weights for s in setting.scales]
    weight, scale = max(
        grid, key=lambda g: float(accuracies(setting, tuning, *g)["regularised clustering"].mean())
    )

    single = np.eye(K, dtype=int)[rng.integers(K, size=B)]
    uneven = np.stack(
        [rng.multinomial(setting.queries * K, p) for p in rng.dirichlet(np.full(K, 0.5), size=B)]
    )
    for queries, counts in (
        ("balanced", np.full((B, K), setting.queries)),
        ("one query", single),
        ("imbalanced", uneven),
    ):
        for name, accuracy in accuracies(
            setting, draw_tasks(novel, B, K, shots, counts, rng), weight, scale
        ).items():
            table.add(name, "query accuracy", x=setting.few_shot_iterations, value=accuracy, seed=b * B + np.arange(B),
                      shots=shots, queries=queries)  # fmt: skip
