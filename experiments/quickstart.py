"""Three rounds on a tiny model and generated problems: no download, no file.

    bash launch/quickstart.sh
    python -m rstar_jax.main --config=experiments/quickstart.py --workdir=runs/quickstart

Hardware: 2 CPU cores.
Time: 5:38 to 6:17 by launch/quickstart.sh (EPYC, nothing compiled before); of 5:38 the first policy
    1:11, searches 1:12, SFTs 1:00, PPM 0:52, evaluations 1:02. 2.2 GB of memory.
Score: greedy on 256 test problems at the start and after the rounds: 35.9, 59.4, 79.7, 80.5 %;
    seeds 5 to 7: 26.2, 55.5, 63.7, 71.5; 36.7, 55.5, 73.0, 78.1; 30.9, 51.2, 59.0, 62.1. Search
    with the PPM: 91.0; 81.6, 90.2, 71.5 %. The PPM puts right answers above wrong ones in 92.8;
    96.0, 94.8, 94.0 % of the cases, the policy's likelihood in 67.1; 59.4, 72.8, 68.2 %.

A 0.8M-parameter model learns from demonstrations whose author knows five of the verbs in which the
word problems are told, and guesses the others. The search finds out, by being right, what they
mean, and training on what it found teaches it: compare the rounds in the table. Four verbs mean
another operation each time; there the policy can only guess, but the PPM learns to see from the
program's output whether the result fits the story, and the search tries again: compare search and
policy alone. No test problem is ever searched or trained on. --config.seed=1 makes another world.
"""

from ml_collections import ConfigDict

from rstar_jax import settings


def get_config() -> ConfigDict:
    config = settings.default()
    config.policy.path = 'tiny'
    config.policy.dtype = 'float32'
    config.last_round = 3
    config.bootstrap.demonstrations = 6144
    config.training.bootstrap.batch_size = 16
    config.training.bootstrap.learning_rate = 2e-3
    config.data.problems = 'arithmetic'
    config.data.limit = 40

    config.search.rollouts = 4
    config.search.candidates = 6
    config.search.answers_kept = 'all'
    config.search.unvisited_value = 10.0  # every candidate is tried before one is tried again
    config.search.top_p = 0.95  # a tiny model's softmax has a long tail
    config.search.max_depth = 6
    config.search.step_tokens = 48
    config.search.path_tokens = 256

    config.curate.rounds = 'all'
    config.curate.final_step_pairs = 'trajectories'
    config.curate.trajectory_side = 2
    config.curate.edit_distance = 4  # steps are short: removing for adding is five edits

    config.training.one_size = True
    config.training.dtype = 'float32'
    config.training.bootstrap.length = 256
    for training in (config.training.sft, config.training.ppm):
        training.length = 256
        training.micro_batch = 16
    config.training.sft.epochs = 6
    config.training.sft.batch_size = 16
    config.training.sft.learning_rate = 1e-3
    config.training.ppm.epochs = 4
    config.training.ppm.batch_size = 16
    config.training.ppm.learning_rate = 1e-3

    config.eval.benchmarks = 'arithmetic'
    config.eval.limit = 256
    config.eval.trajectories = 1
    config.eval.rollouts = 4
    config.eval.candidates = 6
    config.eval.temperature = 1.0
    config.eval.strategies = 'greedy'
    policy_only = 'search,curate,sft,eval,export'
    return settings.schedule(
        config,
        {
            1: {'stages': policy_only},
            2: {'stages': policy_only, 'data.limit': 160},
            3: {'data.limit': 320, 'eval.strategies': 'greedy,mcts'},
        },
    )
