"""The claim kinds: what a paper can claim, and the statistical test that decides it.

Importing this package reads the parameter classes only; numpy, scipy and pandas load when a test runs.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from atlas.claims.base import Result, Test
from atlas.claims.bound import Bound
from atlas.claims.comparison import Comparison
from atlas.claims.equality import Equality
from atlas.claims.linear_rate import LinearRate
from atlas.claims.phase import Phase
from atlas.claims.rate import Rate
from atlas.claims.scaling import Scaling
from atlas.claims.speedup import Speedup

KINDS: dict[str, type[Test]] = {
    "rate": Rate,
    "linear_rate": LinearRate,
    "speedup": Speedup,
    "comparison": Comparison,
    "scaling": Scaling,
    "equality": Equality,
    "bound": Bound,
    "phase": Phase,
}
AnyTest = Annotated[
    Rate | LinearRate | Speedup | Comparison | Scaling | Equality | Bound | Phase,
    Field(discriminator="kind"),
]

__all__ = ["KINDS", "AnyTest", "Result", "Test"]
