"""`phase`: behaviour on the two sides of a condition, each side by a test of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, ValidationError, model_validator

from atlas.claims.base import Result, Test, worst
from atlas.errors import AtlasError, unknown

if TYPE_CHECKING:
    import pandas as pd


class Phase(Test):
    """Every side passes its own test (`sides`: name -> parameters of another kind, with `kind`).

    `metric`, `where` and `per` given here are inherited by the sides that do not set them. A control's `where` is
    merged into every side; a control may also replace selection fields of single sides by `sides: {name: {...}}`.
    """

    SELECTION: ClassVar = frozenset({"metric", "where", "sides"})

    kind: Literal["phase"] = "phase"
    metric: str = ""
    sides: dict[str, dict[str, Any]] = Field(min_length=2)

    @model_validator(mode="after")
    def _valid_sides(self) -> Phase:
        self.tests()
        return self

    def tests(self) -> dict[str, Test]:
        """The test of every side. Raises ValueError naming the side."""
        from atlas.claims import KINDS

        made = {}
        for name, side in self.sides.items():
            kind = side.get("kind")
            if kind not in KINDS or kind == "phase":
                raise ValueError(
                    f"sides.{name}: " + str(unknown("claim kind", str(kind), sorted(set(KINDS) - {"phase"})))
                )
            inherited = {
                "metric": self.metric,
                "per": self.per,
                "min_seeds": self.min_seeds,
                "level": self.level,
            }
            merged = {**inherited, **side, "where": {**self.where, **side.get("where", {})}}
            try:
                made[name] = KINDS[kind].model_validate(merged)
            except ValidationError as error:
                first = error.errors()[0]
                key = ".".join(str(part) for part in first["loc"])
                raise ValueError(f"sides.{name}.{key}: {first['msg']}") from None
        return made

    def evaluate(self, table: pd.DataFrame) -> Result:
        return worst({name: test.evaluate(table) for name, test in self.tests().items()})

    def as_control(self, result: Result) -> Result:
        return worst({name: test.as_control(result.groups[name]) for name, test in self.tests().items()})

    def control(self, replace: dict[str, Any]) -> Phase:
        if extra := sorted(set(replace) - self.SELECTION):
            raise AtlasError(
                f"a control may only change {', '.join(sorted(self.SELECTION))}; it changes {', '.join(extra)}"
            )
        sides = dict(self.sides)
        tests = self.tests()
        for name, changes in replace.get("sides", {}).items():
            if name not in sides:
                raise unknown("side", name, sides)
            if extra := sorted(set(changes) - tests[name].SELECTION):
                raise AtlasError(
                    f"sides.{name}: a control may only change the selection; it changes {', '.join(extra)}"
                )
            sides[name] = {
                **sides[name],
                **changes,
                "where": {**sides[name].get("where", {}), **changes.get("where", {})},
            }
        if where := replace.get("where"):
            sides = {
                name: {**side, "where": {**side.get("where", {}), **where}} for name, side in sides.items()
            }
        return self.model_copy(update={"sides": sides, "metric": replace.get("metric", self.metric)})
