"""The expander that runs the models: what is done on the devices for the trees of one host.

The loop says which node of which tree is to be expanded; the engine brings that tree's path up to
date, opens its cells, decodes in chunks, and hands over steps as they end:

    start, expand  -> the managers: what is to be copied and computed; then opened cells
    dispatch       -> those and one chunk of decoding, left running on the devices
    collect        -> steps that ended
    scores         -> PPM scores of steps behind the current paths

Rows are trees in flight, row = device * G + tree; every device array has the devices' parts on its
first axis, and every program on them is mapped over the `data` axis of the local mesh. None
communicates between devices. The `tensor` axis is left to the compiler.
"""

import collections
import dataclasses
import time
from concurrent import futures
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rstar_jax import models, steps
from rstar_jax.models import tokenizer
from rstar_jax.search.config import Config
from rstar_jax.search.engine import (
    compiled,
    devices,
    memory,
    programs,
    sampling,
    sizes,
    state,
)
from rstar_jax.search.engine.board import Board
from rstar_jax.search.engine.compiled import ChunkSizes, Size
from rstar_jax.search.engine.layers import BLOCK
from rstar_jax.search.engine.model import Model, Scorer
from rstar_jax.search.expander import Expander
from rstar_jax.search.nodes import HostTree, Step
from rstar_jax.settings.errors import UserError
from rstar_jax.steps import marks

# A prefix that all prompts share is computed once if it is at least this long.
SHARED_PREFIX = 64
# Its last tokens are left out: some other question may begin such that they are merged with it.
MERGED = 4
PREFIX_UNIT = 32  # so that other problems seldom need other shapes
# A chunk is sent ahead where so many cells are wanted for each slot; a fifth of the slots end their
# steps in a chunk of 8 (GSM8K, 0.5B model: 36 tokens a step).
AHEAD = 1.25


@dataclasses.dataclass
class _Decoded:
    """What a chunk leaves: cells and slots, until the engine has them; how the host sees the cells,
    and the counts of `decode`; when the call was sent off."""

    state: tuple | None
    look: Any
    stats: jax.Array
    sent: float


def _decoded(size: Size, arguments: tuple, look: Any) -> _Decoded:
    began = time.monotonic()
    cells, slots, stats = size.step(*arguments)
    sent = time.monotonic()
    compiled.COMPILED.called(size, sent - began)
    return _Decoded((cells, slots), look(cells), stats, sent)


def _stops(policy: models.Policy, texts: list[bytes], prompt: str) -> state.Stops:
    table = steps.mark_table(texts, steps.stops(prompt), steps.eos_ids(policy.tokenizer))
    vocab = np.int32(min(policy.config.vocab_size, tokenizer.rows(policy.tokenizer)))
    return state.Stops(table.next, table.kind, vocab)


