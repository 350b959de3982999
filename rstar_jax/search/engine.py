"""The expander that runs the models: what is done on the devices for the trees of one host.

The runner says which node of which tree is to be expanded; the engine brings that tree's path up
to date, opens its cells, decodes in chunks, and hands over steps as they end:

    start, expand  -> queues of appends and prefills, then opened cells
    dispatch       -> those queues and one chunk of decoding, left running on the devices
    collect        -> steps that ended
    scores         -> PPM scores of steps behind the current paths

Rows are trees in flight, row = device * G + tree; every device array has the devices' parts on its
first axis, and every function on them is mapped over the `data` axis of the local mesh by
shard_map. No function communicates between devices. The `tensor` axis is left to the compiler.
"""

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rstar_jax import steps
from rstar_jax.errors import UserError
from rstar_jax.models import rope, sharding
from rstar_jax.search import arrays, copies, decode, devices, memory, prefill, sampling, sizes
from rstar_jax.search.config import Config
from rstar_jax.search.kept import Kept
from rstar_jax.steps import marks

# A prefix that all prompts share is computed once if it is at least this long.
SHARED_PREFIX = 64
# Its last tokens are left out: some other question may begin such that they are merged with it.
MERGED = 4
PREFIX_UNIT = 32  # so that other problems seldom need other shapes


@dataclasses.dataclass
class Ended:
    """A candidate that is done: its row, its number, its step and why it ended.

    sampled counts its tokens, those that are not part of the step (a text's end) included.

    likelihood is the sum of its tokens' log-probabilities, under the temperature.
    text is None for a candidate that was stopped because it could not matter any more.
    """

    row: int
    candidate: int
    text: str | None
    tokens: list[int]
    kind: int
    sampled: int = 0
    likelihood: float = 0.0


@dataclasses.dataclass
class _Row:
    """What the engine knows of the tree in one row; `seen` are the nodes it has known of."""

    key: tuple = ()
    nodes: list[int] = dataclasses.field(default_factory=list)
    ends: list[int] = dataclasses.field(default_factory=list)
    seen: int = 1
    todo: int = 0
    opening: tuple | None = None
    expansions: int = 0


@dataclasses.dataclass
class _Segment:
    """Tokens to be computed behind a row's path, for the policy or for the PPM."""

    row: int
    start: int
    tokens: list[int]


class _Model:
    """One model on the devices with the paths of all rows: the policy or the PPM."""

    def __init__(self, engine: 'Engine', config, params, cells_kv_length: int):
        config, params = arrays.wide_embedding(engine.platform, config, params)
        self.config = rope.for_texts_of(config, engine.config.path_tokens)
        self.params = engine.place(params, self.config)
        self.dtype = self.decoder_params()['norm']['weight'].dtype
        self.kv_dtype = arrays.cache_dtype(engine.platform, self.dtype)
        self.capacity = 0
        self.path = None
        # What all prompts begin with; `shared` of its tokens are in front of every path.
        self.prefix = engine.zeros(arrays.empty_kv, config, 1, 0, self.kv_dtype)
        self.shared = 0
        self.segments: collections.deque[_Segment] = collections.deque()
        self.appends: list[tuple[int, int, int, int]] = []
        self.cell_length = cells_kv_length
        self.kept = Kept(0, 1, 0)
        self.store = None

    @property
    def network(self) -> memory.Network:
        return memory.Network(self.config, self.dtype, self.kv_dtype, self.cell_length)

    def decoder_params(self):
        return self.params.get('decoder', self.params)


