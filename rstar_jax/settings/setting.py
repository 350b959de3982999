"""What one setting is: its name, default, range and meaning, and which stages it binds."""

import dataclasses
import math
import operator
from typing import Any

WHOLE_MOST = 2**31 - 1  # of a whole number: what devices count with
# What is said of a value of another kind than the default.
_NEEDED = {
    bool: 'needs True or False',
    int: 'needs a whole number',
    float: 'needs a number',
    str: 'needs a text',
    tuple: 'needs a list',
}
_TAKEN: dict[type, tuple[type, ...]] = {float: (int, float), tuple: (tuple, list)}


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a setting may be; of a list, each of its items."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def refuses(self, value: float) -> str:
        """What a number would have to be ('needs at least 1'); '' where it may be that."""
        for words, holds, limit in (
            ('at least', operator.ge, self.least),
            ('more than', operator.gt, self.above),
            ('at most', operator.le, self.most),
            ('less than', operator.lt, self.below),
        ):
            if limit is not None and not holds(value, limit):
                return f'needs {words} {limit:.10g}'
        if isinstance(value, int) and self.most is None and value > WHOLE_MOST:
            return f'needs at most {WHOLE_MOST}'
        return ''

    def __str__(self) -> str:
        """As an interval: '[0, 1)'."""
        low = '-inf' if self.least is None else f'{self.least:.10g}'
        low = low if self.above is None else f'{self.above:.10g}'
        high = 'inf' if self.most is None else f'{self.most:.10g}'
        high = high if self.below is None else f'{self.below:.10g}'
        return (
            f'{"(" if self.least is None else "["}{low}, {high}{")" if self.most is None else "]"}'
        )


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
      name: dotted, 'search.rollouts'.
      default: its value where nothing sets it; its type is the type of all its values.
      allowed: the range of a number, or the texts that there are; None for any.
      meaning: for --help and the reference.
      binds: the stages that have begun with it and go on with no other value.
      grows: of these, those that go on where it is raised, or names more.
      of_run: no round can have its own.
    """

    name: str
    default: Any
    allowed: Range | tuple[str, ...] | None
    meaning: str
    binds: tuple[str, ...] | None = None
    grows: tuple[str, ...] = ()
    of_run: bool = False

    @property
    def choices(self) -> tuple[str, ...]:
        """The texts that it may be; none where it may be any, or is no text."""
        return self.allowed if isinstance(self.allowed, tuple) else ()

    def refuses(self, value: Any) -> str:
        """What a value of the right kind would have to be; '' where it may be that."""
        if self.choices:
            known = ', '.join(choice or 'nothing' for choice in self.choices)
            return '' if value in self.choices else f'needs one of {known}'
        if isinstance(self.allowed, Range):
            for number in value if isinstance(value, tuple | list) else (value,):
                if refused := self.allowed.refuses(number):
                    return refused
        return ''

    def wrong(self, value: Any) -> str:
        """The same of any value: one of another kind, or no finite number, is refused as well."""
        kind = type(self.default)
        # The sections of a schedule take any type, and all sections take None.
        if not isinstance(value, _TAKEN.get(kind, kind)):
            return _NEEDED[kind]
        if kind is tuple and not all(isinstance(item, int) for item in value):
            return 'needs whole numbers'
        if isinstance(value, float) and not math.isfinite(value):
            return 'needs a finite number'
        return self.refuses(value)
