"""The one place where test outcomes become a verdict."""

from __future__ import annotations

from typing import Literal

from atlas.claims.base import Result

Verdict = Literal["verified", "refuted", "inconclusive", "undiscriminating"]


def verdict(claim: Result, controls: list[Result]) -> tuple[Verdict, str]:
    """The verdict on a claim and the reason in words.

    A failing claim is refuted whatever its controls do. A passing claim is verified only if every control clearly
    fails the same test: one that passes shows that the test cannot tell, one that is unclear leaves it open.
    """
    if claim.outcome == "fail":
        return "refuted", f"{claim.quantity} is not {claim.criterion}"
    if any(c.outcome == "pass" for c in controls):
        return "undiscriminating", "a control passes the same test"
    if claim.outcome == "unclear":
        return "inconclusive", claim.reason or "the interval straddles the criterion"
    if not controls:
        return "undiscriminating", "there is no control"
    if any(c.outcome == "unclear" for c in controls):
        return "inconclusive", "a control does not clearly fail the test"
    return "verified", f"{claim.quantity} is {claim.criterion}; every control fails"
