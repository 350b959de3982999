"""A problem: what is searched, and what each of its trees carries."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem; a row of a file at the edges (`of`, `to_dict`), this everywhere else.

    Attributes:
      index: its name in its set; None in trees of others that do not tell.
      question: its text.
      answer: the right one, or several of which any is; None where nobody knows.
      source: where it comes from, as its set says.
      synthetic: whether a model wrote it, so that its answer is no ground truth.
      row: all its fields in their order, as files hold them: those above, and whatever else came
        with it, which is written back unchanged.
      sampled_as: the index by which its samples are keyed; None: its own. For searches where it
        has another than in its set; no file has it.
    """

    index: int | None
    question: str
    answer: str | list[str] | None = None
    source: str = ''
    synthetic: bool = False
    row: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    sampled_as: int | None = None

    def __post_init__(self) -> None:
        told = _named(self.row)
        own = {name: getattr(self, name) for name in told}
        changed = {name: value for name, value in own.items() if value != told[name]}
        object.__setattr__(self, 'row', {**self.row, **changed})

    @classmethod
    def of(cls, row: 'Problem | Mapping[str, Any]') -> Self:
        """The problem in a row {index, question, answer, ...}; a Problem as it is."""
        return row if isinstance(row, cls) else cls(**_named(row), row=row)

    def to_dict(self) -> dict[str, Any]:
        """Its row."""
        return dict(self.row)


def _named(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says of the fields that have a name here.

    NuminaMath tells synthetic problems by their source.
    """
    source = str(row.get('source') or '')
    return {
        **{name: row.get(name) for name in ('index', 'question', 'answer')},
        'source': source,
        'synthetic': bool(row.get('synthetic')) or source.startswith('synthetic'),
    }
