"""Which problems of a training set are in a benchmark, or nearly so.

Problems overlap where they share `length` words in a row (n-grams, with 13 as in the analysis of
GPT-3, arXiv 2005.14165, appendix C), or are the same but for spelling. A word is a run of letters
or a run of digits, in any case. Kept are hashes of the n-grams: a training set has tens of
millions.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

WORD = re.compile(r'[^\W\d_]+|\d+')


class Overlap:
    """Looks for questions of benchmarks in others.

    Args:
      benchmarks: {name: problems}.
      length: words in a row.
    """

    def __init__(self, benchmarks: Mapping[str, Iterable[Mapping[str, Any]]], length: int):
        self._length = length
        self._known: dict[bytes, str] = {}
        for name, problems in benchmarks.items():
            for problem in problems:
                self.add(name, problem)

    def add(self, name: str, problem: Mapping[str, Any]) -> None:
        """One more problem that others may overlap with."""
        for gram in self._grams(problem['question']):
            self._known.setdefault(gram, name)

    def find(self, question: str) -> str | None:
        """Returns the name of a benchmark that has the question, or a good part of it; or None."""
        return next((self._known[g] for g in self._grams(question) if g in self._known), None)

    def split(
        self, problems: Sequence[dict[str, Any]]
    ) -> tuple[list[dict[str, Any]], dict[int, str]]:
        """Returns the problems that do not overlap, and {index: benchmark} of those that do."""
        kept, found = [], {}
        for problem in problems:
            name = self.find(problem['question'])
            if name is None:
                kept.append(problem)
            else:
                found[problem['index']] = name
        return kept, found

    def _grams(self, question: str) -> Iterable[bytes]:
        """Hashes of all runs of `length` words, the same on all hosts; of the whole if shorter."""
        words = WORD.findall(question.lower())
        last = max(1, len(words) - self._length + 1)
        runs = (' '.join(words[i : i + self._length]) for i in range(last))
        return (hashlib.blake2b(run.encode(), digest_size=8).digest() for run in runs)
