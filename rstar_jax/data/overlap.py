"""Which problems of a training set are in a benchmark, or nearly so.

Problems overlap where they share `length` words in a row (n-grams, with 13 as in the analysis of
GPT-3, arXiv 2005.14165, appendix C), where one holds the whole of a shorter benchmark question of
SHORTEST words at least, or where they are the same but for spelling. A word is a run of letters or
a run of digits, in any case. Kept are hashes of the n-grams: a training set has tens of millions.
"""

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rstar_jax.data.problem import Problem

WORD = re.compile(r'[^\W\d_]+|\d+')
SHORTEST = 6  # fewer words are in many questions


class Overlap:
    """Looks for questions of benchmarks in others.

    Args:
      benchmarks: {name: problems}.
      length: words in a row. A question of fewer than half as many overlaps with the same one only.
    """

    def __init__(self, benchmarks: Mapping[str, Iterable[Problem]], length: int):
        self._length = length
        self._known: dict[bytes, str] = {}
        # Of the shorter questions: what they begin with -> in how many words they end.
        self._short: dict[tuple[str, ...], set[int]] = {}
        for name, problems in benchmarks.items():
            for problem in problems:
                self.add(name, problem)

    def add(self, name: str, problem: Problem) -> None:
        """One more problem that others may overlap with."""
        words = _words(problem.question)
        for gram in self._grams(words):
            self._known.setdefault(gram, name)
        if max(SHORTEST, self._length // 2) <= len(words) < self._length:
            self._short.setdefault(tuple(words[:SHORTEST]), set()).add(len(words))

    def find(self, question: str) -> str | None:
        """Returns the name of a benchmark that has the question, or a good part of it; or None."""
        words = _words(question) if self._known else []
        grams = itertools.chain(self._grams(words), self._within(words))
        return next((self._known[gram] for gram in grams if gram in self._known), None)

    def split(self, problems: Sequence[Problem]) -> tuple[list[Problem], dict[int, str]]:
        """Returns the problems that do not overlap, and {index: benchmark} of those that do."""
        kept, found = [], {}
        for problem in problems:
            name = self.find(problem.question)
            if name is None:
                kept.append(problem)
            else:
                found[problem.index] = name
        return kept, found

    def _grams(self, words: Sequence[str]) -> Iterator[bytes]:
        """Hashes of all runs of `length` words; of the whole if shorter, where it has any."""
        last = max(1, len(words) - self._length + 1) if words else 0
        return (_hash(words[i : i + self._length]) for i in range(last))

    def _within(self, words: Sequence[str]) -> Iterator[bytes]:
        """Hashes of the runs of words that begin and are as long as a shorter question."""
        starts = zip(*(words[i:] for i in range(SHORTEST)))
        for i, start in enumerate(starts if self._short else ()):
            for length in self._short.get(start, ()):
                yield _hash(words[i : i + length])


def _words(question: str) -> list[str]:
    return WORD.findall(question.lower())


def _hash(words: Sequence[str]) -> bytes:
    """The same on all hosts."""
    return hashlib.blake2b(' '.join(words).encode(), digest_size=8).digest()
