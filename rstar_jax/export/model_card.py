"""Model and dataset cards: what a run knows of a model that it made, in the hub's form.

WORKDIR/config.json, roundK/*/done.json, roundK/eval/results.json --origin_of--> Origin
    --model_card, data_card--> README.md, with the metadata that the hub reads
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import huggingface_hub as hub

from rstar_jax import steps
from rstar_jax.data import problem_sets
from rstar_jax.job import ledger
from rstar_jax.job.progress import mean, percent
from rstar_jax.models.checkpoint import HUB_NAME
from rstar_jax.settings import table
from rstar_jax.settings.errors import UserError, one_line

Figures = dict[str, Any]

PAPER = '[rStar-Math](https://arxiv.org/abs/2501.04519)'
TAGS = ('rstar-math', 'mathematics', 'mcts')
MODES = {
    'greedy': 'policy alone, greedy',
    'best': 'search, best by PPM score',
    'majority': 'search, majority of the best by PPM score',
    'weighted': 'search, majority weighted by PPM score',
    'pooled': 'search, all answers weighted by PPM score',
    'any': 'search, any trajectory right (pass@n)',
}


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a workdir tells of one of its rounds; all empty for a model of unknown origin.

    Attributes:
      number: the round.
      settings: flat config of each round, by 'round1', ...
      figures: of the round's complete stages, by folder.
      results: 'benchmarks' of its results.json, of what the run started from ('start') and of
        this round ('round').
    """

    number: int = 0
    settings: Mapping[str, Figures] = dataclasses.field(default_factory=dict)
    figures: Mapping[str, Figures] = dataclasses.field(default_factory=dict)
    results: Mapping[str, Figures] = dataclasses.field(default_factory=dict)

    @property
    def own(self) -> Figures:
        """The round's own settings."""
        return self.settings.get(f'round{self.number}', {})

    @property
    def base(self) -> str:
        """The model from which SFT started, in words where it has no name."""
        first = self.settings.get('round1', self.own)
        path = self.own.get('base.path') or first.get('base.path') or first.get('policy.path', '')
        if path == table.TINY:
            return 'a tiny model made on the spot'
        return _shown(path) if path != table.PREVIOUS and path else 'not known'

    @property
    def problems(self) -> str:
        """The problems that were searched."""
        return _shown(self.own.get('data.problems', ''))


def origin_of(path: str | pathlib.Path) -> Origin:
    """Reads what is known of a round's folder or of a model in it; an empty Origin elsewhere."""
    path = pathlib.Path(path).absolute()
    for folder in (path, *path.parents):
        number = ledger.round_number(folder.name)
        if number is not None and (folder.parent / 'config.json').is_file():
            break
    else:
        return Origin()
    stages = ('search', 'curate', 'policy', 'ppm', 'eval')
    done = {name: ledger.read_json(folder / name / 'done.json') for name in stages}
    results = {
        name: ledger.read_json(where / 'eval' / 'results.json')
        for name, where in (('start', folder.parent / 'round0'), ('round', folder))
    }
    return Origin(
        number,
        ledger.read_json(folder.parent / 'config.json'),
        {name: row['figures'] for name, row in done.items() if row},
        {name: row['benchmarks'] for name, row in results.items() if row},
    )


def write_model_card(
    directory: pathlib.Path, kind: str, origin: Origin, license_: str = '', name: str = ''
) -> None:
    """Writes README.md beside a model.

    Args:
      directory: of the model.
      kind: 'policy' or 'ppm'.
      license_: as the hub spells it ('apache-2.0'); left out where it is empty.
      name: of the model; the directory's by default.
    """
    name = name or directory.name
    results = list(_eval_results(origin, kind))
    card = hub.ModelCardData(
        language='en',
        license=license_ or None,
        library_name='transformers',
        pipeline_tag='text-generation' if kind == 'policy' else 'text-classification',
        tags=[*TAGS, *(['process-reward-model'] if kind == 'ppm' else [])],
        base_model=origin.base if HUB_NAME.fullmatch(origin.base) else None,
        datasets=_hub_datasets(origin),
        model_name=name if results else None,
        eval_results=results or None,
    )
    told = POLICY if kind == 'policy' else PPM
    parts = [f'# {name}', told.format(paper=PAPER), *_made(origin), *_scores(origin, kind)]
    _write(directory / 'README.md', card, [*parts, USE[kind]])


def write_data_card(
    directory: pathlib.Path,
    origin: Origin,
    counts: Mapping[str, int],
    license_: str = '',
    name: str = '',
) -> None:
    """Writes README.md beside the data of a round.

    counts: file -> items in it.
    """
    # The hub's library reads no table without a row.
    tables = {name: file for name, file in TABLES.items() if counts.get(file)}
    card = hub.DatasetCardData(
        language='en',
        license=license_ or None,
        task_categories=['text-generation'],
        tags=list(TAGS),
        size_categories=[_size(max(counts.values(), default=0))],
        pretty_name=name or directory.name,
        configs=[
            {'config_name': name, 'data_files': file, **({'default': True} if not i else {})}
            for i, (name, file) in enumerate(tables.items())
        ],
    )
    rows = [('file', 'items', 'what')]
    rows += [(f'`{file}`', f'{n:,}', FILES[file]) for file, n in counts.items()]
    stored = 'the same as rstar_jax stores it (ArrayRecord); `more` folders belong beside the rest'
    rows.append(('`array_record/`', '', stored))
    parts = [f'# {name or directory.name}', DATA.format(paper=PAPER), _table(rows)]
    _write(directory / 'README.md', card, [*parts, *_made(origin)])


