"""Federated averaging in Flower's simulation engine, as its tutorials write it. Runs in an environment of its own.

    python flower_app.py PROBLEM.npz OUT.npz

PROBLEM holds the clients' mini-batches x (rounds, clients, steps, batch, features) and y, the classes, the first weights in the
order of torch.nn's parameters, and the step size. Writes the last weights and the seconds from the first to the last round.
"""

import os
import sys
import time

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn

client_app, server_app = ClientApp(), ServerApp()
seen: dict[str, float] = {}


def problem() -> dict[str, np.ndarray]:
    return np.load(os.environ["PROBLEM"])


def network(sizes: list[int]) -> nn.Module:
    return nn.Sequential(nn.Linear(sizes[0], sizes[1]), nn.ReLU(), nn.Linear(sizes[1], sizes[2]))


DATA: dict[str, torch.Tensor] = {}


@client_app.train()
def train(message: Message, context: Context) -> Message:
    if not DATA:  # once for every process of the engine
        torch.set_num_threads(1)
        given = problem()
        DATA.update({name: torch.from_numpy(given[name]) for name in ("x", "y", "sizes", "rate")})
    client, r = int(context.node_config["partition-id"]), int(message.content["config"]["server-round"]) - 1
    model = network(DATA["sizes"].tolist())
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=float(DATA["rate"]))
    for x, y in zip(DATA["x"][r, client], DATA["y"][r, client], strict=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    metrics = MetricRecord({"num-examples": DATA["y"].shape[-1]})
    return Message(
        RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message
    )


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    given = problem()
    sizes = given["sizes"].tolist()
    model = network(sizes)
    start = [torch.from_numpy(given[f"start {i}"]) for i in range(4)]
    model.load_state_dict(dict(zip(model.state_dict(), start, strict=True)))
    clients = given["x"].shape[1]
    strategy = FedAvg(
        fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients
    )

    def note(server_round: int, arrays: ArrayRecord) -> None:
        seen[server_round] = time.perf_counter()  # 0: before the first round

    result = strategy.start(
        grid,
        ArrayRecord(model.state_dict()),
        num_rounds=len(given["x"]),
        train_config=ConfigRecord(),
        evaluate_fn=note,
    )
    last = [v.numpy() for v in result.arrays.to_torch_state_dict().values()]
    times = [seen[r] for r in sorted(seen)]
    np.savez(sys.argv[2], *last, times=np.array(times))


if __name__ == "__main__":
    os.environ["PROBLEM"] = sys.argv[1]
    clients = problem()["x"].shape[1]
    backend = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server_app, client_app, num_supernodes=clients, backend_config=backend)
