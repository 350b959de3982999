"""How many trees a device has room for, and how many slots they can keep busy.

Weights are on the device already; what is counted here comes on top. A tree takes its longest path
and the cells of its candidates, for the policy and for the PPM, a slot one step; a step of decoding
takes its rows' logits, the largest call of known tokens its rows' paths and the scores against
them. Lengths are the longest that the settings allow, so that a search that began does not run out
of memory in the middle. Some of what is left keeps steps that a later walk comes by again.
"""

import bisect
import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp

from rstar_jax.parallel import bytes_on_a_device, device_bytes, free_bytes
from rstar_jax.parallel.memory import GIB
from rstar_jax.search.engine import devices, prefill, sizes, state
from rstar_jax.search.tree import init
from rstar_jax.settings.errors import UserError

MARGIN = 0.9  # of the free memory; the rest is for what compiled functions work with
FEW_SLOTS = 16  # are all used at once, as fewer would be hardly faster
TREES_FOR_SLOTS = 3  # as many trees in flight as fill the slots this many times
STEP = 64  # tokens of a step, where room is made for what trees usually have of them
KEPT = 0.5  # of what is left may be used to keep steps
# On CPUs, where they lie beside the arrays: what XLA keeps of a layer of a compiled decode step,
# most of it its HLO, and so many of them.
PROGRAM, PROGRAMS = 5 << 20, 8


@dataclasses.dataclass(frozen=True)
class Network:
    """What of a `model.Model` matters here.

    config: models.Config. cell_tokens: room of its cells. scored: whether steps are scored with it,
    as with the PPM.
    """

    config: object
    dtype: object
    cell_tokens: int
    scored: bool = False


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one device (or group of devices that share the weights) works on.

    Attributes:
      trees: in flight (G).
      slots: sequences decoded at once (B).
      kept: tokens that are kept of each tree beside its path, so as not to be computed again.
      rows: tokens of a decode step: where fewer slots are in use, drafts take their place.
      tree, slot: bytes of each, whatever runs.
      path, row: bytes of each tree and of each token of a step while one is decoded.
      call: bytes of the largest call that computes known tokens, while it runs.
      token: bytes of a token that is kept.
      programs: bytes of compiled functions.
      free: bytes that are free on the device now.
    """

    trees: int
    slots: int
    rows: int
    kept: int
    tree: int
    slot: int
    path: int
    row: int
    call: int
    token: int
    programs: int
    free: int

    @property
    def most(self) -> int:
        """Bytes, when all paths are at their longest."""
        held = self.trees * (self.tree + kept_room(self.kept) * self.token) + self.slots * self.slot
        decode = self.trees * self.path + max(self.slots, self.rows) * self.row
        return held + decode + self.call + self.programs

    @property
    def room(self) -> int:
        """Bytes that it may take."""
        return int(MARGIN * self.free)

    def largest(self, most: int, numbers: Callable[[int], dict[str, int]]) -> int:
        """The most, from 0 to `most`, whose `numbers` there is room for in place of its own."""

        def too_many(count: int) -> bool:
            return dataclasses.replace(self, **numbers(count)).most > self.room

        return bisect.bisect(range(1, most + 1), False, key=too_many)

    def __str__(self) -> str:
        return (
            f'{self.trees} trees in flight, {self.kept:,} tokens kept of each, and {self.slots} '
            f'slots on each device: at most {self.most / GIB:.2f} of {self.free / GIB:.2f} GiB free'
        )


def plan(
    config,
    networks: list[Network],
    mesh,
    total: int,
    slots: int,
    free: int | None = None,
) -> Plan:
    """Chooses the trees in flight and the slots of each device.

    Args:
      config: search.Config; `slots` and `trees_in_flight` are taken as they are where not 0.
      networks: of the policy, then of the PPM if there is one.
      mesh: local mesh (data, tensor).
      total: trees that each device is to search in all; there is no room needed for more. With
        one_size it does not count, as what is searched together must not matter.
      slots: that keep a device busy.
      free: bytes to plan with; None asks the devices.

    Raises:
      UserError: not one tree fits, or not those that the settings ask for; the devices do not tell
        their memory.
    """
    n, slots = config.candidates, config.slots or slots
    fewest = max(1, n // 2)  # slots that a tree fills
    nothing = _nothing(config, networks, mesh, free)

    def begun(trees: int) -> dict[str, int]:
        """A tree and the slots that it can fill, or as many slots as were asked for."""
        return {'trees': trees, 'slots': config.slots or min(slots, trees * fewest)}

    kind = sizes.of(mesh)
    enough = min(-(-TREES_FOR_SLOTS * slots // n), sizes.most_paths(slots))
    wanted = config.trees_in_flight or enough
    if not config.one_size:
        wanted = min(wanted, total)
    trees = nothing.largest(wanted, begun)
    fixed = config.trees_in_flight or config.one_size  # what is searched at once, whatever is free
    if trees < 1 or (fixed and trees < wanted):
        raise _no_room(nothing, config, begun(wanted if fixed else 1), trees)
    cells = trees * n
    used = cells if config.slots else kind.kept_busy(cells, n)
    chosen = dataclasses.replace(nothing, trees=trees)
    slots = chosen.largest(min(slots, max(used, FEW_SLOTS), cells), lambda x: {'slots': x})
    chosen = dataclasses.replace(chosen, slots=slots)
    drafted = config.drafts and not config.one_size
    rows = chosen.largest(kind.rows, lambda x: {'rows': x}) if drafted else 0
    chosen = dataclasses.replace(chosen, rows=rows)
    left = chosen.room - chosen.most
    fitting = int(KEPT * left // (trees * chosen.token)) - state.COPIED
    return dataclasses.replace(chosen, kept=max(0, min(_worth_keeping(config), fitting)))


def _no_room(nothing: Plan, config, needed: dict[str, int], fitting: int) -> UserError:
    """Of plans for so many trees as are `needed` at least, where some, or none, would fit."""
    need = dataclasses.replace(nothing, **needed).most / MARGIN / GIB
    expected = (
        f'{needed["trees"]} trees in flight need {need:.2f} GiB beside the weights, and '
        f'{nothing.free / GIB:.2f} GiB are free on a device'
    )
    remedy = (
        'lower path_tokens, step_tokens or candidates, or raise tensor to share the model among '
        'devices'
    )
    if fitting:
        return UserError('trees_in_flight', needed['trees'], expected, f'{fitting} fit; {remedy}')
    return UserError('path_tokens', config.path_tokens, expected, remedy)


def _nothing(config, networks: list[Network], mesh, free: int | None) -> Plan:
    """What each tree, slot and call takes, of which there are none yet."""
    if free is None and not device_bytes(mesh):
        raise UserError(
            '$XLA_PYTHON_CLIENT_ALLOCATOR',
            expected='with `platform`, the devices do not tell how much memory they have',
            remedy='unset it',
        )
    policy = networks[0]  # the only one that decodes
    tree = bytes_on_a_device(devices.shapes(mesh, init, 1, config.nodes))
    return Plan(
        trees=0,
        slots=0,
        rows=0,
        kept=0,
        tree=tree + sum(_tree_bytes(config, mesh, network) for network in networks),
        slot=_bytes(mesh, policy, state.empty_slots, 1, config.step_tokens),
        path=0 if policy.scored else _read_bytes(config, mesh, policy),
        # Logits, their weights, and a copy while they are summed: whole on each device. Where each
        # makes a part of them, the parts are sent and put together, too.
        row=(3 if mesh.shape['tensor'] == 1 else 7) * 4 * policy.config.vocab_size,
        call=max(_call_bytes(config, mesh, network) for network in networks),
        token=sum(_bytes(mesh, network, state.empty_kv, 1, 1) for network in networks),
        programs=_program_bytes(mesh, policy),
        free=free_bytes(mesh) if free is None else free,
    )


def kept_room(tokens: int) -> int:
    """Positions of an array that keeps so many tokens of a tree."""
    return tokens and tokens + state.COPIED


def _worth_keeping(config) -> int:
    """Tokens of all steps that a tree usually has; 0 where no walk comes by the same step twice.

    With one_size, too: what is kept depends on the free memory, and a kept step's rounding may
    differ from that of one that is computed again.
    """
    if config.one_size or config.candidates == 1:
        return 0
    if config.by_level:
        expansions = config.max_depth * config.width
    else:
        expansions = 2 * config.rollouts if config.rollouts > 1 else 0
    return STEP * config.candidates * expansions


def _tree_bytes(config, mesh, network: Network) -> int:
    """With half of a layer's part once more: one array that grows, or half of both in blocks."""
    path = _path_bytes(config, mesh, network)
    path += path // (2 * network.config.num_layers)
    return path + _bytes(mesh, network, state.empty_cells, config.candidates, network.cell_tokens)


