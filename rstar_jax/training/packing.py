"""Packing: examples of many lengths into few rows of few sizes, shared prefixes only once.

    examples --batches--> the examples of each optimiser step (an order fixed by the seed)
             --merge----> examples of a step that begin alike are laid out together
             --plan-----> micro batches [R, T] with few different R and T, first fit
             --fill-----> arrays

Sequences with common beginnings form a trie. Its tokens are stored depth first, and each token
carries `end`, the place behind the last token that continues it. So token i may look at token j
exactly if j <= i < end[j]: one integer a token says which sequences a token belongs to, for plain
rows (then `end` is the end of the segment and serves as its id) as well as for any tree of shared
prefixes. Every token stands at the position that it has in its own sequence, so the network's
results are those of the sequences run one by one.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

SMALLEST_ROW = 128
MERGED_TOKENS = 1024  # larger layouts pack badly
MERGED_PAIRS = 16
MIN_SHARED = 16  # fewer common tokens are not worth binding two examples together
# Row length that would double the cost of a token: blocks of attention in which no token sees any
# are left out (attention.packed), but not where those of another row do.
ATTENTION_LENGTH = 32768
# What a micro batch costs each device besides, in tokens: reading all weights, adding to all
# gradients.
MICRO_TOKENS = 128


@dataclasses.dataclass(frozen=True)
class Example:
    """Sequences that belong together, and what is learnt from them.

    Attributes:
      sequences: i32[S] arrays, prompt and continuation each.
      shareable: for each sequence, how many leading tokens may be stored once for several.
      fields: for each sequence, name -> array [S] of what its tokens are to learn.
      pairs: i32[k, 2], the indices of (preferred, rejected) sequences.
      pair_weights: f32[k].
      count: what it counts towards the batch size.
    """

    sequences: tuple[np.ndarray, ...]
    shareable: tuple[int, ...]
    fields: tuple[dict[str, np.ndarray], ...] = ()
    pairs: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 2), np.int32))
    pair_weights: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))
    count: int = 1

    @property
    def weight(self) -> float:
        """Sum of the weights of what is learnt."""
        learnt = sum(float(field['weights'].sum()) for field in self.fields)
        return learnt + float(self.pair_weights.sum())

    @property
    def alone(self) -> int:
        """Tokens that this example would cost with every sequence run by itself."""
        if len(self.pairs):
            return int(sum(len(self.sequences[i]) for i in self.pairs.ravel()))
        return sum(map(len, self.sequences))


@dataclasses.dataclass(frozen=True)
class Layout:
    """A trie of sequences, depth first.

    Attributes:
      tokens, positions, end: i32[m].
      places: for each sequence, i32[S]: where each of its tokens is stored.
    """

    tokens: np.ndarray
    positions: np.ndarray
    end: np.ndarray
    places: list[np.ndarray]


def common(a: np.ndarray, b: np.ndarray) -> int:
    """Number of leading tokens that two sequences have in common."""
    size = min(len(a), len(b))
    differ = np.nonzero(a[:size] != b[:size])[0]
    return int(differ[0]) if len(differ) else size


def layout(sequences, shareable) -> Layout:
    """Stores sequences depth first, the first `shareable` tokens of each only once."""
    order = sorted(range(len(sequences)), key=lambda i: sequences[i].tolist())
    tokens, positions, total = [], [], 0
    end = np.zeros(sum(map(len, sequences)), np.int32)
    places: list[np.ndarray] = [np.zeros(0, np.int32)] * len(sequences)
    path, before, limit = np.zeros(0, np.int32), np.zeros(0, np.int32), 0
    for i in order:
        sequence = sequences[i]
        kept = min(common(before, sequence), shareable[i], limit)
        end[path[kept:]] = total
        new = np.arange(total, total + len(sequence) - kept, dtype=np.int32)
        path = places[i] = np.concatenate([path[:kept], new])
        tokens.append(sequence[kept:])
        positions.append(np.arange(kept, len(sequence), dtype=np.int32))
        total += len(new)
        before, limit = sequence, shareable[i]
    end[path] = total
    stored = [np.concatenate(parts).astype(np.int32) for parts in (tokens, positions)]
    return Layout(stored[0], stored[1], end[:total], places)


def batches(counts: list[int], batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Cuts a shuffled epoch into the examples of each step; the last step may be smaller.

    counts: what each example counts towards `batch_size`.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(counts))
    before = np.cumsum([0, *(counts[i] for i in order)])[:-1]
    cuts = np.nonzero(np.diff(before // batch_size))[0] + 1
    return np.split(order, cuts)


def merge(examples: list[Example], length: int) -> list[tuple[Example, Layout]]:
    """Lays examples that begin alike out together, so that their common prefix is stored once."""
    ready: list[tuple[Example, Layout]] = []
    for example in sorted(examples, key=lambda e: e.sequences[0].tolist()):
        alone = layout(example.sequences, example.shareable)
        if ready:
            both = joined(ready[-1][0], example)
            together = layout(both.sequences, both.shareable)
            size = len(together.tokens)
            saved = len(ready[-1][1].tokens) + len(alone.tokens) - size
            fits = size <= min(length, MERGED_TOKENS) and len(both.pairs) <= MERGED_PAIRS
            if fits and saved >= MIN_SHARED:
                ready[-1] = both, together
                continue
        ready.append((example, alone))
    return ready


def joined(a: Example, b: Example) -> Example:
    """One example of two."""
    return Example(
        a.sequences + b.sequences,
        a.shareable + b.shareable,
        a.fields + b.fields,
        np.concatenate([a.pairs, b.pairs + len(a.sequences)]).astype(np.int32),
        np.concatenate([a.pair_weights, b.pair_weights]),
        a.count + b.count,
    )


def row_lengths(length: int, longest: int, one_size: bool = False) -> list[int]:
    """The row lengths in use: `length` itself, `longest`, and shorter ones, which cost less.

    Powers of two from SMALLEST_ROW on, and between half of `length` and `length`, where steps of
    few examples end, eighths of it: of 200 tokens each, four leave a fifth of a row of 1,024 empty.

    one_size: the longest alone: fewer shapes to compile, and more padding.
    """
    if one_size:
        return [max(length, longest)]
    powers = (SMALLEST_ROW << i for i in range(32))
    eighth = max(1, length // 8 // SMALLEST_ROW) * SMALLEST_ROW
    between = (size for size in range(eighth, length, eighth) if size > length // 2)
    return sorted(
        {*(size for size in powers if size < length), *between, length, max(length, longest)}
    )


def slots(row: int) -> int:
    """Pairs that a row of that length has room for."""
    return max(MERGED_PAIRS, row // 16)


@dataclasses.dataclass(frozen=True)
class Micro:
    """One micro batch: its shape, and the items of each row (the last rows may be empty)."""

    rows: int
    length: int
    members: list[list[int]]

    @property
    def places(self) -> int:
        """Of tokens, padding included."""
        return self.rows * self.length

    @property
    def cost(self) -> float:
        """In tokens of the dense layers, apart from MICRO_TOKENS."""
        return self.places * (1 + self.length / ATTENTION_LENGTH)


def plan(
    sizes: list[int], pairs: list[int], lengths: list[int], budget: int, multiple: int = 1
) -> list[Micro]:
    """Chooses the micro batches of a step: the row length of least cost, first fit decreasing.

    An item longer than the chosen row length gets a longer row, which shorter ones then fill up.

    Args:
      sizes: tokens of each item.
      pairs: pairs of each item.
      lengths: the row lengths to choose from, ascending; the last holds any item.
      budget: tokens of a micro batch; it has more only where one item needs a longer row.
      multiple: every micro batch has a multiple of so many rows (devices that share the batch).
    """
    rows = [row for row in lengths if row * multiple <= budget] or lengths
    plans = (_plan(sizes, pairs, lengths, row, budget, multiple) for row in rows)
    besides = MICRO_TOKENS * multiple
    return min(plans, key=lambda micros: sum(micro.cost + besides for micro in micros))


def _plan(sizes, pairs, lengths, row, budget, multiple) -> list[Micro]:
    open_rows: list[list] = []  # [length, tokens left, pairs left, members]
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        for candidate in open_rows:
            if candidate[1] >= sizes[i] and candidate[2] >= pairs[i]:
                break
        else:
            size = next(n for n in lengths if n >= max(row, sizes[i]))
            candidate = [size, size, slots(size), []]
            open_rows.append(candidate)
        candidate[1] -= sizes[i]
        candidate[2] -= pairs[i]
        candidate[3].append(i)
    micros = []
    for size in lengths:
        rows = sorted((r for r in open_rows if r[0] == size), key=lambda r: r[1])
        most = max(1, budget // size // multiple)
        most = multiple * 2 ** (most.bit_length() - 1)
        while rows:
            count = multiple
            while count < min(most, len(rows)):
                count *= 2
            # Rather one micro batch more than many empty rows, where one is not all.
            if micros and count > multiple and (count - len(rows)) * size > MICRO_TOKENS * multiple:
                count //= 2
            part, rows = rows[:count], rows[count:]
            # What a row holds may fit into a shorter one.
            fits = (
                n
                for n in lengths
                if all(size - r[1] <= n and slots(size) - r[2] <= slots(n) for r in part)
            )
            micros.append(Micro(count, next(fits), [r[3] for r in part]))
    return micros


def fill(micro: Micro, items: list[tuple[Example, Layout]], fields) -> dict[str, np.ndarray]:
    """Writes one micro batch.

    Returns:
      tokens, positions, end: i32[R, T]; padding has end 0, so that nothing looks at it. Then the
      `fields` (name -> dtype) as [R, T], zero where nothing is to be learnt; and, where examples
      have pairs, chosen and rejected i32[R, P], the places of the last tokens, with pair_weights
      f32[R, P], zero in unused slots.
    """
    shape = micro.rows, micro.length
    batch = {name: np.zeros(shape, np.int32) for name in ('tokens', 'positions', 'end')}
    batch |= {name: np.zeros(shape, dtype) for name, dtype in fields.items()}
    paired = any(len(example.pairs) for example, _ in items)
    if paired:
        shape = micro.rows, slots(micro.length)
        batch |= {name: np.zeros(shape, np.int32) for name in ('chosen', 'rejected')}
        batch['pair_weights'] = np.zeros(shape, np.float32)
    for row, members in enumerate(micro.members):
        start = used = 0
        for i in members:
            example, laid = items[i]
            stop = start + len(laid.tokens)
            batch['tokens'][row, start:stop] = laid.tokens
            batch['positions'][row, start:stop] = laid.positions
            batch['end'][row, start:stop] = laid.end + start
            for places, values in zip(laid.places, example.fields):
                for name in fields:
                    learn = np.nonzero(values[name])[0]
                    batch[name][row, start + places[learn]] = values[name][learn]
            if paired:
                last = np.array([p[-1] for p in laid.places]) + start
                room = slice(used, used + len(example.pairs))
                batch['chosen'][row, room] = last[example.pairs[:, 0]]
                batch['rejected'][row, room] = last[example.pairs[:, 1]]
                batch['pair_weights'][row, room] = example.pair_weights
                used += len(example.pairs)
            start = stop
    return batch


class Micros:
    """The micro batches of one step.

    Attributes:
      batches: what `fill` makes, one for each.
      tokens: of all of them.
      places: of tokens, padding included.
      alone: tokens, had every sequence been run by itself.
      weight: sum of the weights of all that is learnt.
    """

    def __init__(self, encoded, indices: Sequence[int], settings, mesh):
        """encoded, indices: a corpus.Encoded, and which of it are learnt in the step."""
        chosen = encoded.take(indices)
        items = merge(chosen, encoded.length)
        sizes = [len(laid.tokens) for _, laid in items]
        pairs = [len(example.pairs) for example, _ in items]
        lengths = row_lengths(encoded.length, encoded.row, settings.one_size)
        multiple = mesh.shape['data'] * mesh.shape['fsdp']
        budget = settings.micro_batch * encoded.length * multiple
        micros = plan(sizes, pairs, lengths, budget, multiple)
        self.batches = [fill(micro, items, encoded.fields) for micro in micros]
        self.tokens = sum(sizes)
        self.places = sum(micro.places for micro in micros)
        self.alone = sum(example.alone for example in chosen)
        self.weight = float(sum(example.weight for example in chosen))


def order(encoded, indices: Sequence[int], settings) -> list[tuple[int, np.ndarray]]:
    """(epoch, examples) of every step; arguments as of `Micros`."""
    counts = [encoded.counts[i] for i in indices]
    indices = np.asarray(indices, np.int64)
    return [
        (epoch, indices[part])
        for epoch in range(settings.epochs if counts else 0)
        for part in batches(counts, settings.batch_size, settings.seed, epoch)
    ]