class Engine(Expander):
    """Drives policy and PPM on this host's devices."""

    def __init__(
        self,
        policy: models.Policy,
        ppm: models.PPM | None,
        config: Config,
        mesh: Mesh,
        total: int,
        template: list[list[int]],
    ):
        """mesh: local mesh (data, tensor). total: trees to search in all; fewer need less memory.

        template: token ids of prompts with nothing in common but how the template begins.
        """
        if ppm is not None and len(ppm.tokenizer) != len(policy.tokenizer):
            raise UserError(
                'ppm',
                expected=f"its tokenizer has {len(ppm.tokenizer)} tokens, the policy's "
                f'{len(policy.tokenizer)}',
                remedy='use a PPM that was trained from this policy',
            )
        self.config, self.mesh = config, mesh
        self.marked = steps.marks_are_tokens(policy.tokenizer)
        self.continuing = tokenizer.continuing(policy.tokenizer)
        self.devices = mesh.shape['data']
        self.texts = steps.token_bytes(policy.tokenizer, policy.config.vocab_size)
        self.stops = devices.everywhere(mesh, _stops(policy, self.texts, config.prompt))
        self.policy = Model(
            'policy', mesh, config, policy.config, policy.params, config.step_tokens
        )
        self.ppm = Scorer(mesh, config, ppm) if ppm is not None else None
        self.models = [model for model in (self.policy, self.ppm) if model is not None]
        self.scores = self.ppm and self.ppm.scores
        of_each = -(-total // self.devices)
        self.plan = memory.plan(config, self.models, mesh, of_each, sizes.of(mesh).slots)
        self.width, slots = self.plan.trees, self.plan.slots
        self.rows = self.devices * self.width
        self.counters: collections.Counter = collections.Counter()
        for model in self.models:
            model.prepare(self.plan, self.counters)
        per_device = self.width * config.candidates
        self.cells = self.policy.made(state.empty_cells, per_device, config.step_tokens)
        self.slots = self.policy.made(state.empty_slots, slots, config.step_tokens)
        self.board = Board(self.devices, self.width, config.candidates)
        self.chunks = 0
        # Sends chunks off. On GPUs that takes as long as the chunk: XLA has the host decide there
        # whether a loop goes on.
        self.sender = futures.ThreadPoolExecutor(1, 'decode')
        self.sending: futures.Future[_Decoded] | None = None
        self.opening: dict[int, HostTree] = {}  # row -> the tree whose cells are opened next
        longest = config.chunk * sizes.of(mesh).longer
        self.settings = sampling.Settings.of(config, (config.chunk, longest))
        self._share(template)
        self.chunk_sizes = ChunkSizes(config, mesh, self.plan, self.policy, self._arguments())

    def _share(self, template: list[list[int]]) -> None:
        """Computes what all prompts begin with, once, where that is long enough to matter."""
        first, last = min(template), max(template)
        shared = next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), len(first))
        shared = (shared - MERGED) // PREFIX_UNIT * PREFIX_UNIT
        begin = first[:shared] if shared >= SHARED_PREFIX and not self.config.one_size else []
        room = self.config.path_tokens if self.config.one_size else max(map(len, template))
        for model in self.models:
            if begin:
                model.share(begin)
            model.reserve(room - len(begin))

    # --- what the loop calls ---

    @property
    def plenty(self) -> bool:
        """Whether slots whose steps end in the chunk under way find others that are waiting."""
        return self.board.wanted >= AHEAD * self.plan.slots

    def start(self, row: int, tree: HostTree) -> None:
        self.board.expansions[row] = 0
        for model in self.models:
            model.start(row, tree)

    def expand(self, row: int, tree: HostTree) -> None:
        for model in self.models:
            model.walk(row, tree)
        self.opening[row] = tree
        self._open_if_ready(row)

    def dispatch(self) -> Any:
        """Starts what is queued and a chunk of decoding, once the chunk before is sent off."""
        self._take_state()
        for model in self.models:
            model.reserve(model.needed, (self.slots, self.ppm and self.ppm.cells))
        self.policy.copy_steps(self.cells.kv, self.cells.hidden)
        if self.ppm is not None:
            self.ppm.copy_steps()
        if not self.chunks:  # the prompts are computed meanwhile
            self.chunk_sizes.expect(self.left, self._arguments())
        self._prefill()
        if self.board.opened.any():
            opened, latest = devices.split(self.mesh, self.board.take_opened(self.chunks + 1))
            self.cells = programs.OPEN(self.mesh)(self.cells, *opened)
            self.policy.path = self.policy.path.replace(latest=latest)
        if not self.board.needed:
            return None
        size, way = self.chunk_sizes.fit(
            self.board.needed, self._blocks(), self.left, self._arguments()
        )
        for slots in way:
            self._resize(slots)
        look = programs.LOOK(self.mesh)
        self.sending = self.sender.submit(_decoded, size, self._arguments(), look)
        if self.mesh.shape['tensor'] > 1:
            # Of two programs that exchange data, sent by two threads, each device must have the
            # same one first: else they wait for each other.
            futures.wait([self.sending])
        self.chunks += 1
        return self.chunks, size.slots, self.sending

    def collect(self, running: Any) -> list[Step]:
        """Waits for a dispatched chunk and returns the candidates that ended in it."""
        if running is None:
            return []
        chunk, slots, sending = running
        decoded = sending.result()
        look, stats = jax.device_get((decoded.look, decoded.stats))
        seen, end, length, tokens, likelihood = look
        self.counters['iterations'] += int(stats[:, 0].max())
        self.counters['slot_steps'] += int((stats[:, 0] * slots).sum())
        self.counters['live_slot_steps'] += int(stats[:, 1].sum())
        self.counters['policy_computed'] += int(stats[:, 2].sum())
        ended = []
        for cell in self.board.ended(chunk, seen):
            row, candidate = divmod(cell, self.config.candidates)
            count = int(length[cell])
            self.counters['sampled'] += count
            if seen[cell] == state.CANCELLED:
                ended.append(Step(row, candidate, None, [], marks.NONE, count))
                continue
            kind, total = int(end[cell]), float(likelihood[cell])
            ids = tokens[cell, : count - (kind == marks.EOS)].tolist()
            ended.append(Step(row, candidate, self.decode(ids), ids, kind, count, total))
        return ended

    def decode(self, tokens: list[int]) -> str:
        """The text of sampled tokens."""
        return b''.join(self.texts[i] for i in tokens).decode('utf-8', errors='replace')

    def close(self) -> None:
        self.sender.shutdown()

    # --- within a chunk ---

    def _take_state(self) -> None:
        """Has what the chunk that was sent last makes of cells and slots."""
        if self.sending is not None:
            decoded, self.sending = self.sending.result(), None
            (self.cells, self.slots), decoded.state = decoded.state, None
            self.chunk_sizes.sent = decoded.sent

    def _open_if_ready(self, row: int) -> None:
        if row not in self.opening or any(model.ledger.waits(row) for model in self.models):
            return
        self.board.open(row, self.opening.pop(row))

    def _prefill(self) -> None:
        """Computes queued segments: until no slot is idle, then as much as the chunk decodes.

        Where slots have plenty of work, few tokens wait for more that share their call.
        """
        most = self.config.chunk * self.plan.slots
        kind = sizes.of(self.mesh)
        enough = min(kind.besides, kind.call) * self.devices
        for model in self.models:
            computed, segments = 0, model.ledger.segments
            while segments and (computed < most or self.board.wanted < self.plan.slots):
                if self.plenty and sum(len(segment.tokens) for segment in segments) < enough:
                    break
                rows, tokens = model.prefill()
                for row in rows:
                    self._open_if_ready(row)
                computed += tokens

    def _arguments(self) -> tuple:
        """Of a chunk of decoding."""
        held = self.policy.prefix, self.policy.path, self.cells, self.slots
        return self.policy.params, self.stops, *held, self.settings

    def _resize(self, size: int) -> None:
        """Packs the slots that are in use into so many: array by array, see `devices.replaced`."""
        pack, cell = programs.PACK(self.mesh, size=size), self.slots.cell
        kv = devices.replaced(self.slots.kv, lambda x: pack(x, cell))
        slots = programs.RESIZE(self.mesh, size=size)(self.slots)  # its list is empty by now
        self.slots = slots.replace(kv=kv)

    def _blocks(self) -> int:
        """Blocks that the paths take which a chunk may need, on the device with the most."""
        busy = self.board.busy.reshape(self.rows, -1).any(axis=1)
        counts = [
            -(-self.policy.ledger.length(row) // BLOCK) if wanted else 0
            for row, wanted in enumerate(busy.tolist())
        ]
        most = sizes.most_paths(self.plan.slots)
        return max(
            sum(sorted(counts[at : at + self.width])[-most:])
            for at in range(0, self.rows, self.width)
        )
