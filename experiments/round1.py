"""Round 1: a general instruct model, few-shot, makes the first policy and a first PPM.

    python -m rstar_jax.main --config=experiments/round1.py --workdir=runs/full \\
        --config.data.problems=problems.jsonl --config.policy.path=INSTRUCT_MODEL \\
        --config.base.path=Qwen/Qwen2.5-Math-7B

Hardware: an accelerator that holds the policy, and where there is one the PPM, in bfloat16 (7B
parameters: 16 GB each), and for its training 16 bytes a parameter over all devices. A laptop runs
it with a model of 0.5B or less.
Time: not measured yet; set --config.data.limit for a first look, the progress line tells the rest.
Score: not measured here. The paper (Qwen2.5-Math-7B, MATH-500): 69.6 % policy alone,
75.2 % with search; 60.17 % of the 747k problems solved.

The paper searches round 1 with DeepSeek-Coder-V2-Instruct (236B); any instruct model will do, at a
price in solved problems.

--config=experiments/round1.py:paper or :released sets everything in which the two differ. With
neither: rollouts and candidates, lengths, epochs and the PPM's tanh are the paper's; how a tree
grows and what is paired, of which the paper says less, are the released code's.
"""

from ml_collections import ConfigDict

from rstar_jax import settings


def get_config(preset: str = '') -> ConfigDict:
    config = settings.preset(settings.paper_round(1), preset)
    config.eval.benchmarks = ','.join(
        f'tfds:rstar_problems/{name}' for name in ('math500', 'aime2024', 'amc23')
    )
    return config