def check(path: pathlib.Path, kind: str) -> None:
    """Raises UserError where the hub's library does not accept a card; no network is needed.

    kind: 'model' or 'dataset'.
    """
    card = hub.ModelCard if kind == 'model' else hub.DatasetCard
    try:
        read = card.load(path, ignore_metadata_errors=False)
        if not read.data.to_dict():
            raise ValueError('no metadata')
    except Exception as error:  # of the parser of YAML too
        what = f'not a valid card ({one_line(error, None)})'
        raise UserError(str(path), expected=what) from None


def _eval_results(origin: Origin, kind: str) -> Iterator[hub.EvalResult]:
    for name, benchmark, mode, share in _measured(origin.results.get('round', {}), kind):
        row = problem_sets.SETS.get(name)
        yield hub.EvalResult(
            task_type='text-generation',
            task_name='Mathematics',
            dataset_type=row.hub if row else name,
            dataset_name=name,
            dataset_split=row.split if row else None,
            metric_type='accuracy',
            metric_name=MODES[mode],
            metric_value=round(100 * share, 2),
            metric_args={
                'problems': benchmark['problems'],
                'interval95': [round(100 * x, 2) for x in benchmark['interval95'][mode]],
                **({} if mode == 'greedy' else {'trajectories': _trajectories(benchmark)}),
            },
        )


def _measured(benchmarks: Figures, kind: str) -> Iterator[tuple[str, Figures, str, float]]:
    """(benchmark, its figures, mode, share right) of what was measured; a PPM's: the searches."""
    for name, benchmark in benchmarks.items():
        search = benchmark['search'] or {}
        shares = {'greedy': benchmark['greedy'], **search}
        # Of one tree a problem there is but one answer.
        for mode in ('greedy', 'best') if search.get('trajectories') == 1 else MODES:
            if shares.get(mode) is not None and (kind == 'policy' or mode != 'greedy'):
                yield name, benchmark, mode, shares[mode]


def _trajectories(benchmark: Figures) -> float:
    return benchmark['search']['trajectories']


def _made(origin: Origin) -> Iterator[str]:
    if not origin.settings:
        yield '## How it was made\n\nNothing is known here of how it was made or what it scores.'
        return
    own, figures = origin.own, origin.figures
    rows = [('', ''), ('base model', origin.base)]
    rows.append(('round of self-evolution', f'{origin.number}'))
    if origin.problems:
        rows.append(('problems', origin.problems))
    if found := figures.get('search'):
        rows.append(
            (
                'search',
                f'{found["trees"]:,} trees, {own["search.rollouts"]} rollouts with '
                f'{own["search.candidates"]} candidates a step; {found["solved"]:,} of '
                f'{found["problems"]:,} problems solved',
            )
        )
    if found := figures.get('curate'):
        counts = f'{found.get("sft", 0):,} SFT examples, {found.get("pairs", 0):,} preference pairs'
        rows.append(('training data', counts))
    for name, title in (('sft', 'SFT'), ('ppm', 'PPM')):
        told = {key: own.get(f'training.{name}.{key}') for key in TRAINING}
        text = ', '.join(f'{key} {value}' for key, value in told.items() if value not in (None, 0))
        rows.append((f'training, {title}', text))
    yield '## How it was made\n\n' + _table(rows)


def _scores(origin: Origin, kind: str) -> Iterator[str]:
    measured = list(_measured(origin.results.get('round', {}), kind))
    if not measured:
        return
    start = origin.results.get('start', {})
    rows = [('benchmark', 'problems', 'how', 'right', '95 % interval', 'before the run')]
    for name, benchmark, mode, share in measured:
        low, high = (100 * x for x in benchmark['interval95'][mode])
        before = start.get(name, {})
        shares = {'greedy': before.get('greedy'), **(before.get('search') or {})}
        rows.append(
            (
                *(name, f'{benchmark["problems"]:,}', MODES[mode], percent(share)),
                *(f'{low:.1f} to {high:.1f}', percent(shares.get(mode))),
            )
        )
    yield '## Scores\n\n' + _table(rows)
    own = origin.own
    text = (
        'Policy alone: one solution a problem, the likeliest token each time. Answers are compared '
        'with the ground truth by mathematical equivalence. Intervals are Wilson score intervals '
        'over the problems.'
    )
    if any(mode != 'greedy' for _, _, mode, _ in measured):
        trees = sorted({_trajectories(b) for _, b, mode, _ in measured if mode != 'greedy'})
        text += (
            f' Search: {" or ".join(map(mean, trees))} tree{"s" * (trees != [1])} a problem '
            f'({_strategy(own)}, {own.get("eval.rollouts")} rollouts, '
            f'{own.get("eval.candidates")} candidates a step, temperature '
            f'{own.get("eval.temperature")}), steps and answers scored by the PPM of the same '
            'round, without knowing the answer.'
        )
    yield text


