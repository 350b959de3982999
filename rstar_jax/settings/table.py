"""The table of settings: a line for each, from which all that is said of settings is made.

`--help`, the reference, the ranges, and which stages a setting binds (`bound`) come from here; so
do the defaults of `search.Config` and its like, as a test proves.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rstar_jax.settings.errors import UserError
from rstar_jax.settings.setting import Range
from rstar_jax.settings.setting import Setting as S

PREVIOUS = 'previous'
TINY = 'tiny'
NONE = 'none'
ARITHMETIC = 'arithmetic'  # the built-in problems, in place of a file
ABLATIONS = ('data', 'judge', 'strength', 'form', 'rollouts')
STRATEGIES = ('greedy', 'sampled', 'unguided', 'mcts', 'puct', 'beam', 'dvts')  # of an evaluation

# Those that a round may be asked for, in the order in which they run. Beside them, `base` is the
# evaluation of the model that rounds train from, and what binds `start` binds that of round 0.
STAGES = ('bootstrap', 'synthesize', 'search', 'curate', 'sft', 'ppm', 'eval', 'export')
TRAININGS = ('bootstrap', 'sft', 'ppm')
MAKE = ('synthesize', 'search')
MEASURE = ('base', 'eval')
SEARCH = (*MAKE, *MEASURE)
FREE = ()  # binds nothing

ANY = None
FROM_0, FROM_1, SHARE = Range(least=0), Range(least=1), Range(least=0, most=1)
PROMPTS = ('sft', 'few_shot')
KEPT = ('first', 'all')


def _section(
    section: str, *rows: S, binds: tuple[str, ...] = FREE, of_run: bool = False
) -> list[S]:
    """Settings of one section; binds, of_run: of those that do not say it themselves."""
    return [
        dataclasses.replace(
            row,
            name=f'{section}.{row.name}'.lstrip('.'),
            binds=binds if row.binds is None else row.binds,
            of_run=of_run or row.of_run,
        )
        for row in rows
    ]


# fmt: off
_RUN = _section(
    '',
    S('seed', 0, Range(0, 2**32 - 1), 'the same seed gives the same trees',
      binds=('bootstrap', *SEARCH, 'sft', 'ppm')),
    S('first_round', 1, FROM_0,
      'the round to begin with; 0: before round 1, policy.path is evaluated', of_run=True),
    S('last_round', 1, Range(0, 1000),  # all are looked at before the first begins
      'the round to end with; 0: only the evaluation of first_round=0', of_run=True),
    S('stages', ','.join(STAGES), ANY, 'which stages of each round to run, in this order'),
    S('compiled', 'auto', ANY, 'where compiled programs are kept: a folder; auto, in the cache '
      'folder of the user, or where JAX_COMPILATION_CACHE_DIR says; off', of_run=True),
    S('question', '', ANY, 'solve this one question and print the solution; no round', of_run=True),
)
_SERVE = _section(
    'serve',
    S('port', 0, Range(0, 65535), 'answer at this port, as a chat model of OpenAI; 0: do not'),
    S('host', '127.0.0.1', ANY, 'to listen at; 0.0.0.0: reachable from outside, takes a key'),
    S('key', '', ANY, 'that clients must send; better given as $RSTAR_SERVE_KEY; empty: none'),
    S('trajectories', 16, FROM_1, 'most trees of one request; search.trees where it asks for none'),
    S('requests', 16, FROM_1, 'most requests at once; further ones are refused'),
    of_run=True,
)
_MODELS = [
    *_section(
        'policy',
        S('path', PREVIOUS, ANY,
          "the model that searches: Hugging Face directory, hub name, .gguf, a round's policy; "
          '"previous": the policy of the round before in this workdir (of a question: of the '
          'newest that has one); "tiny": made on the spot; http://HOST:PORT/v1: a server '
          "like OpenAI's, its key in $OPENAI_API_KEY", binds=('bootstrap', *MAKE, 'start')),
        S('model', '', ANY, "that server's name for the model", binds=(*MAKE, 'start')),
        S('requests', 32, FROM_1, 'requests in flight to that server at once', binds=FREE),
        S('dtype', '', ('', 'float32', 'bfloat16'),
          'while searching and evaluating; empty: what the device is fast at'),
        S('weights', '', ('', 'int8'),
          'int8: policy and PPM in 8 bits while searching and evaluating; empty: as policy.dtype'),
        binds=SEARCH,
    ),
    *_section(
        'ppm',
        S('path', NONE, ANY,
          'the process preference model that guides the search: a directory; "none"; "previous": '
          'the PPM of the round before in this workdir', binds=('search', 'start')),
    ),
    *_section(
        'base',
        S('path', '', ANY, 'the model that SFT starts from; empty: the policy of the first round',
          binds=('sft', 'base')),
    ),
    *_section(
        'bootstrap',
        S('demonstrations', 0, FROM_0,
          'built-in demonstrations to train the first policy on; 0: none', binds=('bootstrap',)),
    ),
]
_DATA = _section(
    'data',
    S('problems', '', ANY,
      'JSON, JSONL or parquet file of {index, question, answer} or a published layout; '
      '"hf:AI-MO/NuminaMath-CoT", "tfds:rstar_problems/gsm8k_train"; or "arithmetic", built in'),
    S('folder', 'data', ANY, 'where data sets and benchmarks given by name lie', binds=FREE),
    S('limit', 0, FROM_0,
      'use only the first so many problems; 0: all ("arithmetic": how many); when it is raised, '
      'the search goes on with the others', grows=('search',)),
    S('solved', 0, FROM_0,
      'leave out problems of which the searches of earlier rounds have so many trees with a right '
      'answer; others, up to data.limit, take their place; 0: none is left out. Needs '
      'curate.rounds=all, where what solves them stays'),
    S('sources', '', ANY,
      'use only problems whose source or type is one of these: amc_aime,olympiads; empty: all'),
    S('levels', '', ANY, 'use only problems of this level, as 3-5; empty: all'),
    S('answers', '', ANY,
      'use only problems with these kinds of answer, by commas: integer, number (integers too), '
      'choice, text, expression; empty: all'),
    S('overlap', 13, FROM_0,
      'leave out problems that share so many words in a row with one of eval.benchmarks, and '
      'those that are the same; 0: none is left out', binds=(*MAKE, 'curate')),
    binds=MAKE,
)
_SYNTHESIZE = _section(
    'synthesize',
    S('problems', 0, FROM_0,
      'new problems that the policy of each round writes, to be searched beside the others; 0: '
      'none. Kept are those of which enough solutions agree'),
    S('samples', 10, FROM_1, 'solutions of each new problem'),
    S('agree', 3, FROM_1, 'so many of these need to have the same answer; paper: 3 of 10'),
    binds=MAKE,
)
_SEARCH = _section(
    'search',
    S('trees', 1, FROM_1, 'trees for each problem, with different seeds'),
    S('mean_tokens', 0, FROM_0,
      'in place of a number of trees: so many that the tokens sampled for a problem come nearest '
      'to this, on average; 0: search.trees'),
    S('more_rollouts', (), FROM_1,
      'rollouts of further trees for problems still unsolved, one tree for each number'),
    S('rollouts', 48, FROM_1, 'walks from the root, for each tree'),
    S('candidates', 12, FROM_1, 'candidate steps sampled at each expansion'),
    S('strategy', 'mcts', ('mcts', 'puct', 'beam', 'dvts'),
      'mcts; puct, by the likelihood of steps; beam; dvts'),
    S('prompt', 'sft', PROMPTS, 'sft; few_shot for a model that was not trained on the step form',
      binds=(*MAKE, 'start')),
    S('temperature', 1.0, FROM_0, 'of sampling; the paper bootstraps at 0.7'),
    S('error_threshold', 1, FROM_1, 'so many steps in a row with code errors end a branch'),
    S('answers_kept', 'first', KEPT, "first: an answer ends its siblings; all: the paper's text"),
    S('unvisited_value', 0.0, ANY, 'UCT of a child that was never visited'),
    S('tokens', 0, FROM_0, 'to sample for a problem, its trees one after another; 0: no limit'),
    # What is measured would not compare, were these other ones in each round.
    *_section(
        '',
        S('max_depth', 16, FROM_1, 'a step deeper than this ends its branch'),
        S('width', 8, FROM_1, 'beams of beam search and DVTS'),
        S('exploration', 2.0, FROM_0, 'the constant c of UCT'),
        S('failed_steps', 'again', ('again', 'once'),
          'where error_threshold is more than 1: again, the code of a failed step runs again with '
          'each step behind it, and its error counts again (released code); once, it counts once'),
        S('examples', 'fixed', ('fixed', 'shuffled'),
          'of the few_shot prompt: fixed, in one order; shuffled, in an order of its own for each '
          'tree (the released code shuffles for each step)'),
        S('step_tokens', 256, FROM_1, 'tokens that one step may have'),
        S('path_tokens', 4096, FROM_1, 'longest prompt with partial solution, in tokens'),
        S('top_p', 1.0, Range(above=0, most=1),
          'sample only from the likeliest tokens that have this share; 1: all'),
        S('repetition', 48, FROM_0,
          'a step that repeats itself for so many tokens ends its branch, as do three steps in a '
          'row that do the same and change nothing; 0: never'),
        S('one_size', False, ANY,
          'slower, but trees are byte for byte the same whatever is searched beside them'),
        S('agree', 0, FROM_0, 'at test time a problem is done when its commonest answer leads by '
          'so many; 0: never', binds=MEASURE),
        binds=SEARCH, of_run=True,
    ),
    S('slots', 0, FROM_0, 'sequences decoded at once on each device; 0: as it can', binds=FREE),
    S('trees_in_flight', 0, FROM_0, 'at once on each device; 0: fills the slots', binds=FREE),
    S('drafts', 7, Range(0, 15), 'tokens guessed behind each that is sampled where few slots are '
      'in use; no sample changes', binds=FREE),
    S('tensor', 1, FROM_1, 'devices that share the weights while searching', binds=FREE),
    binds=MAKE,
)
_JOB = [
    *_section(
        'job',
        S('start_seconds', 300.0, FROM_1, 'in which all processes of a job have to come',
          of_run=True),
        S('leases', 'counter', ('counter', 'static', 'ray'),
          'how trees are shared out: counter, the next few to the process that is free; static, by '
          "the processes' numbers; ray, to workers on a Ray cluster"),
        S('devices', 0, FROM_0, 'accelerators that each worker on Ray has; 0: all of its host'),
        S('keep_seconds', 600.0, FROM_0,
          'between two writes of what is in flight, trees and the states of trainings; 0: only '
          'when asked to end'),
    ),
    *_section(
        'execution',
        S('isolation', 'auto', ('auto', 'strict', 'weak', 'none'),
          'of model-written programs: auto, the layers that this machine has, where these keep an '
          "ordinary user's home safe; strict, all layers or nothing runs, which auto means where a "
          'server has the policy, or the results; weak, what layers there are; none, limits only',
          binds=FREE),
        S('seconds', 10.0, Range(1, 86400), 'time limit of one program'),
        S('memory_mb', 1024, Range(64), 'memory limit of one program'),
        S('workers', 0, FROM_0, 'processes at most that run programs, and grade; 0: one a core',
          binds=FREE),
        binds=SEARCH,
    ),
]
_CURATE = _section(
    'curate',
    S('sft', '', ANY, 'file of {query, response} to train on, in place of what the trees give'),
    S('pairs', '', ANY,
      'the same of {prompt, pos, neg, pos_count, neg_count} or {prompt, chosen, rejected}'),
    S('rounds', 'own', ('own', 'all'),
      'whose trees: own, those of the round; or all, those of the rounds before it as well'),
    S('final_step_pairs', 'steps', ('steps', 'trajectories', 'problem'),
      'steps; trajectories: whole ones of a tree, as in the paper; or problem: of all its trees'),
    S('trajectories', 2, FROM_1, 'correct trajectories kept for SFT, for each problem'),
    S('choice', 'best', ('best', 'right', 'any'),
      'which are kept: best, right ones of the highest mean Q value (paper); right, any right '
      'ones, by chance; any, right or wrong'),
    S('distinct', False, ANY, 'of trajectories with the same program only the best is kept'),
    S('well_formed', False, ANY,
      'only trajectories that keep to the form of a solution are kept, or paired as wholes'),
    S('trajectory_side', 1, FROM_1,
      'with final_step_pairs=trajectories or problem, right and wrong ones paired, each'),
    S('margin', 0.5, FROM_0, 'pairs whose Q values differ by less are dropped'),
    S('edit_distance', 20, FROM_0, 'pairs whose texts differ by fewer characters are dropped'),
    S('synthetic_correct', 0.0, SHARE,
      'synthetic problems with a smaller share of right answers are dropped; the paper has 0.5'),
    binds=('curate',),
)
# The three trainings share these; each has some of its own, and the bootstrap the rest of SFT's.
_SHARED = _section(
    'training',
    S('dtype', '', ('', 'float32', 'bfloat16'),
      'of the network in training; empty: what the device is fast at'),
    S('moments', 'float32', ('float32', 'bfloat16'),
      "of AdamW's first moment: bfloat16 saves 2 of the 12 bytes a trained weight takes"),
    S('one_size', False, ANY,
      'all rows have one length: fewer shapes to compile, more padding; for small models'),
    S('schedule', 'linear', ('linear', 'cosine'),
      'of the learning rate, from the first step down to 0; the paper: linear, of Phi-3 cosine'),
    S('weight_decay', 0.1, FROM_0, 'of AdamW'),
    S('measure_every', 0, FROM_0,
      'steps between measurements of what is held out; 0: before the training and after it only'),
    S('keep', 'last', ('last', 'best'),
      'the parameters of the last step; or best: of the least held-out loss'),
    binds=TRAININGS,
)
LENGTH, HELD_OUT = Range(1, 2**20), Range(least=0, below=1)
_BOOTSTRAP = _section(
    'training.bootstrap',
    S('epochs', 1, FROM_1, 'passes over the demonstrations'),
    S('batch_size', 32, FROM_1, 'examples in one step of the optimiser'),
    S('length', 512, LENGTH, 'longest example, in tokens; longer ones are dropped and counted'),
    S('learning_rate', 3e-3, FROM_0, 'of the first step; all else is as training.sft has it'),
    binds=('bootstrap',),
)
_SFT = _section(
    'training.sft',
    S('epochs', 2, FROM_1, 'passes over the examples'),
    S('batch_size', 128, FROM_1, 'examples in one step of the optimiser'),
    S('length', 4096, LENGTH, 'longest example, in tokens; longer ones are dropped and counted'),
    S('learning_rate', 7e-6, FROM_0, 'of the first step; LoRA wants one about ten times as high'),
    *_section(
        '',
        S('micro_batch', 1, FROM_1,
          'rows of `length` tokens on each device at once; of shorter ones more'),
        S('lora', 0, Range(0, 2**16),
          'rank of LoRA, as 16: only low-rank parts of the dense layers are trained, beside frozen '
          'weights; 0: all weights are trained'),
        S('marks', 'tokens', ('tokens', 'text'),
          'of the step language: tokens of the vocabulary, as in the paper; or text, as written'),
        S('held_out', 0.05, HELD_OUT,
          'share of the problems, 128 at most, that are not trained on but measured'),
        S('form', 0.5, SHARE,
          'the run ends where a mark is the likeliest token in a smaller share of the held-out '
          'places where it is due; 0: goes on', binds=FREE),
        binds=('bootstrap', 'sft'),
    ),
    binds=('sft',),
)
_PPM = _section(
    'training.ppm',
    S('epochs', 1, FROM_1, 'passes over the pairs'),
    S('batch_size', 512, FROM_1, 'pairs in one step of the optimiser'),
    S('length', 2048, LENGTH, 'longest example, in tokens; longer ones are dropped and counted'),
    S('learning_rate', 7e-6, FROM_0, 'of the first step; LoRA wants one about ten times as high'),
    S('micro_batch', 2, FROM_1, 'as training.sft.micro_batch'),
    S('lora', 0, Range(0, 2**16), 'as training.sft.lora'),
    S('dropout', 0.1, HELD_OUT, 'on what the scalar head reads'),
    S('held_out', 0.1, HELD_OUT, 'share of the problems that are not trained on but measured'),
    S('loss', 'pairwise', ('pairwise', 'orm', 'pqm', 'prm'),
      "pairwise, which of two steps is better (the paper's PPM); orm, whether the answer is right; "
      'pqm, the Q value of each step; prm, whether each step led to a right answer'),
    S('squash', 'tanh', ('tanh', 'tanh5'),
      'tanh, in training and use (paper), or tanh5, with pairwise raw in training (code)'),
    S('center', 0.0, FROM_0,
      'with pairwise, holds raw values around 0, so that what all texts share does not saturate '
      'the squash; 0.01 is usual'),
    S('head', 'random', ('random', 'fitted'),
      'what the scalar head begins as: random (paper), or fitted to the examples as the policy '
      'that it starts from reads them: the way from few problems; pairwise needs center with it'),
    binds=('ppm',),
)
_EVAL = _section(
    'eval',
    S('benchmarks', '', ANY, 'names or paths, by commas; "arithmetic": built in', grows=MEASURE),
    S('limit', 0, FROM_0, 'only the first so many problems of each; 0: all', grows=MEASURE),
    S('strategies', 'greedy,mcts', ANY,
      'any of greedy (always run), sampled (plain samples: majority, pass@n, best by PPM), '
      'unguided (MCTS without PPM); and by PPM, where there is one: mcts, puct, beam, dvts',
      grows=MEASURE),
    S('trajectories', 8, FROM_0, 'trees for each problem, with different seeds; 0: no search'),
    S('samples', 8, FROM_1, 'plain samples for each problem'),
    S('mean_tokens', 0, FROM_0,
      'in place of both: so many trees or samples of each strategy that the tokens sampled for a '
      'problem come nearest to this; 0: eval.trajectories and eval.samples'),
    S('prompt', '', ('', *PROMPTS),
      'sft or few_shot, for models that no round has trained; empty: as search.prompt'),
    # An evaluation has these of its own, so that no round's search changes what is measured.
    S('rollouts', 4, FROM_1, 'walks from the root, for each tree'),
    S('candidates', 32, FROM_1, 'candidate steps at each expansion'),
    S('temperature', 1.0, FROM_0, 'as search.temperature'),
    S('error_threshold', 1, FROM_1, 'as search.error_threshold'),
    S('answers_kept', 'first', KEPT, 'as search.answers_kept'),
    S('unvisited_value', 0.0, ANY, 'as search.unvisited_value'),
    binds=MEASURE,
)
_ABLATIONS = _section(
    'ablations',
    S('seeds', 0, FROM_0,
      'compare the method with what it would be without its parts, in place of a run: for so many '
      'seeds from `seed` on; 0: do not'),
    S('groups', '', ANY, f'what is compared, any of {", ".join(ABLATIONS)}; empty: all'),
    S('rollouts', (1, 2, 4, 8, 16, 32, 64), FROM_1, 'of the trees of the group rollouts'),
    S('problems', 0, FROM_0, 'of each benchmark in the group rollouts; 0: eval.limit'),
    of_run=True,
)
# fmt: on

SETTINGS: dict[str, S] = {
    row.name: row
    for row in (
        *(*_RUN, *_SERVE, *_MODELS, *_DATA, *_SYNTHESIZE, *_SEARCH, *_JOB, *_CURATE),
        *(*_SHARED, *_BOOTSTRAP, *_SFT, *_PPM, *_EVAL, *_ABLATIONS),
    )
}
# Of an evaluation's search, those that it has of its own.
EVAL_SEARCH = tuple(
    name.removeprefix('eval.')
    for name in SETTINGS
    if name.startswith('eval.')
    and name.replace('eval.', 'search.') in SETTINGS
    and name not in ('eval.mean_tokens', 'eval.prompt')
)


def check(name: str, value: Any, argument: str = '') -> None:
    """Raises UserError where a setting cannot have a value, which is of the right kind.

    argument: what the value is called in the error, by default the setting's last word.
    """
    if refused := SETTINGS[name].refuses(value):
        raise UserError(argument or name.rpartition('.')[2], value, refused)


def training_rows(kind: str) -> dict[str, S]:
    """The settings of one training by their last word; kind: 'bootstrap', 'sft' or 'ppm'."""
    sections = {'bootstrap': ('sft', 'bootstrap')}.get(kind, (kind,))
    rows = [row for row in SETTINGS.values() if row in _SHARED]
    for section in sections:
        rows += [row for name, row in SETTINGS.items() if name.startswith(f'training.{section}.')]
    return {row.name.rpartition('.')[2]: row for row in rows}


def bound(stage: str, flat: Mapping[str, Any]) -> dict[str, Any]:
    """Of all settings, by dotted name, those that bind a stage.

    stage: one of STAGES, 'base', or 'start': what binds the evaluation of round 0 beside 'eval'.
    """
    return {
        name: flat[name] for name, row in SETTINGS.items() if stage in row.binds and name in flat
    }


def growing(stage: str) -> tuple[str, ...]:
    """Of these, those that may be raised or added to: the stage goes on then."""
    return tuple(name for name, row in SETTINGS.items() if stage in row.grows)
