"""One round on a few GSM8K problems with a small real model: the whole pipeline on a laptop.

    python -m rstar_jax.main --config=experiments/gsm8k_mini.py --workdir=runs/gsm8k_mini \\
        --config.policy.path=qwen2.5-coder-0.5b-instruct.gguf \\
        --config.data.problems=gsm8k_train.jsonl --config.eval.benchmarks=gsm8k_test.json

Hardware: 2 CPU cores, 24 GiB of memory, for a model of 0.5B parameters.
Time: not measured alone; Qwen2.5-Coder-0.5B-Instruct on 2 cores without bfloat16 instructions,
beside other work: search 32 minutes, SFT 13, PPM 5, each evaluation 11.
Score: of 100 test problems 84 % reach an answer and 15.0 % [9-23] are right before (few-shot), 97 %
and 18.0 % [12-27] after; the search solved 12 of 32 problems, that of a second round 18.

Each rollout ends in one program, whatever the number of candidates, so a few candidates and more
rollouts find more different programs for the same tokens.

The policy is any instruct model given by its path (Hugging Face directory, hub name or .gguf); it
has not seen the step form, so two worked examples show it (the few-shot prompt of round 1).
"""

from ml_collections import ConfigDict

from rstar_jax import settings


def get_config() -> ConfigDict:
    config = settings.default()
    config.policy.path = ''
    config.data.limit = 32

    config.search.prompt = 'few_shot'
    config.search.rollouts = 8
    config.search.candidates = 3
    config.search.error_threshold = 2
    config.search.temperature = 0.7
    config.search.step_tokens = 256
    config.search.answers_kept = 'all'

    config.curate.final_step_pairs = 'trajectories'
    config.curate.distinct = True
    config.curate.well_formed = True
    config.curate.trajectories = 4

    config.training.sft.epochs = 3
    config.training.sft.batch_size = 2
    config.training.sft.learning_rate = 1e-5
    config.training.sft.length = 1024
    config.training.sft.held_out = 0.1
    config.training.ppm.batch_size = 4
    config.training.ppm.length = 768

    config.eval.limit = 100
    config.eval.strategies = 'greedy'
    config.eval.error_threshold = 2
    return config
