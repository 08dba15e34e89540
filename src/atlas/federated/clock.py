"""Clients of different speeds on a simulated clock: who reports when, how stale the reports are, how long clients wait.

Scheduling apart from learning: a scheduler here decides with speeds alone and leaves a `Timeline`; weights are trained along it
afterwards.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Event = TypeVar("Event")


class Clock(Generic[Event]):
    """Events in the order of their simulated times; at one time, in the order in which they were scheduled."""

    def __init__(self) -> None:
        self.now = 0.0
        self._queue: list[tuple[float, int, Event]] = []
        self._scheduled = 0

    def schedule(self, delay: float, event: Event) -> None:
        """`event` happens `delay` seconds from now."""
        if not delay >= 0:
            raise ValueError(f"an event cannot happen in {delay} seconds")
        heapq.heappush(self._queue, (self.now + delay, self._scheduled, event))
        self._scheduled += 1

    def next(self) -> Event:
        """The next event, to whose time the clock moves on. Raises IndexError if there is none."""
        self.now, _, event = heapq.heappop(self._queue)
        return event

    def until(self, end: float) -> Iterator[Event]:
        """The events up to the time `end`, those included that are scheduled on the way."""
        while self._queue and self._queue[0][0] <= end:
            yield self.next()


@dataclass(frozen=True)
class Job:
    """Local training of one client, from version `version` of the server's model."""

    client: int
    steps: int
    version: int
    begin: float
    end: float


@dataclass
class Timeline:
    """What happened: the jobs in the order of their beginnings; update v makes version v + 1 of the server's model."""

    clients: int
    jobs: list[Job] = field(default_factory=list)
    times: list[float] = field(default_factory=list)  # of the updates
    merged: list[list[int]] = field(
        default_factory=list
    )  # for every update, the jobs whose reports it merges

    def staleness(self) -> NDArray[np.int64]:
        """For every merged report, the number of updates that its job has not seen."""
        return self._missed(np.arange(len(self.merged)))

    def staleness_in_reports(self) -> NDArray[np.int64]:
        """The same, counted in the reports that these updates have merged."""
        return self._missed(np.cumsum([0, *map(len, self.merged)]))

    def _missed(self, count: NDArray[np.int64]) -> NDArray[np.int64]:
        """count: of updates or reports in the first v updates."""
        pairs = [(v, self.jobs[j].version) for v, jobs in enumerate(self.merged) for j in jobs]
        now, then = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        return count[now] - count[then]

    def idle(self, until: float) -> float:
        """Share of the clients' time up to `until` in which they do not train."""
        busy = sum(max(min(job.end, until) - job.begin, 0.0) for job in self.jobs)
        return 1 - busy / (self.clients * until)


class Server:
    """The server's side of a simulation; a method is a subclass that says what happens with a report.

    duration: (client, steps) -> seconds of a job. A timeline has come about when all events up to a time have happened.
    """

    def __init__(self, clients: int, duration: Callable[[int, int], float]) -> None:
        self.clock: Clock[Callable[[], None]] = Clock()
        self.timeline = Timeline(clients)
        self._duration = duration

    def report(self, job: int) -> None:
        """The job of this number is done."""
        raise NotImplementedError

    def start(self, client: int, steps: int) -> None:
        """Send the present model to a client, who reports after `steps` local steps."""
        seconds, now = self._duration(client, steps), self.clock.now
        version, number = len(self.timeline.times), len(self.timeline.jobs)
        self.timeline.jobs.append(Job(client, steps, version, now, now + seconds))
        self.clock.schedule(seconds, lambda: self.report(number))

    def merge(self, jobs: list[int]) -> None:
        """Update the model by the reports of these jobs."""
        self.timeline.times.append(self.clock.now)
        self.timeline.merged.append(list(jobs))

    def run(self, until: float) -> Timeline:
        """Let all events happen up to the time `until`."""
        for happen in self.clock.until(until):
            happen()
        return self.timeline
