"""FedCompass: Efficient Cross-Silo Federated Learning with a Computing Power Aware Scheduler (arXiv 2309.14675).

Clients of different speeds on a simulated clock. Who reports when depends on speeds alone, so every method first writes its
timeline; then all timelines are trained at once, in waves of those local jobs whose starting weights are known.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from atlas.federated.clock import Server, Timeline
from atlas.federated.partition import by_class, dirichlet
from atlas.models.networks import MLP, accuracy, cross_entropy, value_and_gradient
from atlas.optim.baselines import adam
from atlas.problems.images import Images, fashion
from atlas.run import Run

SPEEDS = ("equal", "normal", "exponential")  # the clients' seconds per local step
UNLIKE = ("by class", "Dirichlet")  # splits of the data over the clients, besides "alike"


@dataclass(frozen=True)
class Setting:
    clients: int = 10
    least_steps: int = 3  # Q_min; Q_max / Q_min is that of the released example
    most_steps: int = 15  # Q_max, and the local steps of the other methods
    lateness: float = 1.5  # lambda: a group is closed after this multiple of its expected duration
    memory: float = 0.9  # weight of the newest measurement in the estimate of a client's speed
    buffer: int = 5  # reports in an update of FedBuff
    spread: float = 0.3  # of the normal speeds
    fastest: float = 0.2  # seconds per step; nobody is faster
    jitter: float = 0.05  # of a job's duration
    seconds: float = 300.0  # simulated
    points: int = 40
    seeds: int = 16
    tuning_seeds: int = 3
    timelines: int = 50  # seeds of the timelines alone
    rates: tuple[float, ...] = (0.01, 0.03)  # of Adam in the clients, tried
    mixing: tuple[float, ...] = (0.9, 2.0, 5.0, 12.0)  # alpha, tried
    train: int = 5000
    test: int = 1000
    features: int = 32  # principal components of the images
    hidden: int = 16
    batch: int = 16
    classes: int = 4  # of a client, where data are split by class
    concentration: float = 0.1  # of the Dirichlet split


class FedAvg(Server):
    """Everybody does the same work and waits for the slowest."""

    def __init__(self, clients: int, duration: Callable[[int, int], float], setting: Setting) -> None:
        super().__init__(clients, duration)
        self.setting = setting
        self.arrived: list[int] = []
        for client in range(clients):
            self.start(client, setting.most_steps)

    def report(self, job: int) -> None:
        self.arrived.append(job)
        if len(self.arrived) == self.timeline.clients:
            self.merge(self.arrived)
            self.arrived = []
            for client in range(self.timeline.clients):
                self.start(client, self.setting.most_steps)


class FedBuff(FedAvg):
    """Everybody goes on at once; the server updates its model as soon as it has a buffer full of reports."""

    size: int | None = None

    def report(self, job: int) -> None:
        self.arrived.append(job)
        if len(self.arrived) == (self.size or self.setting.buffer):
            self.merge(self.arrived)
            self.arrived = []
        self.start(self.timeline.jobs[job].client, self.setting.most_steps)


class FedAsync(FedBuff):
    """Every report is an update."""

    size = 1


@dataclass(eq=False)
class Group:
    """Clients who are to arrive together."""

    expected: float  # time of arrival
    latest: float  # when the group is closed
    absent: list[int]  # clients
    arrived: list[int] = field(default_factory=list)  # jobs


class FedCompass(FedAvg):
    """The server learns the clients' speeds and gives each as many steps as make a group arrive together.

    blind: estimates are replaced by what it returns.
    """

    def __init__(
        self,
        clients: int,
        duration: Callable[[int, int], float],
        setting: Setting,
        blind: Callable[[], float] | None = None,
    ) -> None:
        super().__init__(clients, duration, setting)
        self.blind = blind
        self.speed: dict[int, float] = {}  # s_c, estimated seconds per step
        self.group: dict[int, Group] = {}  # of every client
        self.groups: list[Group] = []  # that clients are absent from
        self.late: list[int] = []  # reports that wait for the next update

    def report(self, job: int) -> None:
        done = self.timeline.jobs[job]
        c, now = done.client, self.clock.now
        s, rho = (done.end - done.begin) / done.steps, self.setting.memory
        self.speed[c] = self.blind() if self.blind else rho * s + (1 - rho) * self.speed.get(c, s)
        if c not in self.group:  # the first report: its speed was not known
            self.merge([job])
            self.assign(c)
            return
        group = self.group[c]
        group.absent.remove(c)
        if now <= group.latest:
            group.arrived.append(job)
            if not group.absent:
                self.close(group)
        else:
            self.late.append(job)
            if not group.absent:
                self.groups.remove(group)
            self.assign(c)

    def close(self, group: Group) -> None:
        """Merge what has arrived, at last when the time is up, and give those clients new work, the fastest first."""
        if group not in self.groups or not group.arrived:
            return
        self.merge([*self.late, *group.arrived])
        self.late, arrived, group.arrived = [], group.arrived, []
        group.expected = group.latest = -math.inf
        if not group.absent:
            self.groups.remove(group)
        for client in sorted((self.timeline.jobs[j].client for j in arrived), key=self.speed.__getitem__):
            self.assign(client)

    def assign(self, c: int) -> None:
        """Let client c join the group for which it can do most steps, between Q_min and Q_max, or open a new group."""
        q_min, q_max = self.setting.least_steps, self.setting.most_steps
        now, s = self.clock.now, self.speed[c]
        steps = {g: math.floor((g.expected - now) / s) for g in self.groups if g.expected > now}
        fit = [g for g, q in steps.items() if q_min <= q <= q_max]
        if fit:
            group = max(fit, key=steps.__getitem__)
            group.absent.append(c)
            q = steps[group]
        else:
            # a new group arrives when the fastest of a group, back from it, could: so that they can meet
            meetings = [
                math.floor((g.latest + q_max * min(self.speed[i] for i in self.members(g)) - now) / s)
                for g in self.groups
                if now < g.latest
            ]
            q = max((q for q in meetings if q <= q_max), default=q_max)
            q = max(q, q_min)
            group = Group(now + q * s, now + self.setting.lateness * q * s, [c])
            self.groups.append(group)
            self.clock.schedule(group.latest - now, lambda: self.close(group))
        self.group[c] = group
        self.start(c, q)

    def members(self, group: Group) -> list[int]:
        return group.absent + [self.timeline.jobs[j].client for j in group.arrived]


METHODS: dict[str, type[FedAvg]] = {c.__name__: c for c in (FedCompass, FedAvg, FedAsync, FedBuff)}
BLIND = "FedCompass, random estimates"


def draw_speeds(speeds: str, setting: Setting, rng: np.random.Generator) -> NDArray[np.float64]:
    """Seconds per local step of every client; their mean is 1."""
    drawn = {
        "equal": np.ones(setting.clients),
        "normal": rng.normal(1, setting.spread, setting.clients),
        "exponential": rng.exponential(1, setting.clients),
    }
    return np.maximum(drawn[speeds], setting.fastest)


def simulate(method: str, speeds: str, seed: str, setting: Setting, run: Run) -> Timeline:
    """The k-th job of a client takes as much more or less time than expected in all methods."""
    seconds = draw_speeds(speeds, setting, run.rng("speeds", seed))
    noise = [run.rng("jitter", seed, client) for client in range(setting.clients)]

    def duration(client: int, steps: int) -> float:
        return float(seconds[client] * steps * max(noise[client].normal(1, setting.jitter), 0.5))

    if method == BLIND:
        rng = run.rng("estimates", seed)
        server: Server = FedCompass(
            setting.clients, duration, setting, blind=lambda: float(rng.choice(seconds))
        )
    else:
        server = METHODS[method](setting.clients, duration, setting)
    return server.run(setting.seconds)


class Work(NamedTuple):
    """A job; its slot holds the weights it starts from, then its report until that is merged."""

    timeline: int
    slot: int
    client: int
    steps: int


class Update(NamedTuple):
    """Makes a version of a server's model from the reports in `slots`; then new jobs begin."""

    timeline: int
    version: int
    slots: list[int]
    weights: list[float]
    begin: list[int]  # slots


