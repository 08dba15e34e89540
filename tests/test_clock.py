import pytest

from atlas.federated.clock import Clock, Server, Timeline


def test_events_come_in_order_of_time_and_then_of_scheduling() -> None:
    clock: Clock[str] = Clock()
    for delay, name in ((2.0, "c"), (1.0, "a"), (2.0, "d"), (1.0, "b"), (3.5, "e")):
        clock.schedule(delay, name)
    assert [clock.next() for _ in range(3)] == ["a", "b", "c"] and clock.now == 2.0
    clock.schedule(0.0, "now")
    clock.schedule(1.0, "3.0")
    assert list(clock.until(3.0)) == ["d", "now", "3.0"] and clock.now == 3.0
    assert clock.next() == "e" and clock.now == 3.5
    with pytest.raises(IndexError):
        clock.next()


@pytest.mark.parametrize("delay", [-1e-9, float("nan")])
def test_nothing_happens_in_the_past(delay: float) -> None:
    clock: Clock[str] = Clock()
    with pytest.raises(ValueError, match="cannot happen"):
        clock.schedule(delay, "never")


class AtOnce(Server):
    """Merges every report and sends the client back to work, two steps at a time."""

    def report(self, job: int) -> None:
        self.merge([job])
        self.start(self.timeline.jobs[job].client, 2)


class Rounds(Server):
    """Waits for everybody."""

    def report(self, job: int) -> None:
        self.arrived = [*getattr(self, "arrived", []), job]
        if len(self.arrived) == self.timeline.clients:
            self.merge(self.arrived)
            self.arrived = []
            for client in range(self.timeline.clients):
                self.start(client, 2)


def after(server: Server, seconds: float) -> Timeline:
    for client in range(server.timeline.clients):
        server.start(client, 2)
    return server.run(seconds)


def slower_and_slower(client: int, steps: int) -> float:
    """Client 0 takes 1 second a step, client 1 takes 2, ..."""
    return (client + 1.0) * steps


def test_a_server_that_merges_every_report_at_once() -> None:
    """Reports: client 0 at 2, 4, 6, 8; client 1 at 4 (scheduled before client 0's at 4) and 8."""
    line = after(AtOnce(2, slower_and_slower), 8.0)
    assert [(job.client, job.version, job.begin, job.end) for job in line.jobs] == [
        (0, 0, 0, 2), (1, 0, 0, 4), (0, 1, 2, 4), (1, 2, 4, 8), (0, 3, 4, 6), (0, 4, 6, 8), (1, 5, 8, 12), (0, 6, 8, 10),
    ]  # fmt: skip
    assert line.times == [2, 4, 4, 6, 8, 8] and line.merged == [[0], [1], [2], [4], [3], [5]]
    assert line.staleness().tolist() == [0, 1, 1, 0, 2, 1]
    assert line.staleness_in_reports().tolist() == [0, 1, 1, 0, 2, 1]
    assert line.idle(8.0) == 0.0


def test_a_server_that_waits_for_everybody() -> None:
    """Rounds of 4 seconds, in which client 0 waits for two; after 6 seconds 2 of 12 client seconds are idle."""
    line = after(Rounds(2, slower_and_slower), 8.0)
    assert line.times == [4, 8] and line.merged == [[0, 1], [2, 3]]
    assert line.staleness().tolist() == [0, 0, 0, 0]
    assert line.idle(4.0) == line.idle(8.0) == pytest.approx(0.25)
    assert line.idle(6.0) == pytest.approx(2 / 12)


def test_staleness_in_reports_counts_what_the_updates_merged() -> None:
    """A report that has missed one update of two reports."""
    server = AtOnce(3, slower_and_slower)
    for client in range(3):
        server.start(client, 1)
    server.merge([0, 1])
    server.merge([2])
    assert server.timeline.staleness().tolist() == [0, 0, 1]
    assert server.timeline.staleness_in_reports().tolist() == [0, 0, 2]


def test_nothing_merged_yet() -> None:
    line = after(Rounds(2, slower_and_slower), 3.0)
    assert line.times == [] and line.staleness().shape == line.staleness_in_reports().shape == (0,)