def _path_bytes(config, mesh, network: Network, rows: int = 1) -> int:
    return _bytes(mesh, network, state.empty_path, rows, _longest_path(config))


def _bytes(mesh, network: Network, f, rows: int, positions: int) -> int:
    """Of a part of the `state` on each device, in its sharding."""
    made = network.config, rows, positions, network.dtype
    return bytes_on_a_device(devices.shapes(mesh, f, *made))


def _read_bytes(config, mesh, network: Network) -> int:
    """Of a path while it is decoded behind.

    On CPUs XLA copies the blocks of all layers before a chunk's first token; where they are no more
    than half of the paths, or lie there as bits (bfloat16), all paths.
    """
    if not devices.on_cpu(mesh):
        return 0
    return _path_bytes(config, mesh, network) // (2 if network.dtype == jnp.float32 else 1)


def _call_bytes(config, mesh, network: Network) -> int:
    """Of the largest call of known tokens: its rows' paths, and scores against these and its own.

    Of scores there are two, with their weights; of short rows, which come all at once, up to three
    on accelerators. On CPUs XLA copies the rows' paths of all layers first; on TPUs one is there.
    """
    shape, ways = network.config, mesh.shape['tensor']
    copied, layers = (2, 1) if devices.on_cpu(mesh) else (3, shape.num_layers)

    def of(rows: int, length: int) -> int:
        at_once, scored = (rows, copied) if length <= prefill.AT_ONCE else (1, 2)
        read = 1 if devices.platform(mesh) in prefill.PATHS_BY_ROW else at_once
        keys = read * _longest_path(config) + at_once * rows * length
        inner = 3 * shape.mlp_dim + 8 * shape.embed_dim
        whole = 4 * length * (scored * shape.num_heads * keys + rows * inner)
        paths = _path_bytes(config, mesh, network, read) // layers
        return paths + whole // (ways if shape.num_kv_heads % ways == 0 else 1)

    largest = functools.partial(sizes.of(mesh).largest_call, config.step_tokens)
    return max(of(*largest(scored)) for scored in {False, network.scored})


def _program_bytes(mesh, network: Network) -> int:
    return PROGRAMS * PROGRAM * network.config.num_layers if devices.on_cpu(mesh) else 0


def _longest_path(config) -> int:
    return config.path_tokens + state.COPIED
