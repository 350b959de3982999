"""Every setting: its default and its meaning; and the paper's settings by round.

Keys of the sections `search` and `execution` have the defaults of `search.Config`; a test compares
them. What a value may be, `bounds` says.
"""

from typing import Any

from rstar_jax.settings.kinds import STAGES

PREVIOUS = 'previous'
TINY = 'tiny'
NONE = 'none'
ARITHMETIC = 'arithmetic'  # the built-in problems, in place of a file
ABLATIONS = ('data', 'judge', 'strength', 'form', 'rollouts')
STRATEGIES = ('greedy', 'sampled', 'unguided', 'mcts', 'puct', 'beam', 'dvts')  # of an evaluation

# key: (default, meaning)
KEYS: dict[str, tuple[Any, str]] = {
    'seed': (0, 'of every random choice; the same seed gives the same trees'),
    'first_round': (1, 'the round to begin with; 0: before round 1, policy.path is evaluated'),
    'last_round': (1, 'the round to end with; 0: only the evaluation of first_round=0'),
    'stages': (','.join(STAGES), 'which stages of each round to run, in this order'),
    'compiled': (
        'auto',
        "where compiled programs are kept for later runs: a folder; auto, in the user's cache "
        'folder, or where JAX_COMPILATION_CACHE_DIR says; off',
    ),
    'question': ('', 'solve this one question and print the solution, instead of a round'),
    'serve.port': (0, 'answer questions at this port, as a chat model of OpenAI; 0: do not'),
    'serve.host': (
        '127.0.0.1',
        'the address to listen at; 0.0.0.0: reachable from outside, which takes a key',
    ),
    'serve.key': ('', 'that clients must send; better given as $RSTAR_SERVE_KEY; empty: none'),
    'serve.trajectories': (16, 'most trees that one request may ask for; search.trees by default'),
    'serve.requests': (16, 'most requests at once; further ones are refused'),
    'policy.path': (
        'previous',
        "the model that searches: Hugging Face directory, hub name, .gguf, a round's policy; "
        '"previous": the policy of the round before in this workdir (of a question: of the newest '
        'that has one); "tiny": made on the spot; '
        'http://HOST:PORT/v1: an OpenAI-compatible server, whose key is taken from $OPENAI_API_KEY',
    ),
    'policy.weights': (
        '',
        'int8: policy and PPM in 8 bits while searching and evaluating; empty: as policy.dtype',
    ),
    'policy.model': ('', "the server's name for the model, where policy.path is a server"),
    'policy.requests': (32, 'requests in flight to that server at once'),
    'policy.seconds': (600.0, 'that one such request may take'),
    'policy.dtype': ('', 'float32 or bfloat16 while searching; empty: what the device is fast at'),
    'base.path': ('', 'the model that SFT starts from; empty: the policy of the first round'),
    'ppm.path': (
        'none',
        'the process preference model that guides the search: a directory; "none"; '
        '"previous": the PPM of the round before in this workdir',
    ),
    'bootstrap.demonstrations': (
        0,
        'built-in demonstrations to train the first policy on; 0: none',
    ),
    'data.problems': (
        '',
        'JSON, JSONL or parquet file of {index, question, answer} or a published layout; '
        '"hf:AI-MO/NuminaMath-CoT", "tfds:rstar_problems/gsm8k_train"; or "arithmetic"',
    ),
    'data.folder': ('data', 'where data sets given by name are looked for, and kept'),
    'data.limit': (
        0,
        'use only the first so many problems; 0: all ("arithmetic": how many); when it is raised, '
        'the search goes on with the others',
    ),
    'data.solved': (
        0,
        'leave out problems of which the searches of earlier rounds have so many trees with a '
        'right answer; others, up to data.limit, take their place; 0: none is left out. Needs '
        'curate.rounds=all, where what solves them stays',
    ),
    'data.sources': (
        '',
        'use only problems whose source or type is one of these, by commas, as amc_aime,olympiads '
        'or MATH_*; empty: all',
    ),
    'data.levels': ('', 'use only problems of this level, as 3-5; empty: all'),
    'data.answers': (
        '',
        'use only problems with these kinds of answer, by commas: integer, number (integers too), '
        'choice, text, expression; empty: all',
    ),
    'data.overlap': (
        13,
        'leave out problems that share so many consecutive words with one of eval.benchmarks, and '
        'those that are the same; 0: none is left out',
    ),
    'synthesize.problems': (
        0,
        'new problems that the policy of each round writes, to be searched beside the others; 0: '
        'none. Kept are those of which enough solutions agree',
    ),
    'synthesize.shown': (3, 'known problems that each is written after'),
    'synthesize.tokens': (256, 'longest of them, in tokens'),
    'synthesize.samples': (10, 'solutions of each new problem'),
    'synthesize.agree': (3, 'so many of these need to have the same answer; paper: 3 of 10'),
    'search.trees': (1, 'trees for each problem, with different seeds'),
    'search.mean_tokens': (
        0,
        'in place of a number of trees: so many that the tokens sampled for a problem come nearest '
        'to this, on average; 0: search.trees',
    ),
    'search.more_rollouts': (
        (),
        'rollouts of further trees for problems still unsolved, one tree for each number',
    ),
    'search.rollouts': (48, 'walks from the root, for each tree'),
    'search.candidates': (12, 'candidate steps sampled at each expansion'),
    'search.max_depth': (16, 'a step deeper than this ends its branch'),
    'search.strategy': ('mcts', 'mcts; puct, by the likelihood of steps; beam; dvts'),
    'search.width': (8, 'beams of beam search and DVTS'),
    'search.stop_reward': (2.0, 'a tree ends with its first answer of this reward; 2: never'),
    'search.exploration': (2.0, 'the constant c of UCT'),
    'search.error_threshold': (1, 'so many steps in a row with code errors end a branch'),
    'search.failed_steps': (
        'again',
        'where that is more than 1: again, the code of a failed step runs again with each step '
        'behind it, and its error counts again (released code); once, it counts once',
    ),
    'search.prompt': ('sft', 'sft, or few_shot for a model that was not trained on the step form'),
    'search.examples': (
        'fixed',
        'of the few_shot prompt: fixed, in one order; shuffled, in an order of its own for each '
        'tree (the released code shuffles for each step)',
    ),
    'search.step_tokens': (256, 'tokens that one step may have'),
    'search.temperature': (1.0, 'of sampling; the paper bootstraps at 0.7'),
    'search.top_k': (0, 'sample only from the so many likeliest tokens; 0: all'),
    'search.top_p': (1.0, 'and of these from the likeliest that have this share; 1: all'),
    'search.min_p': (0.0, 'and of these from those this many times as likely as the first; 0: all'),
    'search.repetition': (
        48,
        'a step that repeats itself for so many tokens ends its branch, as do three steps in a row '
        'that do the same and change nothing; 0: never',
    ),
    'search.tokens': (
        0,
        'tokens to sample for each problem, its trees one after another; 0: no limit',
    ),
    'search.agree': (
        0,
        'at test time a problem is done when its commonest answer leads by so many; 0: never',
    ),
    'search.answers_kept': ('first', "first: an answer ends its siblings; all: the paper's text"),
    'search.unvisited_value': (0.0, 'UCT of a child that was never visited'),
    'search.slots': (0, 'sequences decoded at once on each device; 0: chosen by the device'),
    'search.trees_in_flight': (0, 'trees worked on at once on each device; 0: fills the slots'),
    'search.path_tokens': (4096, 'longest prompt with partial solution, in tokens'),
    'search.one_size': (
        False,
        'slower, but trees are byte for byte the same whatever is searched beside them',
    ),
    'search.chunk': (8, 'decode steps between two looks of the host'),
    'search.drafts': (
        7,
        'tokens guessed behind each that is sampled where few slots are in use; no sample changes',
    ),
    'search.tensor': (1, 'devices that share the weights while searching; divides their number'),
    'job.start_seconds': (300.0, 'in which all processes of a job have to come'),
    'job.leases': (
        'counter',
        'how trees are shared out: counter, the next few to the process that is free; static, by '
        "the processes' numbers; ray, to workers on a Ray cluster",
    ),
    'job.devices': (0, 'accelerators that each worker on Ray has; 0: all of its host'),
    'job.keep_seconds': (300.0, 'between two writes of trees in flight; 0: they are not kept'),
    'execution.isolation': (
        'auto',
        'of model-written programs: auto, the layers that this machine has, where these keep an '
        "ordinary user's home safe; strict, all layers or nothing runs, which auto means where a "
        'server has the policy, or the results; weak, what layers there are; none, limits only',
    ),
    'execution.seconds': (10.0, 'time limit of one program'),
    'execution.memory_mb': (1024, 'memory limit of one program'),
    'execution.workers': (0, 'processes at most that run programs, and grade; 0: one a core'),
    'curate.sft': ('', 'file of {query, response} to train on, in place of what the trees give'),
    'curate.pairs': (
        '',
        'the same of {prompt, pos, neg, pos_count, neg_count} or {prompt, chosen, rejected}',
    ),
    'curate.rounds': (
        'own',
        'whose trees: own, those of the round; or all, those of the rounds before it as well',
    ),
    'curate.final_step_pairs': (
        'steps',
        'steps; trajectories: whole ones of a tree, as in the paper; or problem: of all its trees',
    ),
    'curate.trajectories': (2, 'correct trajectories kept for SFT, for each problem'),
    'curate.choice': (
        'best',
        'which are kept: best, right ones of the highest mean Q value (paper); right, any right '
        'ones, by chance; any, right or wrong',
    ),
    'curate.distinct': (False, 'of trajectories with the same program only the best is kept'),
    'curate.well_formed': (
        False,
        'only trajectories that keep to the form of a solution are kept, or paired as wholes',
    ),
    'curate.side': (2, 'positives and negatives paired at a node, each'),
    'curate.side_of_one': (4, 'the same where the other side has only one'),
    'curate.trajectory_side': (
        1,
        'with final_step_pairs=trajectories or problem, right and wrong ones paired, each',
    ),
    'curate.margin': (0.5, 'pairs whose Q values differ by less are dropped'),
    'curate.edit_distance': (20, 'pairs whose texts differ by fewer characters are dropped'),
    'curate.synthetic_correct': (
        0.0,
        'synthetic problems with a smaller share of right answers are dropped; the paper has 0.5',
    ),
    'eval.benchmarks': ('', 'names or paths of problem files, by commas; "arithmetic": built in'),
    'eval.folder': ('data', 'where the files of benchmarks given by name are'),
    'eval.limit': (0, 'only the first so many problems of each benchmark; 0: all'),
    'eval.strategies': (
        'greedy,mcts',
        'any of greedy (always run), sampled (plain samples: majority, pass@n, best by PPM), '
        'unguided (MCTS without PPM); and by PPM, where there is one: mcts, puct, beam, dvts',
    ),
    'eval.trajectories': (8, 'trees for each problem, with different seeds; 0: no search'),
    'eval.samples': (8, 'plain samples for each problem'),
    'eval.mean_tokens': (
        0,
        'in place of both: so many trees or samples of each strategy that the tokens sampled for a '
        'problem come nearest to this; 0: eval.trajectories and eval.samples',
    ),
    'eval.top': (
        0,
        'how many trees, the best by score, vote in the majority of a search by PPM; 0: half, '
        '4 to 8',
    ),
    'eval.prompt': (
        '',
        'sft or few_shot, for models that no round has trained; empty: as search.prompt',
    ),
    'eval.rollouts': (4, 'walks from the root, for each tree'),
    'eval.candidates': (32, 'candidate steps at each expansion'),
    'ablations.seeds': (
        0,
        'compare the method with what it would be without its parts, in place of a run: for so '
        'many seeds from `seed` on; 0: do not',
    ),
    'ablations.groups': (
        '',
        f'what is compared, any of {", ".join(ABLATIONS)}; empty: all',
    ),
    'ablations.rollouts': ((1, 2, 4, 8, 16, 32, 64), 'of the trees of the group rollouts'),
    'ablations.problems': (0, 'of each benchmark in the group rollouts; 0: eval.limit'),
}
# An evaluation has these of its own, so that no round's search changes what is measured.
EVAL_SEARCH = (
    *('max_depth', 'width', 'stop_reward', 'exploration', 'error_threshold', 'failed_steps'),
    *('examples', 'step_tokens', 'path_tokens', 'temperature', 'top_k', 'top_p', 'min_p'),
    *('answers_kept', 'unvisited_value', 'repetition', 'tokens', 'agree'),
)
for _key in EVAL_SEARCH:
    KEYS[f'eval.{_key}'] = (KEYS[f'search.{_key}'][0], f'as search.{_key}')

