"""Search speed of a plain loop, which does what the released code does: the baseline of `search`.

    all trees in lock-step:  whole prompts --prefill, once a node--> batch of trees x candidates
        -> decoded until the longest has ended -> all programs run, the device idle
        -> whole partial solutions --PPM--> scores -> every tree walks on

Nothing computed for a step is kept for the next one. Decoder, sampler and sampling keys are those
of the engine, so both grow the same trees; the n candidates of a node attend to one copy of its
prompt, and a batch shrinks (by halves) when trees are finished. What differs is that every prompt
and every partial solution is computed anew, and who waits for whom.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from rstar_jax import models
from rstar_jax.data.record import Record
from rstar_jax.search import engine, loop
from rstar_jax.search.config import Config
from rstar_jax.search.engine import programs, sampling, sizes, state
from rstar_jax.search.engine.layers import Variant
from rstar_jax.search.engine.ledger import Ledger
from rstar_jax.search.expander import Expander, Request, Scores
from rstar_jax.search.nodes import Step
from rstar_jax.steps import marks

# Prompts and partial solutions are padded to multiples of these, so that few sizes are compiled.
PATH_UNIT = 256
SCORED_UNIT = 64
# Tokens of one call of the PPM: enough for products at full speed.
SCORED_TOKENS = 2048


class Plain(Expander):
    """The expander of `LockStep`: has the calls of an `Expander` that its loop needs.

    Args:
      policy: models.Policy.
      ppm: models.PPM or None.
      config: what is searched.
      mesh: local mesh of one device.
      trees: all trees, which are in flight at once.
      template: not looked at.
    """

    def __init__(
        self,
        policy: models.Policy,
        ppm: models.PPM | None,
        config: Config,
        mesh: jax.sharding.Mesh,
        trees: int,
        template: list[list[int]],
    ):
        del template
        self.mesh, self.config, self.policy, self.ppm = mesh, config, policy, ppm
        self.rows = self.width = trees
        self.scores = self._scores if ppm else None
        # For its table of marks and its texts of tokens; it holds no tree.
        self._engine = engine.Engine(policy, None, config, mesh, 1, [[0]])
        self.encode = self._engine.encode
        self.counters: collections.Counter = collections.Counter()
        self._asked: dict[int, Any] = {}
        self._paths: dict[int, list[int]] = {}
        # The memory of the step before, to be written over.
        self._path: Any = None
        self._cells: Any = None
        self._slots: Any = None

    def expand(self, row: int, tree: Any) -> None:
        """Asks for the candidates of a tree's cursor."""
        self._asked[row] = tree
        self._paths[row] = [token for i in tree.path for token in tree.nodes[i].tokens]

    def sample(self) -> list[Step]:
        """Samples all candidates that were asked for, and returns when the longest has ended."""
        asked, n = self._asked, self.config.candidates
        rows, self._asked = list(asked), {}
        trees = self.width
        while trees // 2 >= len(rows):
            trees //= 2
        self._prefill(trees, [self._paths[row] for row in rows])
        keys = np.zeros((trees * n, 2), np.uint32)
        places = [(row, candidate) for row in rows for candidate in range(n)]
        for cell, (row, candidate) in enumerate(places):
            tree = asked[row]
            keys[cell] = sampling.key_of(*tree.seeds, tree.cursor.tag, candidate)
        cells = self._decode(keys, np.arange(len(keys)) < len(places))
        return [self._ended(cells, cell, *place) for cell, place in enumerate(places)]

    def _scores(self, requests: list[Request]) -> Scores:
        """PPM scores of children, each computed from its prompt's first token."""
        rows, numbers, nodes = zip(*requests)
        texts = [[*self._paths[row], *node.tokens] for row, node in zip(rows, nodes)]
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found = np.zeros(len(texts), np.float32)
        while order:
            length = _round_up(len(texts[order[-1]]), SCORED_UNIT)
            count = max(1, SCORED_TOKENS // length)
            batch, order = order[-count:], order[:-count]
            tokens, lengths = np.zeros((count, length), np.int32), np.ones(count, np.int32)
            for i, which in enumerate(batch):
                lengths[i] = len(texts[which])
                tokens[i, : lengths[i]] = texts[which]
            self.counters['ppm_computed'] += sum(len(texts[which]) for which in batch)
            found[batch] = np.asarray(self.ppm.scores(tokens, lengths))[: len(batch)]
        return [(found, np.int32(rows), np.int32(numbers))]

    def _prefill(self, trees: int, prompts: list[list[int]]) -> None:
        """Computes whole prompts, in pieces of as many tokens as the engine computes at once."""
        model, shape = self._engine.policy, sizes.of(self.mesh).call_shapes()[0]
        # Rows are written whole, padding included: they need room behind the last prompt.
        need = _round_up(max(map(len, prompts)) + shape[1], PATH_UNIT)
        have = self._path.kv[0][0].shape if self._path else (0, 0, 0, 0)
        if have[0] != trees or have[2] < need:
            need = max(need, have[2])
            self._path = model.made(state.empty_path, trees, need)
        queue = Ledger(1, trees, 1, 0, lambda node: 0)
        for row, prompt in enumerate(prompts):
            queue.compute(row, 0, prompt)
        extend = programs.EXTEND(self.mesh, config=model.config)
        while queue.segments:
            known, _ = queue.take([shape])
            self._path = extend(model.params, model.prefix, self._path, known)
        self.counters['policy_computed'] += sum(map(len, prompts))

    def _decode(self, keys: np.ndarray, opened: np.ndarray) -> state.Cells:
        model, limit = self._engine.policy, self.config.step_tokens
        if self._cells is None or self._cells.state.shape[0] != len(keys):
            self._cells = model.made(state.empty_cells, len(keys), limit)
            self._slots = model.made(state.empty_slots, len(keys), limit)
        config = dataclasses.replace(self.config, answers_kept='all')
        variant = Variant(model.config, config.candidates, repetition=config.repetition)
        decode = programs.DECODE(self.mesh, variant=variant)
        open_cells = programs.OPEN(self.mesh)
        turn = np.zeros(len(keys), np.int32)
        self._cells, self._slots, stats = decode(
            model.params,
            self._engine.stops,
            model.prefix,
            self._path,
            open_cells(self._cells, opened, keys, turn),
            self._slots,
            sampling.Settings.of(config, (limit, limit)),
        )
        iterations, computed, _ = np.asarray(stats)[0].tolist()
        self.counters['iterations'] += iterations
        self.counters['slot_steps'] += iterations * len(keys)
        self.counters['live_slot_steps'] += computed
        self.counters['policy_computed'] += computed
        return jax.device_get(self._cells.replace(kv=None, hidden=None))

    def _ended(self, cells: state.Cells, cell: int, row: int, candidate: int) -> Step:
        count, kind = int(cells.length[cell]), int(cells.end[cell])
        self.counters['sampled'] += count
        tokens = cells.tokens[cell, : count - (kind == marks.EOS)].tolist()
        return Step(row, candidate, self._engine.decode(tokens), tokens, kind, count)


class LockStep(loop.Loop):
    """The search loop without anything beside anything: sample, run, score, walk, for all trees."""

    expander = Plain
    enough: Callable[[], bool] = staticmethod(lambda: False)  # whether to end before the end

    def run(self) -> Iterator[Record]:
        self.queue.more(len(self.free))
        self.fill()
        while self.growing and not self.enough():
            for step in self.expander.sample():
                self.judge.begin(self.growing[step.row], step)
            while not all(map(self.judge.ready, self.growing.values())):
                self.await_workers()
            self.grow(list(self.growing))
            self.walk_on()
            yield from self.finish()
            self.tell()


def _round_up(count: int, unit: int) -> int:
    return -(-count // unit) * unit
