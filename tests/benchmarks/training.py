"""How fast many small networks train: against one network of torch.nn, and against Flower's simulation engine.

    python -m tests.benchmarks.training [--flower PYTHON]

Both comparisons are on the same networks, data, batches and steps, side by side in one run, on one thread (Flower's engine uses
all cores); the first and the second one's results are compared too, so that it is the same work. Printed, not asserted.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from atlas.federated.averaging import local_sgd
from atlas.models.networks import MLP, cross_entropy, value_and_gradient
from atlas.optim.baselines import adam, sgd
from atlas.problems.images import fashion


def milliseconds(step: Callable[[], None], steps: int = 300, repeats: int = 5) -> float:
    """Of one step: the best of some repeats."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(steps):
            step()
        best = min(best, (time.perf_counter() - start) / steps)
    return best * 1000


def one_network(optimizer: str, sizes: tuple[int, ...], x: Tensor, y: Tensor) -> Callable[[], None]:
    """A training step as a user of torch.nn writes it. x: (n, inputs)."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    rule = (
        torch.optim.Adam(model.parameters(), 1e-3)
        if optimizer == "Adam"
        else torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    )

    def step() -> None:
        rule.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        rule.step()

    return step


def many_networks(optimizer: str, sizes: tuple[int, ...], x: Tensor, y: Tensor) -> Callable[[], None]:
    """A training step of all networks. x: (networks, n, inputs)."""
    network = MLP(sizes)
    theta = network.initial(len(x), generator=torch.Generator().manual_seed(0))
    m, v, count = torch.zeros_like(theta), torch.zeros_like(theta), [0]

    def step() -> None:
        _, g = value_and_gradient(lambda theta: cross_entropy(network(theta, x), y), theta)
        count[0] += 1
        if optimizer == "Adam":
            adam(theta, g, m, v, count[0], 1e-3)
        else:
            sgd(theta, g, m, 0.01)

    return step


def batched() -> None:
    print("a training step, batch 32: one network of torch.nn, and 32 networks at once")
    x, y = torch.randn(32, 32, 64), torch.randint(10, (32, 32))
    for sizes in ((64, 32, 10), (64, 64, 64, 10)):
        for optimizer in ("SGD", "Adam"):
            one = milliseconds(one_network(optimizer, sizes, x[0], y[0]))
            many = milliseconds(many_networks(optimizer, sizes, x, y))
            shape = "-".join(map(str, sizes))
            print(f"  {shape:12} {optimizer:5} {one:.2f} ms, {many:.2f} ms: {many / one:.1f} times one")


def as_torch(network: MLP, theta: Tensor) -> list[Tensor]:
    """The parameters of a network with one hidden layer, in the order and form of torch.nn. theta: (P,)."""
    parts = network.split(theta)
    return [v for i in (1, 2) for v in (parts[f"weight {i}"].mT, parts[f"bias {i}"])]


def federated(
    flower: Path | None, clients: int = 20, rounds: int = 20, steps: int = 5, batch: int = 32
) -> None:
    """FedAvg of a network on Fashion-MNIST, every client in every round."""
    sizes = (196, 64, 10)
    train, _ = fashion("half", train=10000)
    generator = torch.Generator().manual_seed(0)
    x, y = train.batch((rounds, clients, steps, batch), generator)
    network, rate = MLP(sizes), 0.1
    start = network.initial(generator=generator)

    def run(rounds: int) -> Tensor:
        server = start
        for r in range(rounds):

            def gradients(models: Tensor, k: int, r: int = r) -> Tensor:
                return value_and_gradient(
                    lambda models: cross_entropy(network(models, x[r, :, k]), y[r, :, k]), models
                )[1]

            server = local_sgd(server, clients, steps, rate, gradients).mean(0)
        return server

    run(2)
    began = time.perf_counter()
    ours = run(rounds)
    seconds = time.perf_counter() - began
    updates = clients * rounds
    print(
        f"federated averaging, {clients} clients, {steps} steps of batch {batch}, {network.size} parameters"
    )
    print(f"  here, 1 core: {updates / seconds:.0f} client updates a second")
    if flower is None:
        print("  Flower: not installed (make benchmark installs it where it can)")
        return
    with tempfile.TemporaryDirectory() as folder:
        problem, out = Path(folder) / "problem.npz", Path(folder) / "out.npz"
        weights = {f"start {i}": v.contiguous().numpy() for i, v in enumerate(as_torch(network, start))}
        np.savez(problem, x=x.numpy(), y=y.numpy(), sizes=np.array(sizes), rate=np.array(rate), **weights)
        app = Path(__file__).with_name("flower_app.py")
        done = subprocess.run([flower, app, problem, out], capture_output=True, text=True, check=False)
        if not out.exists():
            print(f"  Flower failed:\n{done.stderr[-2000:]}")
            return
        with np.load(out) as found:
            times = found["times"]
            theirs = [torch.from_numpy(found[f"arr_{i}"]) for i in range(4)]
    # the first round starts the engine's processes: it is not counted
    other = clients * (len(times) - 2) / (times[-1] - times[1])
    off = max(float((a - b).abs().max()) for a, b in zip(as_torch(network, ours), theirs, strict=True))
    print(
        f"  Flower's simulation engine, all cores: {other:.0f} a second: {updates / seconds / other:.0f} times as many here"
    )
    print(f"  largest difference of a weight after {rounds} rounds: {off:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--flower", type=Path, help="python of an environment with flwr[simulation] and torch"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    batched()
    federated(options.flower)


if __name__ == "__main__":
    main()
