"""What reward models of each loss learn from the same trees: steps and answers of new problems.

Problems are dealt into `folds`. For each fold a model of each loss, which starts as `--model` with
a scalar head, learns from the trees of all other folds, as curation makes examples of them, and
ranks those of the fold: every problem is judged once, by models that have seen none of its trees.

    LOSS_pairs      preference pairs of steps and of whole solutions, as --final_step_pairs has
                    them: in which share of them the better has the higher value
    LOSS_answers    the same of all pairs of a right and a wrong solution of one problem
    LOSS_share      tokens that its training computes, prefixes shared, by those of rows apart
    LOSS_steps, LOSS_seconds    of the trainings, all folds together
    pairs, answers              how many are ranked; problems_pairs, problems_answers: of how many

_low and _high of a share are its 95 % interval, by resampling problems. --trees are a run's folder
of search, or files in interchange form. What was done stays in --workdir: the same command goes on.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import pathlib
import shutil
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from rstar_jax import data, models, parallel, steps, training
from rstar_jax.evals import metrics
from rstar_jax.job import atomic
from rstar_jax.job.progress import Line, of_training
from rstar_jax.settings import bounds
from rstar_jax.settings.errors import UserError
from rstar_jax.training import examples, layers, step, trainer

PARTS = ('learnt', 'held_out')  # folders of a fold's examples


def run(
    *,
    model: str = '',
    trees: str = '',
    losses: str = 'pairwise,pqm,orm',
    epochs: str = '2',
    folds: int = 2,
    final_step_pairs: str = 'trajectories',
    trajectory_side: int = 4,
    batch_size: int = 8,
    length: int = 1024,
    learning_rate: float = 1e-4,
    lora: int = 16,
    squash: str = 'tanh5',
    center: float = 0.01,
    head: str = 'fitted',
    dtype: str = '',
    workdir: str = '',
    seed: int = 0,
) -> dict[str, float]:
    """Settings: trees, folders and .jsonl files, and losses, separated by commas; epochs, of all
    losses or of each; final_step_pairs (trajectories: whole solutions of a tree, problem: of all
    trees of a problem) and trajectory_side, of curation. The others are those of a PPM's training.
    """
    if not model or not trees:
        raise UserError('bench judges: needs --model=MODEL and --trees=FOLDER or FILE')
    names = losses.split(',')
    for name in names:
        if name not in training.LOSSES:
            known = ', '.join(training.LOSSES)
            raise UserError(f'--losses={losses}: {name!r} is none of {known}')
    passes = _passes(epochs, len(names))
    settings = {
        'batch_size': batch_size,
        'length': length,
        'learning_rate': learning_rate,
        'lora': lora,
        'squash': squash,
        'center': center,
        'head': head,
        'dtype': dtype,
        'seed': seed,
        'held_out': 0.0,
    }
    rules = {
        'final_step_pairs': final_step_pairs,
        'trajectory_side': trajectory_side,
        'distinct': True,
        'well_formed': True,
    }
    for section, given in (('training.ppm', settings), ('curate', rules)):
        for key, value in given.items():
            bounds.check(f'{section}.{key}', value, f'--{key}')
    parts = _dealt(trees.split(','), folds, seed)
    found: dict[str, list[dict]] = collections.defaultdict(list)
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(workdir or stack.enter_context(tempfile.TemporaryDirectory()))
        for fold, held_out in enumerate(parts):
            here = folder / f'fold{fold}'
            others = [tree for part in parts if part is not held_out for tree in part]
            for part, chosen in zip(PARTS, (others, held_out)):
                _curate(chosen, here / part, rules)
            examples = _digest(here)
            for name, count in zip(names, passes):
                changed = settings | {'loss': name, 'epochs': count}
                task = _Task(model, here, changed, examples, final_step_pairs)
                found[name].append(task.done() or task.do())
    return _figures(found)


def _passes(epochs: str, count: int) -> list[int]:
    passes = [int(text) if text.isdecimal() else 0 for text in epochs.split(',')]
    if len(passes) not in (1, count) or min(passes) < 1:
        raise UserError(f'--epochs={epochs}: expected a number from 1, or one for each loss')
    return passes * count if len(passes) == 1 else passes


def _dealt(paths: Sequence[str], folds: int, seed: int) -> list[list[Any]]:
    """The trees by folds, those of one problem together."""
    of: dict[str, list[Any]] = collections.defaultdict(list)
    for path in paths:
        if path.endswith('.jsonl'):
            for tree in data.import_trees(path):
                of[tree['question']].append(tree)
        else:
            with data.TreeStore(path, writer=None) as store:
                for record in store:
                    of[record.problem['question']].append(record)
    if not of:
        raise UserError(
            f'--trees={",".join(paths)}: no trees there; expected folders of a search, or files'
        )
    if not 2 <= folds <= len(of):
        raise UserError(
            f'--folds={folds}: expected 2 to the number of problems, {len(of)} in --trees'
        )
    order = np.random.default_rng(seed).permutation(len(of))
    questions = [sorted(of)[place] for place in order]
    return [[tree for q in questions[k::folds] for tree in of[q]] for k in range(folds)]


def _curate(trees: list[Any], folder: pathlib.Path, rules: dict[str, Any]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    data.curate_to(trees, folder, **rules)


@dataclasses.dataclass(frozen=True)
class _Task:
    """One training and its ranking.

    Attributes:
      model: where it starts.
      fold: folder of its examples, `learnt` and `held_out`.
      settings: of training.ppm.
      examples: their digest.
      final_step_pairs: the rule by which they were curated.
    """

    model: str
    fold: pathlib.Path
    settings: dict[str, Any]
    examples: str
    final_step_pairs: str

    @property
    def folder(self) -> pathlib.Path:
        return self.fold / self.settings['loss']

    def done(self) -> dict[str, Any] | None:
        """What `do` gave before, if it did; UserError if that was something else."""
        path = self.folder / 'ranked.json'
        if not path.exists():
            return None
        found = json.loads(path.read_text(encoding='utf-8'))
        if found['of'] != self._of():
            raise UserError(
                f'{self.folder}: holds what another command made (model, trees or settings); give '
                'another --workdir'
            )
        return found

    def do(self) -> dict[str, Any]:
        """Trains and ranks -> {metrics, pairs, answers: {question: [ranked rightly, all]}, of}."""
        loss = self.settings['loss']
        kind, _ = training.LOSSES[loss]
        config = training.settings('ppm', self.settings)
        examples = data.load_examples(self.fold / 'learnt', kind)
        if not len(examples):
            remedy = 'more trees, or fewer folds'
            if kind == 'pairs' and self.final_step_pairs != 'problem':
                remedy = f'--final_step_pairs=problem (now {self.final_step_pairs}), {remedy}'
            raise UserError(f'{self.fold}: no {kind} to learn from: {remedy}')
        policy = models.load(self.model, training.start_dtype(config))
        with Line(f'{self.fold.name} {loss}') as line:
            ppm, metrics = training.ppm(
                policy,
                examples,
                config,
                self.folder,
                progress=lambda now: line.show(*of_training(now)),
                release=True,
            )
            found = {'of': self._of(), 'metrics': metrics} | _ranked(ppm, self.fold, config, line)
        atomic.write_json(self.folder / 'ranked.json', found)
        shutil.rmtree(self.folder / 'params')
        return found

    def _of(self) -> dict[str, Any]:
        return {'model': self.model, 'settings': self.settings, 'examples': self.examples}


def _digest(fold: pathlib.Path) -> str:
    """Of all examples in a fold's folder."""
    digest = hashlib.blake2b(digest_size=16)
    for part in PARTS:
        for kind in ('pairs', 'trajectories'):
            for example in data.load_examples(fold / part, kind):
                digest.update(json.dumps(example).encode())
    return digest.hexdigest()


