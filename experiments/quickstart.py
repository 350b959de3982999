"""One round on a tiny model and generated problems: no download, no file.

    bash launch/quickstart.sh
    python -m rstar_jax.main --config=experiments/quickstart.py --workdir=runs/quickstart

Hardware: 2 CPU cores.
Time: 2:23 (EPYC) to 3:48 (Xeon, busy): first policy 1:01, search 0:26, SFT and PPM 0:19,
    evaluation 0:37 of the faster.
Score: the policy alone solves 55-56 % of 64 problems before the round and 58-59 % after it, in
    these runs. The PPM has too few pairs here to be of help.

A 0.8M-parameter model learns from demonstrations that use half of the verbs in which the word
problems are told. The search finds out, by being right, what the other verbs mean, and training on
what it found teaches it: compare rounds 0 and 1 in the table. --config.last_round=2 adds a round.
"""

from ml_collections import ConfigDict

from rstar_jax import configs


def get_config() -> ConfigDict:
    config = configs.default()
    config.policy.path = 'tiny'
    config.policy.dtype = 'float32'
    config.bootstrap.demonstrations = 7680
    config.training.bootstrap.batch_size = 32
    config.training.bootstrap.learning_rate = 3e-3
    config.data.problems = 'arithmetic'
    config.data.limit = 192

    config.search.rollouts = 8
    config.search.candidates = 6
    config.search.max_depth = 6
    config.search.step_tokens = 64
    config.search.path_tokens = 512

    for training in (config.training.bootstrap, config.training.sft, config.training.ppm):
        training.length = 256
        training.micro_batch = 16
    config.training.sft.epochs = 4
    config.training.sft.batch_size = 32
    config.training.sft.learning_rate = 5e-4
    config.training.ppm.epochs = 3
    config.training.ppm.batch_size = 8
    config.training.ppm.learning_rate = 1e-3

    config.eval.benchmarks = 'arithmetic'
    config.eval.limit = 64
    config.eval.trajectories = 3
    config.eval.rollouts = 1
    config.eval.candidates = 4
    return config