# The trainings have the same keys; TRAINING_CHANGES says which defaults differ.
TRAINING_KEYS: dict[str, tuple[Any, str]] = {
    'epochs': (2, 'passes over the examples'),
    'batch_size': (128, 'examples in one step of the optimiser'),
    'length': (4096, 'longest example, in tokens; longer ones are dropped and counted'),
    'micro_batch': (1, 'rows of `length` tokens on each device at once; of shorter ones more'),
    'one_size': (
        False,
        'all rows have one length: fewer shapes to compile, more padding; for small models',
    ),
    'learning_rate': (7e-6, 'of the first step; LoRA wants one about ten times as high'),
    'lora': (
        0,
        'rank of LoRA, as 16: only low-rank parts of the dense layers are trained, beside frozen '
        'weights; 0: all weights are trained',
    ),
    'schedule': ('linear', 'linear or cosine, from the first step down to 0'),
    'weight_decay': (0.1, 'of AdamW'),
    'moments': (
        'float32',
        "dtype of AdamW's first moment: bfloat16 saves 2 of the 12 bytes a trained weight takes",
    ),
    'grad_clip': (1.0, 'greatest norm of the gradient; 0: no limit'),
    'dtype': (
        '',
        'of the network: float32 or bfloat16; empty: what the device is fast at',
    ),
    'attention': (
        'auto',
        'auto: on TPUs in bfloat16, in rows of more than 512 tokens, by the splash kernel, else by '
        'a loop over pairs of blocks; loop: by that everywhere',
    ),
    'checkpoint_minutes': (
        10.0,
        'between two states on disk, from which a killed training goes on',
    ),
    'measure_every': (
        0,
        'steps between measurements of what is held out; 0: before the training and after it only',
    ),
    'keep': ('last', 'the parameters of the last step; or best: of the least held-out loss'),
}
SFT_KEYS: dict[str, tuple[Any, str]] = {
    'marks': (
        'tokens',
        'of the step language: tokens of the vocabulary, as in the paper; or text, as written',
    ),
    'marks_rate': (
        0.05,
        'learning rate of new tokens, as a share of the root mean square of their table',
    ),
    'held_out': (0.05, 'share of the problems, 128 at most, that are not trained on but measured'),
    'form': (
        0.5,
        'the run ends where a mark is the likeliest token in a smaller share of the held-out '
        'places where it is due; 0: goes on',
    ),
}
PPM_KEYS: dict[str, tuple[Any, str]] = {
    'loss': (
        'pairwise',
        "pairwise, which of two steps is better (the paper's PPM); orm, whether the answer is "
        'right; pqm, the Q value of each step; prm, whether each step led to a right answer',
    ),
    'squash': (
        'tanh',
        'tanh, in training and use (paper), or tanh5, with pairwise raw in training (code)',
    ),
    'center': (
        0.0,
        'with pairwise, holds raw values around 0, so that what all texts share does not saturate '
        'the squash; 0.01 is usual',
    ),
    'head': (
        'random',
        'what the scalar head begins as: random (paper), or fitted to the examples as the policy '
        'that it starts from reads them: the way from few problems; pairwise needs center with it',
    ),
    'dropout': (0.1, 'on what the scalar head reads'),
    'held_out': (0.1, 'share of the problems that are not trained on but measured'),
}
TRAINING_CHANGES: dict[str, dict[str, Any]] = {
    'bootstrap': {'epochs': 1, 'batch_size': 32, 'length': 512, 'learning_rate': 3e-3},
    'sft': {},
    'ppm': {'epochs': 1, 'batch_size': 512, 'length': 2048, 'micro_batch': 2},
}
for _name, _changes in TRAINING_CHANGES.items():
    for _key, (_value, _meaning) in TRAINING_KEYS.items():
        KEYS[f'training.{_name}.{_key}'] = (_changes.get(_key, _value), _meaning)
