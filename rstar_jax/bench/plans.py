"""Plans: the trainings that are claimed to fit on TPU slices, compiled for them without hardware.

One row for each of CLAIMS, in the form of `--plan` (rstar_jax.plan.topology), with the compiler's
collectives and what they bring to a chip. An error where one does not fit: the log and the README
say that it does. Needs the extra `plan`; a row takes about a minute on two cores.
"""

import dataclasses

from rstar_jax import parallel, training
from rstar_jax.models import published
from rstar_jax.parallel.chips import find_chip
from rstar_jax.parallel.memory import GIB
from rstar_jax.plan import topology
from rstar_jax.plan import trainings as trainings
from rstar_jax.settings.errors import UserError

BATCH = {'sft': (128, 4096), 'ppm': (512, 2048)}  # examples of a step, tokens: the paper's


@dataclasses.dataclass(frozen=True)
class Claim:
    """A training of a model on a slice: with LoRA of rank `lora`, or 0, of all weights."""

    topology: str
    model: str
    kind: str
    lora: int = 0

    @property
    def name(self) -> str:
        return f'{self.topology}_{self.model}_{self.kind}_{self.how}'

    @property
    def how(self) -> str:
        return f'lora{self.lora}' if self.lora else 'full'

    def settings(self):
        """As `training.sft` and `training.ppm` take them."""
        size, length = BATCH[self.kind]
        changes = {'batch_size': size, 'length': length, 'micro_batch': 1, 'lora': self.lora}
        return training.settings(self.kind, changes | {'dtype': 'bfloat16'})


SLICES_7B = 'v5e:4x4', 'v6e:2x4', 'v5p:2x2x1'
KINDS = 'sft', 'ppm'
CLAIMS = (
    *(Claim(slice_, 'qwen2.5-math-7b', kind) for slice_ in SLICES_7B for kind in KINDS),
    *(Claim('v5e:2x4', 'qwen2.5-math-1.5b', kind, rank) for rank in (0, 16) for kind in KINDS),
    *(Claim('v5e:1x1', 'qwen2.5-math-1.5b', kind, 16) for kind in KINDS),
    Claim('v5e:2x4', 'phi3-mini-4k', 'sft'),
    Claim('v5e:2x4', 'phi3-mini-128k', 'sft'),
)


def run(*, only: str = '') -> dict[str, float]:
    """Settings: only, claims whose name begins with it, such as v5e:1x1."""
    chosen = [claim for claim in CLAIMS if claim.name.startswith(only)]
    if not chosen:
        names = ', '.join(claim.name for claim in CLAIMS)
        raise UserError(f'--only={only}: expected how one of these begins: {names}')
    print(f'{"slice":8} {"weights":8} {topology.TRAINING_HEAD}')
    figures: dict[str, float] = {}
    for claim in chosen:
        figures |= {f'{claim.name}_{key}': value for key, value in _planned(claim).items()}
    print(f'\n{topology.TRAINING_NOTES}\n')
    return figures


def _planned(claim: Claim) -> dict[str, float]:
    """Prints a claim's row -> its figures."""
    chips = topology.slice_chips(claim.topology)
    chip, settings = find_chip(chips[0].device_kind), claim.settings()
    shape = published.SHAPES[claim.model]
    mesh = parallel.training_mesh(settings.batch_size, shape, chips)
    plan = trainings.plan(claim.kind, settings, shape, mesh, chip.memory)
    row = topology.training_row(claim.model, claim.kind, plan, chip)
    print(f'{claim.topology:8} {claim.how:8} {row}', flush=True)
    if plan.work is None:
        raise RuntimeError(f'{claim.name}: does not fit into {chip.memory / GIB:g} GiB')
    seconds = max(topology.least_seconds(plan, chip))
    return {
        'peak_gib': plan.peak / GIB,
        'seconds': seconds,
        'mfu': plan.needed / chip.flops / seconds,
        'compile_seconds': plan.work.seconds,
    }
