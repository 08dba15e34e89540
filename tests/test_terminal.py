"""Curves in a terminal."""

import pytest

from atlas.claims import KINDS
from atlas.figures.terminal import plot
from tests.examples import NAN, claim, result


def test_a_rate_falls_from_left_to_right() -> None:
    lines = plot(claim("rate", result("rate")), 80, colour=False).splitlines()
    assert (
        max(map(len, lines)) <= 81
        and "steps T" in lines[-2]
        and "━ measured" in lines[-1]
        and "some_rate" in lines[0]
    )
    dots = [(x, y) for y, line in enumerate(lines) for x, c in enumerate(line) if "\u2801" <= c <= "\u28ff"]
    left = [y for x, y in dots if x < 20]
    right = [y for x, y in dots if x > 60]
    assert max(left) < min(right)


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_with_odd_values(kind: str) -> None:
    assert isinstance(plot(claim(kind, result(kind)), 80, colour=True), str)
    odd = {"x": [0, 1, 2, 10], "mean": [NAN, -1.0, 0.0, 1e300], "low": [], "high": []}
    plot(claim(kind, result(kind, detail=odd)), 80, colour=False)
    assert plot(claim(kind, result(kind, detail={}), controls=0), 80, colour=False) == ""
