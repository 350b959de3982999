"""Round 3: the search is guided by the PPM of round 2.

    python -m rstar_jax.main --config=experiments/round3.py --workdir=runs/full \\
        --config.data.problems=problems.jsonl --config.base.path=Qwen/Qwen2.5-Math-7B

Hardware: an accelerator that holds the policy, and where there is one the PPM, in bfloat16 (7B
parameters: 16 GB each), and for its training 16 bytes a parameter over all devices. A laptop runs
it with a model of 0.5B or less.
Time: not measured yet; set --config.data.limit for a first look, the progress line tells the rest.
Score: not measured here. The paper (Qwen2.5-Math-7B, MATH-500): 75.8 % policy alone,
87.0 % with search; 77.86 % of the 747k problems solved.

Searches with the models that round 2 left in the same workdir; others can be named with
--config.policy.path and --config.ppm.path.

--config=experiments/round3.py:paper or :released sets everything in which the two differ. With
neither: rollouts and candidates, lengths, epochs and the PPM's tanh are the paper's; how a tree
grows and what is paired, of which the paper says less, are the released code's.
"""

from ml_collections import ConfigDict

from rstar_jax import settings


def get_config(preset: str = '') -> ConfigDict:
    config = settings.preset(settings.paper_round(3), preset)
    config.eval.benchmarks = ','.join(
        f'tfds:rstar_problems/{name}' for name in ('math500', 'aime2024', 'amc23')
    )
    return config
