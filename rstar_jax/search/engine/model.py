"""One model on this host's devices: its weights, and the paths of all trees in flight.

`Ledger` says what is to be copied and computed, what is here does so. A `Scorer` is the PPM:
beside its paths it has the cells of the steps that it has scored.
"""

import collections
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from rstar_jax import models
from rstar_jax.models import rope, sharding
from rstar_jax.search.config import Config
from rstar_jax.search.engine import devices, memory, programs, sizes, state
from rstar_jax.search.engine.batch import Batch, fits
from rstar_jax.search.engine.ledger import Ledger
from rstar_jax.search.expander import Request, Scores
from rstar_jax.search.nodes import HostTree, Node
from rstar_jax.steps import marks


class Model:
    """The policy or the PPM.

    Attributes:
      config: models.Config, params: on the devices.
      prefix: keys and values of `prefix_tokens`, with which all prompts of a template begin.
      path: state.Path of the rows, with room for `capacity` tokens each.
      needed: tokens of the longest path.
      mixed: whether some row's prompt begins otherwise; then it lies in the path as a whole.
      ledger: of where keys and values lie, after `prepare`.
    """

    scored = False

    def __init__(self, name: str, mesh, settings: Config, config, params, cell_tokens: int):
        """name: 'policy' or 'ppm', of its counter. config, params: of the model.

        mesh: local mesh (data, tensor). cell_tokens: longest step that a cell has room for.
        """
        self.name, self.mesh, self.settings = name, mesh, settings
        self.config = rope.for_texts_of(config, settings.path_tokens)
        self.params = sharding.shard(params, mesh, self.config)
        self.dtype = self.decoder_params['norm']['weight'].dtype
        self.cell_tokens = cell_tokens
        self.capacity = self.needed = 0
        self.path: Any = None
        self.prefix, self.prefix_tokens = self.made(state.empty_kv, 1, 0), []

    @property
    def decoder_params(self) -> Any:
        return self.params.get('decoder', self.params)

    def made(self, f: Callable, rows: int, positions: int) -> Any:
        """Each device's part of the state, by an `f` of `state`."""
        return devices.make(self.mesh, f, self.config, rows, positions, self.dtype)

    def prepare(self, plan: memory.Plan, counters: collections.Counter) -> None:
        """Makes room for the trees of a plan."""
        self.width, self.counters = plan.trees, counters
        count, candidates = self.mesh.shape['data'], self.settings.candidates
        # With one size, a token's rounding must not depend on whether it is computed alone.
        prompts = not self.settings.one_size
        # Static: a ledger that held the model would keep the memory of a search that has ended.
        in_cell = functools.partial(self.in_cell, room=self.cell_tokens)
        self.ledger = Ledger(count, plan.trees, candidates, plan.kept, in_cell, prompts)
        self.kept = self.made(state.empty_kv, plan.trees, memory.kept_room(plan.kept))
        self._shared = np.zeros(count * plan.trees, np.int32)

    @staticmethod
    def in_cell(node: Node, room: int) -> int:
        """How many of a node's tokens its cell, with `room` for so many, is of use for.

        Without a text's end: the hidden state at hand is the one behind the mark.
        """
        return len(node.step.tokens) - (node.step.kind == marks.EOS)

    def share(self, tokens: list[int]) -> None:
        """Computes what all prompts begin with; before any tree."""
        self.reserve(len(tokens))
        for device in range(self.ledger.devices):
            self.ledger.compute(device * self.width, 0, tokens)
        while self.ledger.segments:
            self.prefill()
        cut = programs.FIRST_PATH(self.mesh, positions=len(tokens))
        self.prefix, self.prefix_tokens = cut(self.path), tokens
        self._shared[:] = len(tokens)
        self.path, self.capacity = None, 0

    @property
    def mixed(self) -> bool:
        return bool((self._shared != len(self.prefix_tokens)).any())

    def start(self, row: int, tree: HostTree) -> None:
        """Begins a tree in a row."""
        alike = tree.nodes[0].tokens[: len(self.prefix_tokens)] == self.prefix_tokens
        shared = len(self.prefix_tokens) if alike else 0
        self.ledger.start(row, shared, len(tree.nodes))
        if self._shared[row] != shared:
            self._shared[row] = shared
            self._place_shared()

    def _place_shared(self) -> None:
        self.path = self.path.replace(prefix=devices.split(self.mesh, self._shared.copy()))

    def walk(self, row: int, tree: HostTree) -> None:
        """Has a row's path brought to the cursor of its tree."""
        tree.computed[self.name] += self.ledger.walk(row, tree.nodes, tree.path)
        self.needed = max(self.needed, self.ledger.length(row))

    def reserve(self, tokens: int, running: Any = None) -> None:
        """Makes room for paths of that many tokens, where they have less.

        running: arrays that what runs will give. It holds on to those that it reads, so growing
        waits for it: else there would be two of each.
        """
        self.needed = tokens
        if tokens + state.COPIED <= self.capacity:
            return
        need = sizes.path_room(tokens, self.settings.path_tokens)
        if self.path is None:
            self.path = self.made(state.empty_path, self.width, need)
            self._place_shared()
        else:
            jax.block_until_ready(running)
            grow = programs.GROW(self.mesh, positions=need)
            self.path = self.path.replace(kv=devices.replaced(self.path.kv, grow))
        self.capacity = need

    def copy_steps(self, cells_kv: state.KeysValues, hidden: jax.Array | None) -> None:
        """Does the copies that the ledger asks for among cells, paths and what is kept."""
        self.ledger.release()
        copy, append = programs.COPY(self.mesh), programs.APPEND(self.mesh)
        for places in self._places(self.ledger.born):
            self.kept = copy(self.kept, cells_kv, *places)
        for places in self._places(self.ledger.left):
            self.kept = copy(self.kept, self.path.kv, *places)
        for queue, source in ((self.ledger.repeated, None), (self.ledger.recalled, self.kept)):
            for places in self._places(queue):
                self.path = self.path.replace(kv=copy(self.path.kv, source, *places))
        for places in self._places(self.ledger.appends):
            self.path = append(self.path, cells_kv, hidden, *places)

    def _places(self, queue: list):
        for packed in self.ledger.packed(queue):
            yield devices.split(self.mesh, list(packed))

    def prefill(self) -> tuple[list[int], int]:
        """Computes some of what the ledger asks for.

        Returns the rows of which all is computed, and the tokens that it computed on each device,
        with their padding.
        """
        kind, cut = sizes.of(self.mesh), True
        shapes = kind.call_shapes()
        if self.settings.one_size:  # a token's rounding must not depend on what else waits
            shapes, cut = shapes[:1], False
        known, done = self.ledger.take(shapes, kind.besides, cut)
        self.counters[f'{self.name}_computed'] += int(known.counts.sum())
        extend = programs.EXTEND(self.mesh, config=self.config, mixed=self.mixed)
        given = devices.split(self.mesh, known)
        self.path = extend(self.decoder_params, self.prefix, self.path, given)
        return done, known.tokens.size // self.ledger.devices


