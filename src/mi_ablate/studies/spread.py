"""Numbers with a spread over seeds: median and range, with censored values said.

>>> Spread.of([3, Value(40, censored=True), 11])
11 [3, 40+] (n=3)
>>> Spread.of([0.5])
0.5 (n=1)
>>> Spread.of([Value(40, censored=True), 50, 60]), Spread.of([])
(50+ [40+, 60+] (n=3), not run)
>>> coverage(3), coverage(5)
(0.75, 0.9375)

A number that is only known to be at least 40 may be any larger one, so it marks every statistic that this would move.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Value:
    """A number, or the least that it can be."""

    number: int | float
    censored: bool = False
    """Whether it is only known to be at least this: a curve that never fell."""

    @classmethod
    def of(cls, value: "Value | int | float") -> "Value":
        """Return a number as a value."""
        return value if isinstance(value, Value) else cls(float(value))

    @classmethod
    def mean(cls, values: Sequence["Value"]) -> "Value":
        """Return the mean; censored where any of them is."""
        return cls(statistics.fmean(v.number for v in values), any(v.censored for v in values))

    def text(self, form: str = ".3g") -> str:
        """Return it as it is printed: "12", "12.5", "40+"."""
        return f"{self.number:{form}}{'+' if self.censored else ''}"


@dataclass(frozen=True, repr=False)
class Spread:
    """The median of several seeds with the lowest and the highest."""

    values: tuple[Value, ...]

    @classmethod
    def of(cls, values: Iterable["Value | int | float | None"]) -> "Spread":
        """Return the spread of values, None left out."""
        return cls(tuple(sorted((Value.of(v) for v in values if v is not None), key=lambda v: (v.number, v.censored))))

    @property
    def n(self) -> int:
        """How many seeds."""
        return len(self.values)

    @property
    def median(self) -> float:
        """The middle value, or the mean of the middle two; nan where there is none."""
        return statistics.median(v.number for v in self.values) if self.values else math.nan

    @property
    def centre(self) -> Value:
        """The median as a value: a lower bound where a censored value could move it."""
        return self._marked(statistics.median)

    @property
    def low(self) -> float:
        """The lowest."""
        return self.values[0].number if self.values else math.nan

    @property
    def high(self) -> float:
        """The highest known; the truth may lie above where any is censored."""
        return self.values[-1].number if self.values else math.nan

    def text(self, form: str = ".3g", count: bool = True) -> str:
        """Return "median [low, high] (n=seeds)", "not run" where there is none; + marks what is only a lower bound."""
        if not self.values:
            return "not run"
        centre = self.centre.text(form)
        ends = [self._marked(min).text(form), self._marked(max).text(form)]
        inside = "" if ends[0] == ends[1] == centre else f" [{ends[0]}, {ends[1]}]"
        return f"{centre}{inside}" + (f" (n={self.n})" if count else "")

    def _marked(self, statistic: Callable[[Sequence[float]], float]) -> Value:
        """A statistic of the least values, censored where it is larger with the censored ones arbitrarily large."""
        least, most = [v.number for v in self.values], [math.inf if v.censored else v.number for v in self.values]
        return Value(statistic(least), statistic(most) > statistic(least))

    def __repr__(self) -> str:
        return self.text()


def coverage(n: int) -> float:
    """Return the probability that the range of n independent draws holds the distribution's median; 0 for none."""
    return 1 - 2.0 ** (1 - n) if n > 0 else 0.0