@dataclass
class Wave:
    """Jobs whose starting weights are known, longest first, and the updates that are possible with their reports."""

    jobs: list[Work] = field(default_factory=list)
    updates: list[Update] = field(default_factory=list)


def staleness_weight(tau: int) -> float:
    """s(tau), for a report that has missed tau updates."""
    return (1.0 + tau) ** -0.5


def in_waves(timelines: Sequence[Timeline]) -> list[Wave]:
    """All timelines, except for jobs whose reports are never merged. Wave 0 makes the first models."""
    waves: dict[int, Wave] = defaultdict(Wave)
    for k, line in enumerate(timelines):
        beginning = defaultdict(list)  # version -> jobs
        for j in itertools.chain.from_iterable(line.merged):
            beginning[line.jobs[j].version].append(j)
        wave, used, free = 0, 0, list[int]()
        slot, trained = dict[int, int](), dict[int, int]()  # of the jobs
        for version, merged in enumerate([[], *line.merged]):
            wave = max([wave, *(trained[j] for j in merged)])
            slots = [slot[j] for j in merged]
            stale = [version - 1 - line.jobs[j].version for j in merged]
            free += slots
            for j in beginning[version]:
                if not free:
                    free, used = [used], used + 1
                slot[j], trained[j] = free.pop(), wave + 1
                done = line.jobs[j]
                waves[wave + 1].jobs.append(Work(k, slot[j], done.client, done.steps))
            weights = [staleness_weight(tau) / line.clients for tau in stale]
            begin = [slot[j] for j in beginning[version]]
            waves[wave].updates.append(Update(k, version, slots, weights, begin))
    for work in waves.values():
        work.jobs.sort(key=lambda job: -job.steps)
    return [waves[w] for w in sorted(waves)]


