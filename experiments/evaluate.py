"""Evaluates a model on benchmarks: the policy alone, its samples, search with a PPM or without.

    python -m rstar_jax.main --config=experiments/evaluate.py --workdir=runs/evaluate \\
        --config.policy.path=runs/full/round4/policy --config.ppm.path=runs/full/round4/ppm \\
        --config.eval.benchmarks=math500,aime2024 --config.data.folder=data

Hardware: anything that holds the models; 8 trajectories of 4 rollouts x 32 candidates a problem are
much work for a CPU.
Time: not measured yet.
Score: not measured yet. The paper, round 4 of Qwen2.5-Math-7B, MATH-500 / AIME 2024: greedy
78.4 / 26.7, with search 89.4 / 50.0.

Results: WORKDIR/round0/eval/results.json. A model that was not trained on the step form needs
--config.eval.prompt=few_shot. Without a PPM, or beside it, there are plain samples and a search
that nothing guides: --config.eval.strategies=greedy,sampled,unguided,mcts. Every model needs a
workdir of its own; without --workdir it is runs/evaluate/MODEL.
"""

from ml_collections import ConfigDict

from rstar_jax import settings


def get_config() -> ConfigDict:
    config = settings.default()
    config.first_round = 0
    config.last_round = 0
    config.stages = 'eval'
    config.policy.path = ''
    config.eval.benchmarks = ','.join(
        f'tfds:rstar_problems/{name}' for name in ('math500', 'aime2024', 'amc23')
    )
    return config