class Scorer(Model):
    """The PPM, with the keys and values of the steps that it has scored."""

    scored = True

    def __init__(self, mesh, settings: Config, ppm: models.PPM):
        room = sizes.scored_room(settings.step_tokens)
        super().__init__('ppm', mesh, settings, ppm.config, ppm.params, room)
        self.squash = ppm.squash

    def prepare(self, plan: memory.Plan, counters: collections.Counter) -> None:
        super().prepare(plan, counters)
        cells = plan.trees * self.settings.candidates
        self.cells = self.made(state.empty_kv, cells, self.cell_tokens)

    @staticmethod
    def in_cell(node: Node, room: int) -> int:
        return len(node.tokens) if len(node.tokens) <= room else 0

    def copy_steps(self) -> None:
        super().copy_steps(self.cells, None)

    def scores(self, requests: list[Request]) -> Scores:
        """Scores of nodes, each behind its row's path; does not wait for the devices.

        Their keys and values are kept in their cells.
        """
        count = self.ledger.devices
        queues: list[list[Request]] = [[] for _ in range(count)]
        for request in sorted(requests, key=lambda request: -len(request[-1].tokens)):
            queues[request[0] // self.width].append(request)
        settings = {'config': self.config, 'squash': self.squash, 'mixed': self.mixed}
        score = programs.SCORE(self.mesh, **settings)
        one_size = self.settings.one_size
        least = self.settings.step_tokens + sizes.OUTPUT_TOKENS if one_size else 0
        found: Scores = []
        while any(queues):
            shape = sizes.of(self.mesh).whole_call(list(map(_lengths, queues)), least)
            batch = Batch(count, shape, self.width)
            # A step's score is that of its last row.
            trees = np.full_like(batch.known.trees, self.width)
            numbers = np.zeros_like(trees)
            for device, queue in enumerate(queues):
                taken = fits(_lengths(queue), shape, cut=False)
                for row, number, node in itertools.compress(queue, taken):
                    tree = row % self.width
                    cell = tree * self.settings.candidates + node.candidate
                    last = batch.put(device, tree, node.tokens, cell)
                    trees[last], numbers[last] = tree, number
                queue[:] = [x for x, count in zip(queue, taken, strict=True) if not count]
            self.counters['ppm_computed'] += int(batch.known.counts.sum())
            known = devices.split(self.mesh, batch.known)
            self.cells, values = score(self.params, self.prefix, self.path, self.cells, known)
            found.append((values, trees, numbers))
        return found


def _lengths(queue: list[Request]) -> list[int]:
    return [len(node.tokens) for *_, node in queue]