def _strategy(own: Figures) -> str:
    """The search by PPM whose figures are a benchmark's `search`; its key has had two names."""
    names = own.get('eval.strategies') or own.get('eval.strategy') or ''
    guided = table.SETTINGS['search.strategy'].choices
    asked = (name.strip() for name in names.split(','))
    return next((name for name in asked if name in guided), guided[0])


def _hub_datasets(origin: Origin) -> list[str] | None:
    source = origin.own.get('data.problems', '')
    name = source.partition('@')[0].rpartition('/')[2]
    if source.startswith('hf:'):
        return [source.removeprefix('hf:').partition('@')[0].partition(':')[0]]
    return [problem_sets.SETS[name].hub] if name in problem_sets.SETS else None


def _shown(path: str) -> str:
    """A hub name as it is; of a path its last part: where it lay is nobody's concern."""
    named = re.match(r'hf:|tfds:|https?:', path)
    local = path.endswith('.gguf') or pathlib.Path(path).exists()
    is_name = HUB_NAME.fullmatch(path) and not local
    return path if named or is_name else pathlib.PurePath(path).name


def _table(rows: list[tuple[str, ...]]) -> str:
    lines = ['| ' + ' | '.join(row) + ' |' for row in rows]
    return '\n'.join([lines[0], '|' + '---|' * len(rows[0]), *lines[1:]])


def _size(count: int) -> str:
    """The hub's name for a number of rows."""
    limits = ((1e3, 'n<1K'), (1e4, '1K<n<10K'), (1e5, '10K<n<100K'), (1e6, '100K<n<1M'))
    return next((name for limit, name in limits if count < limit), '1M<n<10M')


def _write(path: pathlib.Path, card: hub.CardData, parts: list[str]) -> None:
    text = '\n\n'.join(parts)
    path.write_text(f'---\n{card.to_yaml()}\n---\n\n{text}\n', encoding='utf-8')


TRAINING = ('epochs', 'batch_size', 'learning_rate', 'length', 'lora', 'loss')
POLICY = (
    'A policy that solves mathematical problems step by step as a Python program whose output it '
    'is shown, after {paper}. Made with rstar_jax by searching over steps and training on what was '
    'found.'
)
PPM = (
    'A process preference model (PPM), after {paper}: it reads a question and a partial solution '
    'and tells, in [-1, 1], how good the last step is. Made with rstar_jax.'
)
DATA = (
    'What one round of self-evolution after {paper} searched and learnt from: search trees over '
    'program steps, right solutions, and pairs of a better and a worse step. Made with rstar_jax.'
)
FILES = {
    'sft.json': 'right solutions: `{query, response}`',
    'pairs.json': 'steps behind the same prefix: `{prompt, pos, neg, pos_count, neg_count}`',
    'trl_preference.jsonl': "the pairs in TRL's form: `{prompt, chosen, rejected}`",
    'trl_stepwise.jsonl': 'solutions step by step: `{prompt, completions, labels}`, label: whether '
    'a right answer was reached through the step',
    'trees.jsonl': 'every search tree: `{index, question, answer, rstar: {tag: node}}`',
}
TABLES = {
    'sft': 'sft.json',
    'preference': 'trl_preference.jsonl',
    'pairs': 'pairs.json',
    'stepwise': 'trl_stepwise.jsonl',
}
_PROMPT = json.dumps(steps.prompt('QUESTION'), ensure_ascii=False)
USE = {
    'policy': f"""## How to use it

The prompt of a question, and the end of a step:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(NAME)
model = AutoModelForCausalLM.from_pretrained(NAME)
prompt = {_PROMPT}
tokens = tokenizer(prompt, return_tensors='pt')
print(tokenizer.decode(model.generate(**tokens, max_new_tokens=256)[0]))
```

It writes `{steps.CODE_END}` where its program is to be run; what the program prints belongs behind
it, as `{steps.OUTPUT}...{steps.OUTPUT_END}`. rstar_jax does that, and searches:

    python -m rstar_jax.main --config=experiments/solve.py --config.policy.path=NAME \\
        --config.question='QUESTION'""",
    'ppm': """## How to use it

The decoder is a Hugging Face model; the scalar head is in `value_head.bin`
(`v_head.summary.weight`, `v_head.summary.bias`), read at the last token; `ppm_squash` in
`config.json` says how its value comes into [-1, 1].

```python
from rstar_jax import models

ppm = models.load_ppm(DIRECTORY)
ppm.scores(tokens, lengths)     # f32[B] in [-1, 1]
```""",
}