@dataclass
class Clients:
    """The data of C splits of the training images over n clients, for several seeds.

    order: images, those of a client in a row (seeds, C, train); first, size: of each client (seeds, C, n).
    """

    images: Images
    order: Tensor
    first: Tensor
    size: Tensor

    def batch(self, seed: Tensor, client: Tensor, n: int, generator: torch.Generator) -> Images:
        """n images of a client, for every job and split. seed, client: (J,); x: (J, C, n, features)."""
        first, size = (v[seed, :, client].unsqueeze(-1) for v in (self.first, self.size))
        u = torch.rand((*first.shape[:2], n), generator=generator, device=first.device)
        split = torch.arange(first.shape[1], device=first.device).view(-1, 1)
        index = self.order[seed.view(-1, 1, 1), split, first + (u * size).long()]
        x = self.images.x.index_select(0, index.flatten())  # quicker than x[index]
        return Images(x.view(*index.shape, -1), self.images.y[index])


def split_data(
    images: Images, seeds: Sequence[str], splits: Sequence[str], setting: Setting, run: Run
) -> Clients:
    y, n = images.y.cpu().numpy(), setting.clients
    owned = []
    for seed, split in itertools.product(seeds, splits):
        rng = run.rng("split", split, seed)
        if split == "by class":
            owned.append(by_class(y, n, setting.classes, rng))
        elif split == "Dirichlet":
            owned.append(dirichlet(y, n, setting.concentration, rng, least=setting.batch))
        else:
            owned.append(np.array_split(rng.permutation(len(y)), n))
    size = np.array([[len(part) for part in parts] for parts in owned])

    def tensor(array: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).view(len(seeds), len(splits), -1).to(images.y.device)

    order = np.stack([np.concatenate(parts) for parts in owned])
    return Clients(images, tensor(order), tensor(size.cumsum(1) - size), tensor(size))