def _ranked(ppm: Any, fold: pathlib.Path, config: Any, line: Any) -> dict[str, dict]:
    """{pairs and answers: {question: [those that the PPM ranks rightly, all]}}; takes it over."""
    pairs, trajectories = (
        data.load_examples(fold / 'held_out', kind) for kind in ('pairs', 'trajectories')
    )
    asked = {steps.prompt(trajectory['query']) for trajectory in trajectories}
    encoded = {
        'pairs': examples.pairs(pairs, ppm.tokenizer, config.length),
        'answers': examples.answer_pairs(trajectories, asked, ppm.tokenizer, config.length),
    }
    settings = config.copy_and_resolve_references()
    settings.lora = 0
    compiled = step.Compiled(ppm.config, settings, 'pairwise', parallel.one_device(), 1)
    params = layers.stack(ppm.params, release=True)
    found: dict[str, dict] = {}
    for kind, held_out in encoded.items():
        places = collections.defaultdict(list)
        for place, question in enumerate(held_out.questions):
            places[question].append(place)
        found[kind] = {}
        for number, (question, which) in enumerate(places.items()):
            line.show(f'ranks {kind}, {number}/{len(places)} problems', number / len(places))
            sums = trainer.evaluate(compiled, params, held_out, which, settings)
            found[kind][question] = [int(sums['pairs_right']), int(sums['pairs'])]
    return found


def _figures(found: dict[str, list[dict]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for loss, folds in found.items():
        for kind in ('pairs', 'answers'):
            counts = [count for fold in folds for count in fold[kind].values()]
            ranked = metrics.by_problem(*np.array(counts).reshape(-1, 2).T)
            figures[f'{loss}_{kind}'] = ranked['share']
            figures[f'{loss}_{kind}_low'], figures[f'{loss}_{kind}_high'] = ranked['interval95']
            figures[kind], figures[f'problems_{kind}'] = ranked['pairs'], ranked['problems']
        told = [fold['metrics'] for fold in folds]
        apart = sum(one['tokens'] / one['shared_prefix_tokens_share'] for one in told)
        figures[f'{loss}_share'] = sum(one['tokens'] for one in told) / apart
        figures[f'{loss}_steps'] = sum(one['steps'] for one in told)
        figures[f'{loss}_seconds'] = sum(one['seconds'] for one in told)
    return figures
