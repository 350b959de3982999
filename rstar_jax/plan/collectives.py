"""What a compiled program exchanges between devices, read from the text of its HLO.

A device's program is a graph of computations: the entry calls others, loops run their body many
times, and fused or asynchronous collectives stand in computations of their own. So each collective
is counted as often as the entry comes to it. The compiler for TPUs cuts a collective into a chain
of fusions, each of which shows it whole: a chain counts once.
"""

import dataclasses
import functools
import math
import re

KINDS = ('all-gather', 'reduce-scatter', 'all-reduce', 'all-to-all', 'collective-permute')

_COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$')
_INSTRUCTION = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = (.*)$')
_CALLED = re.compile(
    r'(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)'
    r'|branch_computations=\{([^}]*)\}'
)
_ARRAY = re.compile(r'\b([a-z]+(\d*)\w*)\[([\d,]*)\]')
_LOOP = re.compile(r'condition=%?([\w.\-]+), body=%?([\w.\-]+)')
_KNOWN = re.compile(r'known_trip_count"?[:=]\{"?n"?[:=]"?(\d+)')
_INDEX = re.compile(r'index=(\d+)')
_CONSTANT = re.compile(r'constant\((\d+)\)')
_CHAIN = re.compile(r'(channel_id=\d+),.*chain_id="(\d+)"')
_MESH = re.compile(r'replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}')
_LISTED = re.compile(r'replica_groups=\{\{([\d,]+)\}')
_TILED = re.compile(r'replica_groups=\[\d+,(\d+)\]<=')
# The compiler's name for an all-reduce of which a device keeps its own part.
_SCATTERS = 'all-reduce-scatter'


@dataclasses.dataclass(frozen=True)
class Exchange:
    """Collectives of one kind: how often they run, and the bytes that a device receives."""

    calls: float = 0
    bytes: float = 0

    def __add__(self, other: 'Exchange') -> 'Exchange':
        return Exchange(self.calls + other.calls, self.bytes + other.bytes)

    def __mul__(self, times: float) -> 'Exchange':
        return Exchange(times * self.calls, times * self.bytes)


Exchanged = dict[str, Exchange]


def exchanged(text: str, trips: float = 1) -> Exchanged:
    """Kind -> what one run of a program exchanges; kinds that it lacks are left out.

    text: as of `jax.stages.Compiled.as_text()`. trips: of loops whose number of passes depends on
    the data; both branches of a conditional count. Bytes are those that any algorithm has to bring
    to a device, of n in a group and an array of b bytes: b (n - 1) / n, with b the whole array in
    an all-gather, a reduce-scatter and an all-to-all; twice that in an all-reduce; all of b in a
    permutation.
    """
    return _Program(text, trips).of_entry()


def total(*parts: Exchanged) -> Exchanged:
    """The sum of several."""
    kinds = [kind for kind in KINDS if any(kind in part for part in parts)]
    return {kind: sum((part.get(kind, Exchange()) for part in parts), Exchange()) for kind in kinds}


def scaled(part: Exchanged, times: float) -> Exchanged:
    """What `times` runs exchange."""
    return {kind: exchange * times for kind, exchange in part.items()}


