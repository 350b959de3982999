"""Training speed: SFT, PPM and LoRA steps, against a plain padded PyTorch loop on the same weights.

Both sides start from the same random weights and train on the same random examples, whose lengths
are those of solutions of GSM8K: AdamW, clipping, all weights. Ours are the trainer's own compiled
functions, packing included; theirs is `_torch_trainer`, in a process of its own. The first losses
of both and the norms of their gradients must agree: in float32 within 1e-3, in bfloat16, where
roundings differ, within 2 % (`*_difference`, relative). Compilation and first steps are not
counted.

Figures are of the first of `dtypes`; those of another one end in its name. tokens_per_second counts
tokens of the examples, no padding, and shared prefixes as often as they are read by someone.
matmul_peak_share is `mfu` of the trainer's metrics for the SFT: training.flops over the time that
a large product of the dtype takes (parallel.peak_flops). bytes_per_parameter: parameters, moments
and gradients, frozen weights included, without activations. peak_gib: the most that a device holds
during an SFT step, by the compiler's count; peak_gib_recomputed: the same on a device without room
for activations (training.recompute), where layers run twice.

PyTorch in bfloat16 takes ten times as long on a CPU that has no instructions for it. There it is
measured, on both sides, with `slow_layers` of the model's layers and with fewer and shorter
examples: compare its figures with each other alone.
"""

import dataclasses
import functools
import importlib.util
import math
import time
from typing import Any

import jax
import numpy as np

from rstar_jax import models, parallel, training
from rstar_jax.bench import _torch_trainer
from rstar_jax.job import progress
from rstar_jax.models import decoder, published
from rstar_jax.parallel import fast_dtype
from rstar_jax.parallel.memory import GIB
from rstar_jax.settings.errors import UserError
from rstar_jax.training import examples, flops, packing, step
from rstar_jax.training.corpus import Encoded

DTYPES = {'float32': 1e-3, 'bfloat16': 2e-2}  # how far first losses and norms may differ
TURNS = 2
LENGTH = 2048  # tokens of a micro batch, at most
TINY = {'embed_dim': 128, 'mlp_dim': 512, 'num_layers': 3, 'num_heads': 4, 'num_kv_heads': 2}


@dataclasses.dataclass(frozen=True)
class Settings:
    """model: the name of a published shape, or tiny. examples: SFT examples of a step; nodes: tree
    nodes of 4 pairs of a step; batch: rows that PyTorch runs at once, 0 for ours alone; lora: rank;
    repeats: measured steps of a turn (see `best`), of which there are two; the best counts."""

    model: str = 'smollm2-135m'
    dtypes: str = 'float32,bfloat16'
    examples: int = 7
    nodes: int = 8
    batch: int = 2
    lora: int = 16
    slow_layers: int = 8
    repeats: int = 2
    seed: int = 0

    def __post_init__(self):
        if not {*self.names} <= DTYPES.keys():
            raise UserError('--dtypes', self.dtypes, f'expected some of {",".join(DTYPES)}')

    @property
    def names(self) -> list[str]:
        """The dtypes."""
        return self.dtypes.split(',')


