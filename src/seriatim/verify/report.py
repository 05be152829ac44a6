"""What `verify` found: a row for each law. Plain data; the command line prints it."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

PASSED, FAILED, LEFT_OUT = "passed", "failed", "left out"


@dataclass(frozen=True)
class Seen:
    """What a check looked at.

    Attributes:
        cases: how many comparisons.
        power: what would have been noticed, and what could go unseen.
    """

    cases: int
    power: str


class Broken(Exception):
    """A law does not hold: where, what was expected and what was seen, as plain values."""

    def __init__(self, where: str, *, expected: Any, seen: Any, **more: Any) -> None:
        super().__init__(where)
        self.difference: dict[str, Any] = {
            "where": where, **more, "expected": expected, "seen": seen
        }  # fmt: skip


class LeftOut(Exception):
    """A law that says nothing about this model or these settings, or cannot be checked here."""


@dataclass(frozen=True)
class Check:
    """One law: what is compared, and what to do where it does not hold."""

    law: str
    compared: str
    fix: str
    run: Callable[[Any], Seen]


@dataclass(frozen=True)
class Row:
    """One law's outcome.

    Attributes:
        law: its short name.
        compared: what was held against what.
        result: "passed", "failed" or "left out".
        cases: how many comparisons; of a failure 0.
        power: what would have been noticed, or why it was left out.
        difference: the first one found, of the smallest cases first; None if there is none.
        fix: what to do about a failure.
    """

    law: str
    compared: str
    result: str
    cases: int = 0
    power: str = ""
    difference: dict[str, Any] | None = None
    fix: str = ""


@dataclass(frozen=True)
class Report:
    """Every law's row for one model, machine and settings.

    Attributes:
        model: what was verified, as `print(model)` says it.
        rows: one for each law.
        seed: what the cases were drawn from; the same seed draws the same.
        left: what a thorough run would add.
    """

    model: str
    seed: int
    rows: list[Row] = field(default_factory=list)
    left: str = ""

    @property
    def ok(self) -> bool:
        """Whether no law is broken."""
        return not self.failures

    @property
    def failures(self) -> list[str]:
        """The laws that are broken."""
        return [row.law for row in self.rows if row.result == FAILED]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return {"ok": self.ok, **asdict(self)}


def row(check: Check, lab: Any) -> Row:
    """Run one check; whatever it raises is a row too, so that one fault hides no other."""
    empty = Row(check.law, check.compared, PASSED)
    try:
        seen = check.run(lab)
    except LeftOut as reason:
        return replace(empty, result=LEFT_OUT, power=str(reason))
    except Broken as broken:
        return replace(empty, result=FAILED, difference=broken.difference, fix=check.fix)
    except Exception as error:
        seen = f"{type(error).__name__}: {error}"
        difference = {"where": "the run itself", "expected": "no error", "seen": seen}
        return replace(empty, result=FAILED, difference=difference, fix=check.fix)
    return replace(empty, cases=seen.cases, power=seen.power)


def rows(checks: list[Check], lab: Any, say: Callable[[str], object]) -> Iterator[Row]:
    for check in checks:
        say(check.law)
        yield row(check, lab)