class _Program:
    def __init__(self, text: str, trips: float):
        self._trips = trips
        self._everyone = int(match[1]) if (match := re.search(r'num_partitions=(\d+)', text)) else 1
        self._chains: set[tuple[str, ...]] = set()
        # By computation, by name: what stands right of the `=`. Each has its result as ROOT, too.
        self._computations: dict[str, dict[str, str]] = {}
        self._entry = ''
        lines: dict[str, str] = {}
        for line in text.splitlines():
            if header := _COMPUTATION.match(line):
                lines = self._computations[header[1]] = {}
                self._entry = header[1] if line.startswith('ENTRY') else self._entry
            elif instruction := _INSTRUCTION.match(line):
                lines['ROOT' if instruction[1] else instruction[2]] = instruction[3]
        self._of = functools.cache(self._exchanged)

    def of_entry(self) -> Exchanged:
        return self._of(self._entry)

    def _exchanged(self, computation: str) -> Exchanged:
        found: Exchanged = {}
        for line in self._computations.get(computation, {}).values():
            kind, exchange = _parse(line, self._everyone, _SCATTERS in computation)
            if kind and self._is_new(line):
                found = total(found, {kind: exchange})
            for times, called in self._calls(line):
                found = total(found, scaled(self._of(called), times))
        return found

    def _is_new(self, line: str) -> bool:
        chain = _CHAIN.search(line)
        if chain and chain.groups() in self._chains:
            return False
        self._chains |= {chain.groups()} if chain else set()
        return True

    def _calls(self, line: str) -> list[tuple[float, str]]:
        """(how often, computation) for all that an instruction runs."""
        _, operation, rest = _split(line)
        if operation in ('async-update', 'async-done'):  # their start has it
            return []
        times = self._passes(rest) if operation == 'while' else 1
        names = [one or several for one, several in _CALLED.findall(rest)]
        return [(times, name.strip().lstrip('%')) for part in names for name in part.split(',')]

    def _passes(self, loop: str) -> float:
        """Of a loop: as the text says, or while a number that starts at 0 is below a constant."""
        if known := _KNOWN.search(loop):
            return float(known[1])
        condition, body = (self._computations[name] for name in _LOOP.search(loop).groups())
        test = condition['ROOT']
        counter, limit = (condition.get(name, '') for name in [*_operands(test), '', ''][:2])
        place, limit = _INDEX.search(counter), _CONSTANT.search(limit)
        if 'direction=LT' not in test or not place or not limit:
            return self._trips
        after = _operands(body['ROOT'])[int(place[1])]
        steps = [_CONSTANT.search(body.get(name, '')) for name in _operands(body.get(after, ''))]
        step = next((int(found[1]) for found in steps if found), 1)
        return -(-int(limit[1]) // step)


def _operands(instruction: str) -> list[str]:
    inside = _split(instruction)[2].partition(')')[0]
    return [part.split()[-1].lstrip('%') for part in re.sub(r'/\*.*?\*/', '', inside).split(',')]


def _split(instruction: str) -> tuple[str, str, str]:
    """(type of the result, operation, the rest) of what stands right of the `=`."""
    end = depth = 0
    if instruction.startswith('('):
        for letter in instruction:
            end += 1
            depth += (letter == '(') - (letter == ')')
            if not depth:
                break
    end = instruction.find(' ', end)
    operation, _, rest = instruction[end + 1 :].partition('(')
    return instruction[:end], operation, rest


def _parse(line: str, everyone: int, scatters: bool) -> tuple[str, Exchange]:
    """Kind and exchange of an instruction; '' where it is no collective."""
    result, operation, rest = _split(line)
    kind = operation.removesuffix('-start')
    if kind not in KINDS:
        return '', Exchange()
    arrays = _ARRAY.findall(result)
    if operation.endswith('-start') and kind != 'all-reduce':
        # (operands, results, and of a permutation two numbers besides)
        arrays = [array for array in arrays if array[2]]
        arrays = arrays[len(arrays) // 2 :]
    size, group = sum(_bytes(*array[1:]) for array in arrays), _group(rest, everyone)
    if kind == 'collective-permute':
        return kind, Exchange(1, size)
    received = size * (group - 1) / group
    if kind == 'all-reduce':
        return (
            ('reduce-scatter', Exchange(1, received))
            if scatters
            else (kind, Exchange(1, 2 * received))
        )
    return kind, Exchange(1, received * group if kind == 'reduce-scatter' else received)


def _group(rest: str, everyone: int) -> int:
    if tiled := _TILED.search(rest):
        return int(tiled[1])
    if mesh := _MESH.search(rest):
        sizes = dict(re.findall(r"('\w+')=(\d+)", mesh[1]))
        axes = re.findall(r"('\w+')(?::\(\d+\)(\d+))?", mesh[2])  # 'x', or 4 of it: 'x':(1)4
        return math.prod(int(part or sizes[name]) for name, part in axes)
    listed = _LISTED.search(rest)
    return len(listed[1].split(',')) if listed else everyone


def _bytes(bits: str, dimensions: str) -> float:
    """Bytes of an array, as '16', '8,128' for bf16[8,128]; a `pred` has no bits in its name."""
    size = math.prod(int(n) for n in dimensions.split(',') if n)
    return size * (int(bits) if bits else 8) / 8