def run(settings: Settings) -> dict[str, float]:
    """The figures of the SFT, the PPM and the SFT with LoRA."""
    # PyTorch's CPU build is no match for an accelerator.
    batch = settings.batch if jax.default_backend() == 'cpu' else 0
    if batch and importlib.util.find_spec('torch') is None:
        raise UserError(
            '--batch',
            batch,
            'needs PyTorch, to compare with',
            'pip install torch, or measure ours alone with --batch=0',
        )
    first, *_ = settings.names
    whole = Task(shape_of(settings.model), first, dataclasses.replace(settings, batch=batch))
    figures: dict[str, float] = {}
    for name in settings.names:
        task = dataclasses.replace(whole, dtype=name)
        if _crawls(name):
            layers = min(settings.slow_layers, whole.shape.num_layers)
            few = dataclasses.replace(whole.settings, examples=2, nodes=1)
            shape = whole.shape.replace(num_layers=layers)
            task = Task(shape, name, few, shorter=4)
        suffix = '' if name == first else f'_{name}'
        figures |= {f'{key}{suffix}': value for key, value in compare(task).items()}
    return figures | _low_rank(whole)


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained on what; shorter: divides the lengths of the examples."""

    shape: models.Config
    dtype: str
    settings: Settings
    shorter: int = 1

    def data(self, loss: str):
        rng, asked = np.random.default_rng(self.settings.seed), self.settings
        if loss == 'sft':
            return _sft_data(rng, asked.examples, self.shape.vocab_size, self.shorter)
        return pair_data(rng, asked.nodes, self.shape.vocab_size, self.shorter)

    def training(self, loss: str, rank: int = 0):
        changes = {'dtype': self.dtype, 'length': LENGTH, 'micro_batch': 1, 'lora': rank}
        if loss != 'sft':
            changes |= {'dropout': 0.0, 'squash': 'tanh5'}
        return training.settings('sft' if loss == 'sft' else 'ppm', changes)

    def model(self, loss: str):
        """A Policy or a PPM, random, its values about 1: with a new head all losses are log 2."""
        params = decoder.init_params(self.shape, jax.random.key(self.settings.seed))
        policy = models.Policy(self.shape, None, params)
        if loss == 'sft':
            return policy
        ppm = models.init_ppm(policy, self.settings.seed, 'tanh5')
        weight = np.random.default_rng(self.settings.seed).normal(size=(1, self.shape.embed_dim))
        weight = (weight / self.shape.embed_dim**0.5).astype(np.float32)
        head = {**ppm.params['value_head'], 'weight': jax.numpy.asarray(weight)}
        return dataclasses.replace(ppm, params={**ppm.params, 'value_head': head})


def compare(task: Task) -> dict[str, float]:
    """SFT and PPM, ours and theirs."""
    figures: dict[str, float] = {}
    for label, loss in (('sft', 'sft'), ('ppm', 'pairwise')):
        encoded, model, settings = task.data(loss), task.model(loss), task.training(loss)
        theirs = None
        if task.settings.batch:
            theirs = _torch_trainer.Apart(model, loss, encoded, settings, task.settings.batch)
        ours = _Ours(model, loss, encoded, settings)
        sides = {'ours': ours} | ({'PyTorch': theirs} if theirs else {})
        mine, *other = best(sides, task.settings.repeats, f'{label} {task.dtype}')
        micros = ours.micros
        figures[f'{label}_tokens_per_second'] = micros.alone / mine
        if theirs:
            theirs.close()
            figures[f'{label}_torch_tokens_per_second'] = micros.alone / other[0]
            figures[f'{label}_ratio_vs_torch'] = other[0] / mine
            for what in ('loss', 'norm'):
                values = getattr(ours, what), getattr(theirs, what)
                figures[f'{label}_{what}_difference'] = difference(
                    f'the first {what} of {loss}', task.dtype, *values
                )
        if loss == 'sft':
            figures['matmul_peak_share'] = ours.share(mine)
            figures['padding_share'] = 1 - micros.tokens / micros.places
            figures['bytes_per_parameter'] = ours.bytes_per_parameter
            figures['peak_gib'] = ours.peak_bytes / GIB
            figures['peak_gib_recomputed'] = ours.peak_bytes_recomputed() / GIB
        else:
            figures['ppm_matmul_peak_share'] = ours.share(mine)
            figures['shared_prefix_tokens_share'] = micros.tokens / micros.alone
    return figures


def best(sides: dict[str, Any], repeats: int, label: str) -> list[float]:
    """The least seconds of a step of each of `sides`.

    Steps of one side come in a row, as in a training: while another one runs, the system takes back
    memory that a step will need again. The sides take turns, so that whatever else the machine does
    meets all of them; the first step of a turn does not count.
    """
    best = dict.fromkeys(sides, math.inf)
    with progress.Line(label) as line:
        for turn in range(TURNS):
            for name, side in sides.items():
                for step in range(repeats + 1):
                    line.show(f'{name}, turn {turn + 1} of {TURNS}, step {step} of {repeats}')
                    seconds = side.step()
                    if step:
                        best[name] = min(best[name], seconds)
    return list(best.values())


def difference(what: str, dtype: str, ours: float, theirs: float) -> float:
    """Relative; an error where it is too large for the dtype. what: it is, in words."""
    relative = abs(ours - theirs) / abs(theirs)
    if not relative <= DTYPES[dtype]:
        raise RuntimeError(f'{what} in {dtype}: {ours} with us, {theirs} with PyTorch')
    return relative


def _low_rank(task: Task) -> dict[str, float]:
    """The SFT with LoRA."""
    settings = task.training('sft', task.settings.lora)
    ours = _Ours(task.model('sft'), 'sft', task.data('sft'), settings)
    (seconds,) = best({'ours': ours}, task.settings.repeats, f'sft {task.dtype}, LoRA')
    tokens = ours.micros.alone
    return {
        'lora_tokens_per_second': tokens / seconds,
        'lora_matmul_peak_share': ours.share(seconds),
        'lora_gflops_per_token': ours.flops / tokens / 1e9,
        'lora_bytes_per_parameter': ours.bytes_per_parameter,
    }


def shape_of(model: str):
    if model == 'tiny':
        return models.Config(
            family='llama', vocab_size=1024, head_dim=32, tie_embeddings=True, **TINY
        )
    return published.shape(model)


def _crawls(dtype: str) -> bool:
    slow = jax.default_backend() == 'cpu' and fast_dtype() == 'float32'
    return slow and dtype != 'float32'


def _sft_data(rng, count: int, vocab: int, shorter: int):
    encoded = Encoded(examples.SFT_FIELDS, LENGTH)
    for _ in range(count):
        prompt = int(rng.integers(50, 130)) // shorter
        response = int(np.clip(rng.lognormal(5.1, 0.35), 60, 600)) // shorter
        tokens = rng.integers(1, vocab, prompt + response).astype(np.int32)
        targets, weights = np.zeros_like(tokens), np.zeros(len(tokens), np.float32)
        targets[prompt - 1 : -1], weights[prompt - 1 : -1] = tokens[prompt:], 1
        field = {'targets': targets, 'weights': weights, 'mark': np.zeros_like(tokens)}
        encoded.add('', packing.Example((tokens,), (prompt - 1,), (field,)))
    return encoded


def pair_data(rng, nodes: int, vocab: int, shorter: int):
    encoded = Encoded(examples.PAIR_FIELDS, LENGTH, 2 * LENGTH)
    for _ in range(nodes):
        prefix = rng.integers(1, vocab, rng.integers(100, 300) // shorter)
        sides = []
        for _ in range(4):
            step = rng.integers(1, vocab, int(np.clip(rng.lognormal(3.6, 0.6), 8, 256)) // shorter)
            sides.append(np.concatenate([prefix, step]).astype(np.int32))
        example = packing.Example(
            tuple(sides),
            tuple(map(len, sides)),
            pairs=np.array([[0, 2], [0, 3], [1, 2], [1, 3]], np.int32),
            pair_weights=np.full(4, 0.25, np.float32),
            count=4,
        )
        encoded.add('', example)
    return encoded


class _Ours:
    """One optimiser step of the trainer over all examples, again and again.

    Attributes:
      loss, norm: of the first step, as `_torch_trainer.Torch` has them.
      micros: the micro batches of a step.
      flops: work of a step, see training.flops.
      bytes_per_parameter: all that stays on the device, and the gradients, by the model's size.
      peak_bytes: the most that the device holds during a step, by the compiler's count.
    """

    def __init__(self, model, loss: str, encoded, settings):
        self._settings, self._encoded = settings, encoded
        self._mesh = parallel.one_device()
        self._compiled = step.Compiled(model.config, settings, loss, self._mesh, 100)
        count = sum(p.size for p in jax.tree.leaves(model.params))
        self._state = self._compiled.init(model.params)
        params = self._state['params']  # gradients are like them
        held = self._compiled.held(self._state) + parallel.bytes_on_a_device(params)
        self.bytes_per_parameter = held / count
        self.loss: float | None = None
        self.norm: float | None = None
        self.micros = self._pack()
        name = 'step' if len(self.micros.batches) == 1 else 'accumulate'
        self._calls = [(name, batch) for batch in self.micros.batches]
        self.peak_bytes = self._compiled.prepare(self._state, self._calls)
        self._again = functools.partial(
            step.Compiled, model.config, settings, loss, self._mesh, 100, memory_bytes=1
        )
        work = flops.work(model.config, loss, settings.lora)
        self.flops = sum(map(work.of_batch, self.micros.batches))

    def peak_bytes_recomputed(self) -> int:
        """`peak_bytes` on a device that has no room for activations; not with LoRA."""
        return self._again().prepare(self._state, self._calls)

    def share(self, seconds: float) -> float:
        """A step's share of the peak."""
        return self.flops / seconds / parallel.peak_flops(self._mesh, self._settings.dtype)

    def _pack(self):
        everything = range(len(self._encoded))
        return packing.Micros(self._encoded, everything, self._settings, self._mesh)

    def step(self) -> float:
        """Seconds of one step, compilation left out."""
        start, compiling = time.monotonic(), self._compiled.seconds
        micros = self._pack()
        loss, norm = self._take(micros.batches, 1 / micros.weight)
        jax.block_until_ready(self._state)
        seconds = time.monotonic() - start - (self._compiled.seconds - compiling)
        if self.loss is None:
            self.loss, self.norm = float(loss) / micros.weight, float(norm)
        return seconds

    def _take(self, batches, scale: float):
        """One step, as the trainer takes it -> (sum of losses, norm of the gradients)."""
        compiled = self._compiled
        if len(batches) == 1:
            self._state, sums, norm = compiled.step(self._state, batches[0], scale, (0, 0))
            return sums['loss'], norm
        params, loss = self._state['params'], 0.0
        grads = compiled.zeros(params)
        for i, batch in enumerate(batches):
            grads, sums = compiled.accumulate(grads, params, batch, scale, (0, i))
            loss += sums['loss']
        self._state, norm = compiled.update(self._state, grads)
        return loss, norm