for _name in ('bootstrap', 'sft'):
    KEYS |= {f'training.{_name}.{_key}': _row for _key, _row in SFT_KEYS.items()}
for _key, _row in PPM_KEYS.items():
    KEYS[f'training.ppm.{_key}'] = _row

# Paper, section 3.4 and table 2: what changes from round to round.
ROUNDS: dict[int, dict[str, Any]] = {
    1: {
        'ppm.path': 'none',
        'search.rollouts': 8,
        'search.candidates': 5,
        'search.temperature': 0.7,
        'search.prompt': 'few_shot',
        'search.error_threshold': 2,
    },
    2: {'ppm.path': 'none', 'search.rollouts': 16, 'search.candidates': 8},
    3: {'ppm.path': 'previous', 'search.rollouts': 16, 'search.candidates': 8},
    4: {
        'ppm.path': 'previous',
        'search.rollouts': 16,
        'search.candidates': 8,
        'search.more_rollouts': (64, 128),
    },
}

# Everything in which paper and released code differ, as each has it. Rollouts and candidates of the
# paper go by round, see ROUNDS. It does not say what a child without visits is worth (the formula
# is undefined: here such children come first), nor what becomes of the steps behind a failed one.
PRESETS: dict[str, dict[str, Any]] = {
    'paper': {
        'search.answers_kept': 'all',
        'search.unvisited_value': 10.0,  # above any UCT value
        'search.failed_steps': 'once',
        'search.examples': 'fixed',
        'curate.final_step_pairs': 'trajectories',
        'curate.synthetic_correct': 0.5,
        'training.sft.length': 4096,
        'training.ppm.epochs': 1,
        'training.ppm.squash': 'tanh',
        'eval.rollouts': 4,
        'eval.candidates': 32,
    },
    'released': {
        'search.rollouts': 48,
        'search.candidates': 12,
        'search.answers_kept': 'first',
        'search.unvisited_value': 0.0,
        'search.failed_steps': 'again',
        'search.examples': 'shuffled',
        'curate.final_step_pairs': 'steps',
        'curate.synthetic_correct': 0.0,
        'training.sft.length': 2048,
        'training.ppm.epochs': 2,
        'training.ppm.squash': 'tanh5',
        'eval.rollouts': 12,
        'eval.candidates': 32,
    },
}
for _preset in PRESETS.values():
    _preset['search.repetition'] = 0
    for _key in ('answers_kept', 'unvisited_value', 'failed_steps', 'examples', 'repetition'):
        _preset[f'eval.{_key}'] = _preset[f'search.{_key}']