def train(
    timelines: Sequence[Timeline], seed: Tensor, start: Tensor, clients: Clients, test: Images, rate: Tensor, alpha: Tensor,
    name: str, setting: Setting, run: Run,
) -> Tensor:  # fmt: skip
    """Test accuracy (K, C, G, points) of the servers' models along K timelines, for C splits and G step sizes.

    seed: (K,) indices into `clients`; start: (K, P) weights; rate of Adam and server step alpha: (K, C, G).
    """
    net, waves, times = network(setting), in_waves(timelines), points(setting)
    slots = 1 + max(job.slot for wave in waves for job in wave.jobs)
    shown = [np.searchsorted(line.times, times, "right") for line in timelines]  # versions
    K, C, G = rate.shape
    zero = torch.zeros((), device=run.device)
    state: dict[str, Any] = {
        "w": start.view(K, 1, 1, -1).repeat(1, C, G, 1),
        "slots": zero.repeat(K, slots, C, G, net.size),
        "accuracy": zero.repeat(K, C, G, len(times)),
        "generator": run.generator("batches", name),
    }
    for i in run.checkpoint(name, len(waves), state):
        w, slot = state["w"], state["slots"]
        if jobs := waves[i].jobs:
            k, s, client, _ = torch.tensor(jobs, device=run.device).T
            y = slot[k, s]
            m, v = torch.zeros_like(y), torch.zeros_like(y)
            for t in range(jobs[0].steps):
                n = sum(job.steps > t for job in jobs)
                batch = clients.batch(seed[k[:n]], client[:n], setting.batch, state["generator"])
                g = gradient(net, y[:n], batch)
                adam(y[:n], g, m[:n], v[:n], t + 1, rate[k[:n]].unsqueeze(-1))
            slot[k, s] -= y
        seen = []
        for u in waves[i].updates:
            if u.slots:
                weights = torch.tensor(u.weights, device=run.device)
                w[u.timeline] = server_step(
                    w[u.timeline], slot[u.timeline, u.slots], weights, alpha[u.timeline]
                )
            slot[u.timeline, u.begin] = w[u.timeline]
            for point in np.flatnonzero(shown[u.timeline] == u.version):
                seen.append((u.timeline, int(point), w[u.timeline].clone()))
        if seen:
            right = accuracy(net(torch.stack([model for *_, model in seen]), test.x), test.y)
            for (line, at, _), value in zip(seen, right, strict=True):
                state["accuracy"][line, :, :, at] = value
    return state["accuracy"]


def server_step(w: Tensor, reports: Tensor, weights: Tensor, alpha: Tensor) -> Tensor:
    """w <- w - alpha sum_c s(tau_c) / n (w_sent - w_c). w: (..., P), reports: (c, ..., P), weights s / n: (c,), alpha: (...)."""
    return w - alpha.unsqueeze(-1) * torch.einsum("c,c...->...", weights, reports)


def gradient(net: MLP, y: Tensor, batch: Images) -> Tensor:
    """y: (J, C, G, P); the G step sizes see the same images."""
    x, label = batch.x.unsqueeze(2), batch.y.unsqueeze(2)
    return value_and_gradient(lambda y: cross_entropy(net(y, x), label), y)[1]


def network(setting: Setting) -> MLP:
    return MLP((setting.features, setting.hidden, 10))


def points(setting: Setting) -> NDArray[np.float64]:
    """Times at which accuracy is measured."""
    return np.linspace(0, setting.seconds, setting.points + 1)[1:]


def accuracies(
    speeds: str, splits: Sequence[str], seeds: Sequence[str], images: tuple[Images, Images], rate: Tensor, alpha: Tensor,
    setting: Setting, run: Run,
) -> Tensor:  # fmt: skip
    """Accuracy (methods, seeds, C, G, points). rate, alpha: (methods, C, G)."""
    net, M, S = network(setting), len(METHODS), len(seeds)
    timelines = [
        simulate(method, speeds, seed, setting, run) for method, seed in itertools.product(METHODS, seeds)
    ]
    clients = split_data(images[0], seeds, splits, setting, run)
    start = torch.stack([net.initial(generator=run.generator("weights", seed)) for seed in seeds])
    rate, alpha = (v.repeat_interleave(S, 0).to(run.device) for v in (rate, alpha))
    name = f"{speeds} speeds, data {', '.join(splits)}: {S} seeds, {rate.shape[-1]} step sizes"
    seed = torch.arange(S, device=run.device).repeat(M)
    found = train(timelines, seed, start.repeat(M, 1), clients, images[1], rate, alpha, name, setting, run)
    return found.unflatten(0, (M, S))


