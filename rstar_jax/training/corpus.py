"""The examples of a training: an index of all, and the tokens of those that are asked for."""

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from rstar_jax.training import packing
from rstar_jax.training.packing import Example

Tell = Callable[[int, int], None]
READ = 1024  # examples (groups of pairs) that are tokenised at once in the first pass


class Encoded:
    """The examples of a training: an index of all, and the tokens of those that are asked for.

    Tokenised are, after a first pass over all, the examples of one step at a time: what stays in
    memory of each is a few hundred bytes.

    Attributes:
      questions: the question of each example (a reward model's: in the SFT prompt), to hold out
        whole problems.
      counts: what each example counts towards the batch size.
      sizes: tokens that each example is stored in; of a pair they may be more than `length`.
      digests: of the arrays of each example.
      dropped: number of examples (pairs) with a sequence of more than `length` tokens.
      fields: the per-token fields that packing.fill shall write.
      row: the longest row that is needed, tokens.
    """

    def __init__(
        self,
        fields: dict[str, Any],
        length: int,
        row: int | None = None,
        encode: Callable[[list], list[Example]] = list,
    ):
        """encode: makes examples of what `add` is told to keep of each."""
        self.questions: list[str] = []
        self.counts: list[int] = []
        self.sizes: list[int] = []
        self.digests: list[bytes] = []
        self.dropped = 0
        self.fields = fields
        self.length = length
        self.row = row or length
        self._kept: list[Any] = []
        self._encode = encode

    def __len__(self) -> int:
        return len(self.counts)

    def add(
        self, question: str, example: Example, kept: Any = None, size: int | None = None
    ) -> None:
        """kept: what `encode` makes the example of; None: the example itself.

        size: as of `sizes`, where it is known.
        """
        self.questions.append(sys.intern(question))
        self.counts.append(example.count)
        self.sizes.append(size_of(example) if size is None else size)
        self.digests.append(_digest(example))
        self._kept.append(example if kept is None else kept)

    def take(self, indices: Iterable[int] | None = None) -> list[Example]:
        """The examples of these indices; None: all of them."""
        chosen = self._kept if indices is None else [self._kept[i] for i in indices]
        return self._encode(chosen)


def _digest(example: Example) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for array in (*example.sequences, example.pairs, example.pair_weights):
        digest.update(np.ascontiguousarray(array).tobytes())
    for field in example.fields:
        digest.update(field['targets'].tobytes())
    return digest.digest()


class Source:
    """Examples that can be read at any place, again and again: stored ones stay on disk."""

    def __init__(self, examples: Iterable[dict[str, Any]], tell: Tell | None = None):
        """tell: called with (examples looked at, their number), as the first pass goes on."""
        self._examples = examples if isinstance(examples, Sequence) else list(examples)
        self._tell = tell or (lambda done, of: None)

    def read(self, places: Sequence[int]) -> list[dict[str, Any]]:
        if hasattr(self._examples, 'read'):
            return self._examples.read(places)
        return [self._examples[place] for place in places]

    def parts(self, count: int | None = None) -> Iterator[range]:
        """The places of all (or numbers below `count`), READ at a time, and tells how far it is."""
        count = len(self._examples) if count is None else count
        for start in range(0, count, READ):
            self._tell(start, count)
            yield range(start, min(start + READ, count))
        self._tell(count, count)


def size_of(example: Example) -> int:
    return len(packing.layout(example.sequences, example.shareable).tokens)


def hold_out(
    encoded: Encoded, share: float, seed: int, most: int | None = None
) -> tuple[list[int], list[int]]:
    """Splits by question; returns the indices (for training, held out).

    At least one question is held out where `share` > 0 and there are two of them; at most `most`.
    """
    questions = sorted(set(encoded.questions))
    count = min(len(questions) - 1, max(1, round(share * len(questions)))) if share else 0
    count = count if most is None else min(count, most)
    order = np.random.default_rng([seed, len(questions)]).permutation(len(questions))
    held = {questions[i] for i in order[: max(0, count)]}
    both: tuple[list[int], list[int]] = ([], [])
    for i, question in enumerate(encoded.questions):
        both[question in held].append(i)
    return both
