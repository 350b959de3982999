"""Packing: everything is stored, nothing sees what is not its own, rows are few."""

import numpy as np
import pytest

from rstar_jax.training import packing


def ids(*values):
    return np.array(values, np.int32)


def seen(laid, place):
    """The tokens that the token at `place` of a layout attends to, in order."""
    return [int(laid.tokens[j]) for j in range(place + 1) if place < laid.end[j]]


def test_layout_stops_sharing_where_it_must():
    sequences = [ids(1, 2, 3, 4), ids(1, 2, 3, 5), ids(1, 2, 3, 4, 6)]
    laid = packing.layout(sequences, [2, 3, 1])
    assert len(laid.tokens) == 13 - 1 - 1  # in sorted order, 0, 2, 1: the least of both limits
    for sequence, places in zip(sequences, laid.places):
        for i, place in enumerate(places):
            assert seen(laid, place) == sequence[: i + 1].tolist()


def test_layout_of_random_tries():
    rng = np.random.default_rng(0)
    for _ in range(50):
        sequences = [
            rng.integers(0, 2, rng.integers(1, 9)).astype(np.int32)
            for _ in range(rng.integers(1, 9))
        ]
        shareable = [int(rng.integers(0, len(s) + 1)) for s in sequences]
        whole = packing.layout(sequences, [len(s) for s in sequences])
        for laid in (packing.layout(sequences, shareable), whole):
            for sequence, places in zip(sequences, laid.places):
                assert laid.positions[places].tolist() == list(range(len(sequence)))
                for i, place in enumerate(places):
                    assert seen(laid, place) == sequence[: i + 1].tolist()
        prefixes = {tuple(s[: i + 1]) for s in sequences for i in range(len(s))}
        assert len(whole.tokens) == len(prefixes)


def test_batches_hold_every_example_once_in_an_order_of_the_seed():
    counts = [1, 3, 2, 8, 1, 1, 5, 2]
    first = packing.batches(counts, 4, seed=0, epoch=0)
    assert sorted(np.concatenate(first).tolist()) == list(range(8))
    assert all(sum(counts[i] for i in part[:-1]) < 4 for part in first)
    again = packing.batches(counts, 4, seed=0, epoch=0)
    assert [p.tolist() for p in again] == [p.tolist() for p in first]
    for seed, epoch in ((0, 1), (1, 0)):
        other = packing.batches(counts, 4, seed, epoch)
        assert [p.tolist() for p in other] != [p.tolist() for p in first]
    assert [len(p) for p in packing.batches([1] * 10, 4, 0, 0)] == [4, 4, 2]
    assert packing.batches([], 4, 0, 0)[0].size == 0


@pytest.mark.parametrize('multiple', [1, 4])
def test_plan_places_every_item_once_within_its_row(multiple):
    rng = np.random.default_rng(1)
    sizes = [*rng.integers(20, 600, 60).tolist(), 3000]
    pairs = [1] * len(sizes)
    lengths = packing.row_lengths(2048, 4096)
    micros = packing.plan(sizes, pairs, lengths, 4096 * multiple, multiple)
    members = [i for micro in micros for row in micro.members for i in row]
    assert sorted(members) == list(range(61))
    for micro in micros:
        assert micro.rows % multiple == 0 and len(micro.members) <= micro.rows
        assert micro.rows * micro.length <= 4096 * multiple
        for row in micro.members:
            assert sum(sizes[i] for i in row) <= micro.length
            assert sum(pairs[i] for i in row) <= packing.slots(micro.length)
    padded = sum(micro.rows * micro.length for micro in micros)
    if multiple == 1:
        assert padded < 1.15 * sum(sizes)


@pytest.mark.parametrize(('count', 'size', 'lengths'), [(40, 4, [128, 256]), (32, 8, [256, 512])])
def test_a_row_has_no_more_pairs_than_places_for_them(count, size, lengths):
    micros = packing.plan([size] * count, [1] * count, lengths, 1024)
    rows = [(len(row), packing.slots(micro.length)) for micro in micros for row in micro.members]
    assert sum(pairs for pairs, _ in rows) == count
    assert all(pairs <= room < count for pairs, room in rows)