class Engine:
    """Drives policy and PPM on this host's devices. See the module's text for the calls."""

    def __init__(self, policy, ppm, config: Config, mesh, trees: int, prompts: list[list[int]]):
        """Args:
        policy: models.Policy.
        ppm: models.PPM or None.
        config: what is searched.
        mesh: local mesh with the axes (data, tensor).
        trees: how many trees there are to search in all; fewer need less memory.
        prompts: the token ids of some prompts, to find what all share.
        """
        if ppm is not None and len(ppm.tokenizer) != len(policy.tokenizer):
            raise UserError(
                f'policy and PPM have different tokenizers ({len(policy.tokenizer)} and '
                f'{len(ppm.tokenizer)} tokens): use a PPM that was trained from this policy'
            )
        self.config, self.mesh, self.tokenizer = config, mesh, policy.tokenizer
        self.platform = mesh.devices.flat[0].platform
        self.devices = mesh.shape['data']
        n = config.candidates
        self.texts = steps.token_bytes(self.tokenizer, policy.config.vocab_size)
        self.stops = self.place(self._stops(policy.config))
        self.policy = _Model(self, policy.config, policy.params, config.step_tokens)
        self.ppm = None
        if ppm is not None:
            self.squash = ppm.squash
            self.ppm_length = config.step_tokens + sizes.OUTPUT_ROOM
            self.ppm = _Model(self, ppm.config, ppm.params, self.ppm_length)
        self.models = [self.policy] + ([self.ppm] if self.ppm else [])
        self.plan = memory.plan(
            config,
            [model.network for model in self.models],
            mesh,
            config.nodes * trees if config.one_size else -(-trees // self.devices),
            sizes.largest_call(mesh, config, ppm is not None),
            sizes.default_slots(mesh),
        )
        self.trees, self.slot_count = self.plan.trees, self.plan.slots
        self.rows = self.devices * self.trees
        self.state = [_Row() for _ in range(self.rows)]
        for model in self.models:
            model.kept = Kept(self.rows, self.trees, self.plan.kept)
            room = memory.kept_room(self.plan.kept)
            # Keys and values come in the model's dtype, whatever the other caches widen it to.
            dtype = arrays.kept_dtype(self.platform, model.dtype)
            model.store = self.zeros(arrays.empty_kv, model.config, self.trees, room, dtype)
        if self.ppm is not None:
            self.ppm_cells = self.zeros(
                arrays.empty_kv, ppm.config, self.trees * n, self.ppm_length, self.ppm.kv_dtype
            )
        state = config.step_tokens, self.policy.dtype, self.policy.kv_dtype
        self.cells = self.zeros(arrays.empty_cells, policy.config, self.trees * n, *state)
        self.slots = self.zeros(arrays.empty_slots, policy.config, self.slot_count, *state)
        self.sizes = [(self.slot_count, self.trees)]
        if not config.one_size:
            self.sizes = sizes.decode_sizes(self.slot_count, self.trees)
        self.size = len(self.sizes) - 1
        self.known = np.zeros(self.rows * n, np.uint8)
        self.opened = np.zeros(self.rows * n, bool)
        self.keys = np.zeros((self.rows * n, 2), np.uint32)
        # Trees with few expansions first: the last trees shall end together, not one by one.
        self.turn = np.zeros(self.rows * n, np.int32)
        self.counters = collections.Counter()
        self.sampling = sampling.Settings.of(config)
        self.begin: list[int] = []
        for model in self.models:
            if not config.one_size:
                self._share_prefix(model, prompts)
            longest = config.path_tokens if config.one_size else max(map(len, prompts))
            self._reserve(model, longest - model.shared)

    def _stops(self, config) -> arrays.Stops:
        kinds = {
            steps.STEP_END: marks.STEP,
            steps.CODE_END: marks.CODE,
            steps.ANSWER_END: marks.ANSWER,
        }
        if self.config.prompt == 'few_shot':
            kinds[steps.OUTPUT_END] = marks.STEP
        table = steps.mark_table(self.texts, kinds, steps.eos_ids(self.tokenizer))
        vocab = np.int32(min(config.vocab_size, len(self.tokenizer)))
        return arrays.Stops(table.next, table.kind, vocab)

    # --- placing arrays and mapping functions over the devices ---

    def place(self, tree: Any, network=None) -> Any:
        """Puts a pytree on every `data` row of the mesh; the weights of `network`, a models.Config,
        cut over `tensor`."""
        if network is not None:
            return sharding.shard(tree, self.mesh, network)
        return jax.device_put(tree, NamedSharding(self.mesh, P()))

    def _split(self, array) -> jax.Array:
        return jax.device_put(array, NamedSharding(self.mesh, P('data')))

    def zeros(self, f, *args):
        """Makes each device's part of a state on that device."""
        return devices.make(self.mesh, f, *args)

    # Donated below: each of these replaces the state that it is given, and the engine keeps no
    # other reference to it.

    def _decode(self, trees: int, *arguments):
        f = devices.mapped(
            decode.decode,
            self.mesh,
            8,
            shared=(0, 1, 6, 7),
            donate=(4, 5),
            config=self.policy.config,
            candidates=self.config.candidates,
            first_answer_only=self.config.first_answer_only,
            trees=trees,
        )
        return f(*arguments)

    def _extend(self, model, *arguments):
        f = devices.mapped(
            prefill.extend, self.mesh, 7, shared=(0,), donate=(2,), config=model.config
        )
        return f(*arguments)

    def _score(self, *arguments):
        settings = {'config': self.ppm.config, 'squash': self.squash}
        f = devices.mapped(prefill.score, self.mesh, 8, shared=(0,), donate=(3,), **settings)
        return f(*arguments)

    def _append(self, path, kv, hidden, *arguments):
        f = devices.mapped(copies.append, self.mesh, 7, donate=(0,))
        return f(path, kv, hidden, *arguments)

    def _keep(self, *arguments):
        return devices.mapped(copies.keep, self.mesh, 7, donate=(0,))(*arguments)

    def _recall(self, *arguments):
        return devices.mapped(copies.recall, self.mesh, 7, donate=(0,))(*arguments)

    def _open(self, *arguments):
        return devices.mapped(arrays.open_cells, self.mesh, 4, donate=(0,))(*arguments)

    def _resize(self, slots, size):
        return devices.mapped(arrays.resize, self.mesh, 1, size=size)(slots)

    def _grow(self, path, positions):
        return devices.mapped(arrays.grow, self.mesh, 1, positions=positions)(path)

    # --- what the runner calls ---

    def start(self, row: int, task) -> None:
        """Forgets what the row held; the next `expand` brings in the task's path."""
        self.state[row] = _Row(key=(task.seed, *task.key), seen=len(task.tokens))
        for model in self.models:
            model.kept.clear(row)

    def expand(self, row: int, task, nodes: list[int], tag: str) -> None:
        """Asks for the candidates of the last of `nodes` (root to cursor)."""
        state = self.state[row]
        common = 0
        while common < min(len(nodes), len(state.nodes)) and state.nodes[common] == nodes[common]:
            common += 1
        kept = state.ends[common - 1] if common else 0
        walked_on = common == len(state.nodes) == len(nodes) - 1 and common > 0
        fresh = [task.tokens[node] for node in nodes[common:]]
        if not common and fresh[0][: len(self.begin)] != self.begin:
            raise UserError(
                f'problem {task.problem["index"]}: its prompt does not begin with the tokens that '
                'all others begin with: search with --config.search.one_size=True'
            )
        for model in self.models:
            start = kept - model.shared if common else 0
            done = 0 if common else model.shared
            rest = [token for tokens in fresh for token in tokens][done:]
            self._keep_steps(model, row, task, common)
            at_hand = 0
            if walked_on:
                cell, at_hand = self._step_at_hand(model, row, task, nodes[-1])
                if at_hand:
                    model.appends.append((row, cell, start, at_hand))
            elif common:
                walk = [(node, len(task.tokens[node])) for node in nodes[common:]]
                # The last token is computed: the hidden state behind it is not kept.
                at_hand = min(model.kept.recall(row, walk, start), len(rest) - 1)
            start, rest = start + at_hand, rest[at_hand:]
            if rest:
                task.computed[model is self.policy] += len(rest)
                model.segments.append(_Segment(row, start, rest))
                state.todo += 1
        state.nodes, state.seen = list(nodes), len(task.tokens)
        ends = np.cumsum([len(tokens) for tokens in fresh]) + kept
        state.ends = state.ends[:common] + ends.tolist()
        state.opening = tag
        for model in self.models:
            self._reserve(model, state.ends[-1] - model.shared)
        self._open_if_ready(row)

    def dispatch(self) -> Any:
        """Starts what is queued and a chunk of decoding; does not wait for the devices."""
        self._copy_steps()
        self._prefill()
        if self.opened.any():
            # Copies, as the device may read the host's arrays later than this line.
            copies = [x.copy() for x in (self.opened, self.keys, self.turn)]
            self.cells = self._open(self.cells, *map(self._split, copies))
            self.known[self.opened] = arrays.PENDING
            self.opened[:] = False
        busy = self._busy().reshape(self.devices, self.trees, self.config.candidates)
        need, trees = int(busy.sum(axis=(1, 2)).max()), int(busy.any(axis=2).sum(axis=1).max())
        if not need:
            return None
        trees = self._fit(need, trees)
        longest = sizes.longest_chunk(self.mesh, self.config)
        self.cells, self.slots, stats = self._decode(
            trees,
            self.policy.params,
            self.stops,
            self.policy.prefix,
            self.policy.path,
            self.cells,
            self.slots,
            self.sampling,
            np.array([self.config.chunk, longest], np.int32),
        )
        # Copies: the next call donates the cells.
        cells = self.cells
        view = (cells.state, cells.end, cells.length, cells.tokens, cells.likelihood)
        return jax.tree.map(jnp.copy, view), stats

    def collect(self, running: Any) -> list[Ended]:
        """Waits for a dispatched chunk and returns the candidates that ended in it."""
        if running is None:
            return []
        (state, end, length, tokens, likelihood), stats = jax.device_get(running)
        self.counters['iterations'] += int(stats[:, 0].max())
        self.counters['slot_steps'] += int((stats[:, 0] * self.sizes[self.size][0]).sum())
        self.counters['live_slot_steps'] += int(stats[:, 1].sum())
        self.counters['policy_computed'] += int(stats[:, 1].sum())
        n = self.config.candidates
        ended = []
        for cell in np.nonzero((state >= arrays.DONE) & (self.known < arrays.DONE))[0].tolist():
            count = int(length[cell])
            self.counters['sampled'] += count
            if state[cell] == arrays.CANCELLED:
                ended.append(Ended(cell // n, cell % n, None, [], marks.NONE, count))
                continue
            ids = tokens[cell, :count].tolist()
            kind = int(end[cell])
            if kind == marks.EOS:
                ids = ids[:-1]
            text = b''.join(self.texts[i] for i in ids).decode('utf-8', errors='replace')
            total = float(likelihood[cell])
            ended.append(Ended(cell // n, cell % n, text, ids, kind, count, total))
        self.known = state.copy()
        return ended

    def encode(self, text: str) -> list[int]:
        """Token ids of an executor output."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    @property
    def has_ppm(self) -> bool:
        return self.ppm is not None

    def scores(self, requests: list[tuple[int, Any]]) -> list[float]:
        """PPM scores of children behind the current paths.

        requests: (row, child). Steps of like length are batched together, and their keys and
        values kept for the walk into one of them.
        """
        order = sorted(range(len(requests)), key=lambda i: len(requests[i][1].tokens))
        queues = [[] for _ in range(self.devices)]
        for i in order:
            queues[requests[i][0] // self.trees].append(i)
        results, waiting = [0.0] * len(requests), []
        while any(queues):
            longest = max(len(requests[q[-1]][1].tokens) for q in queues if q)
            length = self._score_length(longest)
            count = max(1, sizes.prefill_budget(self.mesh) // length)
            batch = [[q.pop() for _ in range(min(count, len(q)))] for q in queues]
            rows = _Rows(self.devices, count, length, self.trees)
            for device, indices in enumerate(batch):
                for slot, i in enumerate(indices):
                    row, child = requests[i]
                    tree = row % self.trees
                    cell = tree * self.config.candidates + child.candidate.ended.candidate
                    rows.put(device, slot, tree, child.tokens, cell)
            self.counters['ppm_computed'] += int(rows.counts.sum())
            self.ppm_cells, values = self._score(
                self.ppm.params,
                self.ppm.prefix,
                self.ppm.path,
                self.ppm_cells,
                *map(self._split, (rows.trees, rows.starts, rows.tokens, rows.counts)),
            )
            waiting.append((batch, count, values))
        for batch, count, values in waiting:
            values = np.asarray(values).reshape(self.devices, count)
            for device, indices in enumerate(batch):
                for slot, i in enumerate(indices):
                    results[i] = float(values[device, slot])
        return results

    # --- paths ---

    def _step_at_hand(self, model, row: int, task, node: int) -> tuple[int, int]:
        """The cell in which a newly born step is, and how many of its tokens are of use there."""
        candidate, sampled, kind = task.origin[node]
        tokens = len(task.tokens[node])
        if model is self.policy:
            # The hidden state at hand is the one behind the mark; behind a text's end it is not.
            count = sampled - 1 if kind == marks.EOS else sampled
        else:
            count = tokens if tokens <= self.ppm_length else 0
        return (row % self.trees) * self.config.candidates + candidate, count

    def _keep_steps(self, model, row: int, task, common: int) -> None:
        """Keeps the newly born steps, and of those that the walk leaves what is not kept yet."""
        if not model.kept.positions:
            return
        state = self.state[row]
        for node in range(state.seen, len(task.tokens)):
            if task.open[node]:
                model.kept.keep_cell(row, node, *self._step_at_hand(model, row, task, node))
        for i in range(max(1, common), len(state.nodes)):
            start, end = state.ends[i - 1 : i + 1]
            model.kept.keep_path(row, state.nodes[i], start - model.shared, end - start)

    def _open_if_ready(self, row: int) -> None:
        state = self.state[row]
        if state.opening is None or state.todo:
            return
        n = self.config.candidates
        for candidate in range(n):
            cell = row * n + candidate
            self.opened[cell] = True
            self.keys[cell] = sampling.key_of(*state.key, state.opening, candidate)
            self.turn[cell] = state.expansions
        state.opening = None
        state.expansions += 1

    def _copy_steps(self) -> None:
        """Does the queued copies among cells, paths and what is kept."""
        for model in self.models:
            is_policy, kept = model is self.policy, model.kept
            cells = self.cells.kv if is_policy else self.ppm_cells
            hidden = self.cells.hidden if is_policy else None
            for places in self._packed(kept.born):
                model.store = self._keep(model.store, cells, *places)
            for places in self._packed(kept.left):
                model.store = self._keep(model.store, model.path.kv, *places)
            for places in self._packed(kept.recalled):
                model.path = self._recall(model.path, model.store, *places)
            for places in self._packed(model.appends):
                model.path = self._append(model.path, cells, hidden, *places)

    def _packed(self, queue: list) -> Iterator[list[jax.Array]]:
        """Empties a queue of (row, ...): i32[A] of each column, A entries of a device at a time.

        Unused entries are 0 but for a row that does not exist.
        """
        width, columns = self.trees * self.config.candidates, max(map(len, queue), default=0)
        per_device = [[] for _ in range(self.devices)]
        for row, *entry in queue:
            per_device[row // self.trees].append((row % self.trees, *entry))
        queue.clear()
        while any(per_device):
            packed = np.zeros((columns, self.devices, width), np.int32)
            packed[0] = self.trees
            for device, entries in enumerate(per_device):
                some, per_device[device] = entries[:width], entries[width:]
                packed[:, device, : len(some)] = np.array(some, np.int32).reshape(-1, columns).T
            yield [self._split(x.reshape(-1)) for x in packed]

    def _prefill(self) -> None:
        """Computes queued segments: until no slot is idle, then a few calls a chunk."""
        for model in self.models:
            calls = 0
            while model.segments and (calls < self._prefill_calls() or self._slots_idle()):
                self._prefill_once(model)
                calls += 1

    def _fit(self, cells: int, trees: int) -> int:
        """Brings the slots to the smallest size that will do; returns how many trees that is for.

        By way of all sizes between, as each change of one size to another is compiled.
        """
        large = [slots >= cells and room >= trees for slots, room in self.sizes]
        want = large.index(True) if any(large) else len(large) - 1
        while want != self.size:
            self.size += 1 if want > self.size else -1
            self.slots = self._resize(self.slots, self.sizes[self.size][0])
        return self.sizes[want][1]

    def _busy(self) -> np.ndarray:
        return (self.known == arrays.PENDING) | (self.known == arrays.RUNNING)

    def _slots_idle(self) -> bool:
        """Whether some device has fewer cells to decode than slots."""
        cells = (self._busy() | self.opened).reshape(self.devices, -1).sum(axis=1)
        return bool(cells.min() < self.slot_count)

    def _prefill_calls(self) -> int:
        """Calls before a chunk that fills the slots: as many tokens as that decodes."""
        return max(1, self.config.chunk * self.slot_count // sizes.prefill_budget(self.mesh))

    def _prefill_once(self, model) -> None:
        heads = list(model.segments)[: 4 * self.rows]
        length = self._prefill_length(max(len(s.tokens) for s in heads[: self.devices]))
        count = max(1, sizes.prefill_budget(self.mesh) // length)
        rows = _Rows(self.devices, count, length, self.trees)
        used = [0] * self.devices
        for segment in heads:
            device = segment.row // self.trees
            if used[device] == count:
                continue
            piece, segment.tokens = segment.tokens[:length], segment.tokens[length:]
            rows.put(device, used[device], segment.row % self.trees, piece, segment.start)
            segment.start += len(piece)
            used[device] += 1
            if not segment.tokens:
                model.segments.remove(segment)
                self.state[segment.row].todo -= 1
                self._open_if_ready(segment.row)
        name = 'policy_computed' if model is self.policy else 'ppm_computed'
        self.counters[name] += int(rows.counts.sum())
        arguments = map(self._split, (rows.trees, rows.tokens, rows.counts, rows.starts))
        model.path = self._extend(
            model, model.decoder_params(), model.prefix, model.path, *arguments
        )

    def _prefill_length(self, longest: int) -> int:
        if self.config.one_size:
            return sizes.PREFILL_LENGTHS[-1]
        return next((x for x in sizes.PREFILL_LENGTHS if x >= longest), sizes.PREFILL_LENGTHS[-1])

    def _score_length(self, longest: int) -> int:
        if self.config.one_size:
            longest = max(longest, self.config.step_tokens + sizes.OUTPUT_TOKENS)
        return sizes.score_length(longest, self.ppm_length)

    def _reserve(self, model, tokens: int) -> None:
        """Makes room for paths of that many tokens."""
        if tokens + copies.COPIED <= model.capacity:
            return
        need = sizes.path_room(tokens, self.config.path_tokens)
        if model.path is None:
            state = need, model.dtype, model.kv_dtype
            model.path = self.zeros(arrays.empty_path, model.config, self.trees, *state)
        else:
            model.path = self._grow(model.path, need)
        model.capacity = need

    def _share_prefix(self, model, prompts: list[list[int]]) -> None:
        """Computes what all prompts begin with, once, where that is long enough to matter."""
        first, last = min(prompts), max(prompts)
        longest = min(map(len, prompts)) - 1
        same = [a == b for a, b in zip(first[:longest], last, strict=False)]
        shared = same.index(False) if False in same else len(same)
        shared = (shared - MERGED) // PREFIX_UNIT * PREFIX_UNIT
        if shared < SHARED_PREFIX or len(prompts) < 2:
            return
        self._reserve(model, shared)
        for device in range(self.devices):
            row = device * self.trees
            model.segments.append(_Segment(row, 0, first[:shared]))
            self.state[row].todo += 1
        while model.segments:
            self._prefill_once(model)
        self.begin = first[:shared]
        cut = devices.mapped(arrays.first_path, self.mesh, 1, positions=shared)
        model.prefix, model.shared = cut(model.path), shared
        model.path, model.capacity = None, 0


class _Rows:
    """The padded arguments of one call of `extend` or `score`: `count` rows on each device."""

    def __init__(self, devices: int, count: int, length: int, trees: int):
        self._count = count
        self.trees = np.full(devices * count, trees, np.int32)
        self.tokens = np.zeros((devices * count, length), np.int32)
        self.counts = np.zeros(devices * count, np.int32)
        self.starts = np.zeros(devices * count, np.int32)

    def put(self, device: int, slot: int, tree: int, tokens: list[int], start: int) -> None:
        """Fills a row; `start` is the path position, or the cell when steps are scored."""
        at = device * self._count + slot
        self.trees[at], self.counts[at], self.starts[at] = tree, len(tokens), start
        self.tokens[at, : len(tokens)] = tokens
