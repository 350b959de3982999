"""The same trees by all compiled sizes and numbers of devices, but for what rounding flips.

Products of other shapes are rounded otherwise. So now and then a token's coin falls to the other
side, and from there on that tree is another one. Every such flip must be shown to be rounding: by a
plain forward pass, the coin lies on the edge.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rstar_jax import parallel, search
from rstar_jax.data.problem import Problem
from rstar_jax.search import begin
from rstar_jax.search.engine import Engine, sampling
from rstar_jax.steps import marks
from tests.search import favoured

CONFIG = search.Config(
    rollouts=4,
    candidates=4,
    max_depth=3,
    error_threshold=3,
    step_tokens=12,
    chunk=4,
)
PROBLEMS = [
    Problem(i, f'{name} has {i} {things}.', '3')
    for i, (name, things) in enumerate(
        (name, things)
        for name in ('Tom', 'Anna', 'Finn', 'Eva')
        for things in ('apples', 'boxes', 'cards', 'books', 'eggs', 'pens', 'shells', 'stones')
    )
]
# (devices, trees in flight on each, slots on each): 8, 32 and 32 trees at once.
SIZES = [(1, 8, 4), (1, 32, 6), (4, 8, 2)]
# How far a coin may be from the edge. Logits of this model by the engine and by a plain pass were
# up to 8e-6 apart; errors of that size, of opposite signs, move an edge by up to half of it.
EDGE = 1e-5
LENGTH = 192


@dataclasses.dataclass
class Run:
    """A search's records, and what was drawn: {(tree, node's tag, candidate): (path, tokens)}."""

    records: dict
    drawn: dict


@dataclasses.dataclass
class Flip:
    """Two draws by the same coins in which another token was drawn after the same ones."""

    tree: tuple
    tag: str
    candidate: int
    before: list[int]
    position: int
    tokens: tuple[int, int]


@pytest.fixture(scope='module')
def workers():
    with search.Workers.start(CONFIG) as started:
        yield started


@pytest.fixture(scope='module')
def policy():
    return favoured.policy(scale=2, least=0.1, most=0.3)


@pytest.fixture(scope='module')
def first(policy, workers):
    return grow(policy, workers, SIZES[0])


def grow(policy, workers, size) -> Run:
    count, trees, slots = size
    drawn = {}

    class Watched(Engine):
        def expand(self, row, tree):
            path = [token for i in tree.path for token in tree.nodes[i].tokens]
            self.asked = {**getattr(self, 'asked', {}), row: (tree.key, tree.cursor.tag, path)}
            super().expand(row, tree)

        def collect(self, running):
            found = super().collect(running)
            for ended in found:
                key, tag, path = self.asked[ended.row]
                end = list(policy.config.eos_ids[:1]) if ended.kind == marks.EOS else []
                if ended.text is not None:
                    drawn[key, tag, ended.candidate] = path, ended.tokens + end
            return found

    config = dataclasses.replace(CONFIG, trees_in_flight=trees, slots=slots)
    mesh = parallel.local_mesh(devices=jax.devices()[:count])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(begin, 'Engine', Watched)
        found = search.run(
            PROBLEMS, policy, config=config, share=search.Share(workers=workers, mesh=mesh)
        )
        records = {r.key: r for r in found}
    return Run(records, drawn)


def flips(one: Run, other: Run) -> tuple[list[Flip], int]:
    """The flips between two runs, and how many tokens both drew by the same coins and paths."""
    found, tokens = [], 0
    for place in one.drawn.keys() & other.drawn.keys():
        (path, ours), (other_path, theirs) = one.drawn[place], other.drawn[place]
        if path != other_path:
            continue  # behind an earlier flip
        same = [a == b for a, b in zip(ours, theirs, strict=False)]
        at = same.index(False) if False in same else len(same)
        tokens += min(at + 1, len(same))
        if at < len(same):
            before = [*path, *ours[:at]]
            found.append(Flip(*place, before, at, (ours[at], theirs[at])))
    return found, tokens


def distance(policy, flip: Flip) -> float:
    """How far, at most, the coins of a flip lie on the wrong side of a token that was drawn."""
    tokens = np.zeros((1, LENGTH), np.int32)
    tokens[0, : len(flip.before)] = flip.before
    logits = policy.logits(tokens, np.array([len(flip.before)]))[0, len(flip.before) - 1]
    logits = np.asarray(logits, np.float64)[: len(policy.tokenizer)]
    weights = np.exp((logits - logits.max()) / CONFIG.temperature)
    weights = np.pad(weights, (0, -len(weights) % sampling.BLOCK)).reshape(-1, sampling.BLOCK)
    key = sampling.key_of(0, *flip.tree, flip.tag, flip.candidate)
    coins = np.asarray(sampling.uniforms(key[None], jnp.array([flip.position])))[0]
    inner = sampling.BLOCK.bit_length() - 1
    wrong = []
    for token in flip.tokens:
        block, inside = divmod(token, sampling.BLOCK)
        wrong += halving(weights.sum(axis=1), coins[inner:], block)
        wrong += halving(weights[block], coins, inside)
    return max(wrong)


def halving(weights: np.ndarray, coins: np.ndarray, index: int) -> list[float]:
    """How far each coin on the way to `index` lies on the wrong side; negative on the right one."""
    weights = np.pad(weights, (0, (1 << (len(weights) - 1).bit_length()) - len(weights)))
    found = []
    for i in range(len(weights).bit_length() - 1):
        group = weights[index % 2**i :: 2**i]
        edge = group[::2].sum() / group.sum()
        second = index >> i & 1
        found.append(edge - coins[i] if second else coins[i] - edge)
    return found


def parting(one, other) -> str | None:
    """The tag of the node whose children are the first that differ; None for equal trees."""
    for record, their in ((one, other), (other, one)):
        for node, parent in enumerate(record.parent.tolist()):
            same = node < len(their.parent) and their.parent[node] == parent
            if not same or their.tokens[node] != record.tokens[node]:
                return record.tags()[parent]
    return None


def test_sizes_and_devices_change_nothing_but_by_rounding(policy, workers, first):
    runs = [first, *(grow(policy, workers, size) for size in SIZES[1:])]
    for size, run in zip(SIZES[1:], runs[1:], strict=True):
        found, tokens = flips(runs[0], run)
        for flip in found:
            print(f'{SIZES[0]} and {size}: {flip}, {distance(policy, flip):.1e} from the edge')
        assert all(distance(policy, flip) < EDGE for flip in found)
        assert tokens > 2000
        assert len(found) < 1e-4 * tokens
        print(f'{SIZES[0]} and {size}: {len(found)} of {tokens} tokens flipped')
        explained = {(flip.tree, flip.tag) for flip in found}
        for key, record in runs[0].records.items():
            other = run.records[key]
            tag = parting(record, other)
            assert tag is None or (key, tag) in explained, (key, tag)
            if tag is None:
                np.testing.assert_array_equal(record.visits, other.visits)
                np.testing.assert_array_equal(record.value_sum, other.value_sum)


def test_what_is_no_rounding_is_told_from_it(policy, workers, first):
    """A thousand times the rounding error flips tokens, and they are as far from their edges."""
    weight = np.array(policy.params['embed']['weight'])
    noise = np.random.default_rng(0).standard_normal(weight.shape)
    worse = favoured.with_embedding(policy, weight * (1 + 1e-3 * noise))
    found, tokens = flips(first, grow(worse, workers, SIZES[0]))
    far = [distance(policy, flip) for flip in found]
    print(f'{len(found)} of {tokens} tokens flipped, up to {max(far):.1e} from the edge')
    assert 3 <= len(found) < 0.03 * tokens
    assert EDGE < max(far) < 1000 * EDGE