def test_short_examples_are_not_padded_to_the_longest():
    lengths = packing.row_lengths(4096, 4096)
    micros = packing.plan([60, 50, 40], [0] * 3, lengths, 4096)
    assert [(m.rows, m.length) for m in micros] == [(2, 128)]
    assert packing.row_lengths(100, 200) == [100, 200]
    assert packing.row_lengths(1024, 2048) == [128, 256, 512, 640, 768, 896, 1024, 2048]
    assert packing.row_lengths(100, 200, one_size=True) == [200]


def test_only_an_item_that_needs_it_makes_a_micro_batch_larger_than_its_budget():
    lengths = packing.row_lengths(2048, 4096)

    def shapes(sizes, budget, lengths=lengths):
        return [(m.rows, m.length) for m in packing.plan(sizes, [1] * 3, lengths, budget)]

    assert shapes([1300] * 3, 4096) == [(1, 4096)]  # the least padding
    assert shapes([1300] * 3, 2048) == [(1, 1536)] * 3
    assert shapes([3000, 900, 1300], 2048) == [(1, 1536), (1, 4096)]
    assert shapes([1300] * 3, 2048, [4096]) == [(1, 4096)]


def test_gsm8k_like_steps_compile_few_shapes():
    rng = np.random.default_rng(2)
    lengths = packing.row_lengths(4096, 4096)
    shapes, places, tokens = set(), 0, 0
    for _ in range(50):
        sizes = np.clip(rng.lognormal(5.4, 0.35, 128), 100, 4096).astype(int).tolist()
        for micro in packing.plan(sizes, [0] * 128, lengths, 4096):
            shapes.add((micro.rows, micro.length))
            places += micro.rows * micro.length
        tokens += sum(sizes)
    assert len(shapes) <= 10
    assert tokens / places > 0.96


@pytest.mark.parametrize(
    ('count', 'length', 'share'), [(4, 1024, 0.92), (16, 1024, 0.95), (16, 2048, 0.95)]
)
def test_a_few_examples_leave_few_places_empty(count, length, share):
    rng = np.random.default_rng(2)
    lengths = packing.row_lengths(length, length)
    places = tokens = 0
    for _ in range(50):
        sizes = np.clip(rng.lognormal(5.4, 0.35, count), 100, length).astype(int).tolist()
        micros = packing.plan(sizes, [0] * count, lengths, length)
        places += sum(micro.rows * micro.length for micro in micros)
        tokens += sum(sizes)
    assert tokens / places > share


def test_fill_writes_fields_and_pairs_at_their_places():
    field = {'targets': ids(0, 5, 6), 'weights': np.array([0, 1, 1], np.float32)}
    learnt = packing.Example((ids(4, 5, 6),), (1,), (field,))
    paired = packing.Example(
        (ids(1, 2), ids(1, 3)),
        (2, 2),
        pairs=np.array([[0, 1]], np.int32),
        pair_weights=np.array([0.25], np.float32),
    )
    items = [(e, packing.layout(e.sequences, e.shareable)) for e in (learnt, paired)]
    micro = packing.Micro(2, 8, [[0, 1]])
    batch = packing.fill(micro, [items[0], items[1]], {})
    assert batch['tokens'].tolist() == [[4, 5, 6, 1, 2, 3, 0, 0], [0] * 8]
    assert batch['positions'].tolist()[0] == [0, 1, 2, 0, 1, 1, 0, 0]
    assert batch['end'].tolist()[0] == [3, 3, 3, 6, 5, 6, 0, 0]
    assert (batch['chosen'][0, 0], batch['rejected'][0, 0]) == (4, 5)
    assert batch['pair_weights'].sum() == 0.25
    micro = packing.Micro(1, 4, [[0]])
    batch = packing.fill(micro, items[:1], {'targets': np.int32, 'weights': np.float32})
    assert batch['targets'].tolist() == [[0, 5, 6, 0]]
    assert batch['weights'].tolist() == [[0, 1, 1, 0]]
    assert 'chosen' not in batch
