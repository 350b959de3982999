"""All four rounds of self-evolution in one command, with the paper's schedule of rounds.

    python -m rstar_jax.main --config=experiments/self_evolve.py:paper --workdir=runs/full \\
        --config.data.problems=problems.jsonl --config.policy.path=INSTRUCT_MODEL \\
        --config.base.path=Qwen/Qwen2.5-Math-7B

Hardware: as experiments/round1.py.
Time: not measured yet.
Score: not measured yet. The paper (Qwen2.5-Math-7B, MATH-500): 58.8 % before, 78.4 % after four
rounds by the policy alone, 89.4 % with search.

policy.path searches round 1; later rounds search with what the round before trained, and every
round trains again from base.path. What the rounds have of their own is in config.schedule; a key
given on the command line, such as --config.search.rollouts=4, holds for all of them.

:paper and :released behind the file's name are those of experiments/round1.py. With neither,
rollouts and candidates, lengths, epochs and the PPM's tanh are the paper's; how a tree grows and
what is paired, where the paper says otherwise, are the released code's.
"""

from ml_collections import ConfigDict

from rstar_jax import settings


def get_config(preset: str = '') -> ConfigDict:
    config = settings.preset(settings.paper_schedule(settings.default()), preset)
    config.last_round = 4
    config.eval.benchmarks = ','.join(
        f'tfds:rstar_problems/{name}' for name in ('math500', 'aime2024', 'amc23')
    )
    return config