def choose(
    speeds: Sequence[str], splits: Sequence[str], images: tuple[Images, Images], setting: Setting, run: Run
) -> Tensor:
    """Rate and alpha of every method: those that learn fastest and those that end best on other seeds, (2, methods, 2).

    Fastest: by the mean accuracy of all times; best: of the last. One pair for all these speeds and splits, as it would have to
    be chosen without knowing how the clients differ.
    """
    pairs = torch.tensor(list(itertools.product(setting.rates, setting.mixing)))
    seeds = [f"tuning {seed}" for seed in range(setting.tuning_seeds)]
    rate, alpha = pairs.T.view(2, 1, 1, -1).expand(2, len(METHODS), len(splits), -1)
    tried = torch.stack([accuracies(s, splits, seeds, images, rate, alpha, setting, run) for s in speeds])
    curve = tried.mean((0, 2, 3))  # (methods, pairs, points)
    return torch.stack([pairs[v.mean(-1).argmax(-1).cpu()] for v in (curve, at_the_end(curve))])


def at_the_end(curve: Tensor) -> Tensor:
    """The last eighth."""
    return curve[..., -max(curve.shape[-1] // 8, 1) :]


def measure(setting: Setting, run: Run) -> pd.DataFrame:
    table = run.table()
    images = fashion("pca", setting.train, setting.test, run.device, setting.features)
    chosen = {
        "unlike": choose(("normal", "exponential"), UNLIKE, images, setting, run),
        "alike": choose(("normal",), ("alike",), images, setting, run),
    }
    for data, choices in chosen.items():
        for tuned, pairs in zip(("speed", "accuracy"), choices, strict=True):
            for method, pair in zip(METHODS, pairs, strict=True):
                for name, value in zip(("rate chosen", "alpha chosen"), pair, strict=True):
                    table.add(method, name, x=0, value=value.view(1), tuned=tuned, data=data)
    seeds, x = [f"{seed}" for seed in range(setting.seeds)], points(setting)
    for speeds in SPEEDS:
        splits = (*UNLIKE, "alike") if speeds == "normal" else UNLIKE
        pairs = torch.stack([chosen["alike" if split == "alike" else "unlike"] for split in splits])
        rate, alpha = pairs.permute(3, 2, 0, 1)  # (methods, C, 2)
        found = accuracies(speeds, splits, seeds, images, rate, alpha, setting, run)
        fast, final = found[..., 0, :], at_the_end(found[..., 1, :]).mean(-1)  # (methods, seeds, C, ...)
        share = fast / final.amax(0).unsqueeze(-1)
        for (i, method), (c, split) in itertools.product(enumerate(METHODS), enumerate(splits)):
            where = {"speeds": speeds, "split": split}
            table.add(
                method, "accuracy / best final accuracy", x=x, value=share[i, :, c], tuned="speed", **where
            )
            table.add(method, "final accuracy", x=x[-1], value=final[i, :, c], tuned="accuracy", **where)
        most = waiting("FedAsync", speeds, setting, run)[0]
        for method in (*METHODS, BLIND):
            stale, reports, idle = waiting(method, speeds, setting, run)
            table.add(method, "staleness in updates", x=0, value=stale, speeds=speeds)
            table.add(method, "staleness in reports", x=0, value=reports, speeds=speeds)
            table.add(method, "staleness / that of FedAsync", x=0, value=stale / most, speeds=speeds)
            table.add(method, "idle share", x=0, value=idle, speeds=speeds)
    return table.frame()


def waiting(method: str, speeds: str, setting: Setting, run: Run) -> NDArray[np.float64]:
    """Mean staleness in updates, the same in reports, and the idle share of the clients' time: (3, seeds)."""
    lines = [simulate(method, speeds, f"{seed}", setting, run) for seed in range(setting.timelines)]
    means = [
        [line.staleness().mean(), line.staleness_in_reports().mean(), line.idle(setting.seconds)]
        for line in lines
    ]
    return np.array(means).T
