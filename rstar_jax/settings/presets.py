"""The paper's settings by round, and everything in which paper and released code differ."""

from typing import Any

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
    for _key in ('answers_kept', 'unvisited_value'):
        _preset[f'eval.{_key}'] = _preset[f'search.{_key}']
