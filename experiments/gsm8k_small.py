"""Two rounds on GSM8K with a real model of 0.5B parameters, on one machine.

    python -m rstar_jax.main --config=experiments/gsm8k_small.py --workdir=runs/gsm8k_small \\
        --config.policy.path=qwen2.5-coder-0.5b-instruct.gguf \\
        --config.data.problems=gsm8k_train.jsonl --config.eval.benchmarks=gsm8k_test.json

Hardware: 2 CPU cores with bfloat16 instructions and 16 GiB of memory, or one GPU.
Time: not measured as a whole. By the speeds in experiments/LOG.md, 2 CPU cores: samples 1:20,
search 2:20, SFTs 0:40 and 1:10, PPM 1:00, evaluations 4:30; a long night. On a GPU: not measured.
Score: Qwen2.5-Coder-0.5B, cut to 157 problems in the first round (some of 8 candidates) and 276 in
the second, 386 different ones: greedy of 300 test problems 24.3 % [20-29] few-shot, 28.0 % [23-33]
and 33.0 % [28-39] after the rounds (41 problems won and 15 lost, p = 0.0007); 84, 90 and 95 % reach
an answer. The PPM puts right answers above wrong ones of the same test problem in 70 % [61-79] of
the cases (the policy's likelihood in 58 % [49-67]); one search with it answers 37.3 % (29 won, 16
lost against greedy, p = 0.07), one without 32.0 % (p = 0.02 between the two), the majority of 8
samples 36.0 % (16 won, 7 lost), weighted by the PPM 36.7 % (18 and 7, p = 0.04).

Its first round alone, cut to 119 problems (schedule.round1.stages=search,curate,sft,ppm,eval): of
100 test problems greedy solves 19.0 % (13 to 15 at the start), a search with that round's PPM
35.0 % [26-45] (17 won, 1 lost, p = 0.0001), one without it 22.0 % (14 won, 1 lost between the two,
p = 0.001).

The first round draws nine whole solutions of each of 400 problems with the few-shot prompt, the
second searches those and 400 more with the policy of the first; examples come from both. (The run
above had trees in both. The first round as it is here, cut to 149 problems, took greedy of the same
test problems from 23.3 % [19-28] to 29.0 % [24-34] in an hour: 33 won, 16 lost, p = 0.02; a second
one of samples, too, of 239 problems, to 31.0 % [26-36]: 38 won and 15 lost in both, p = 0.002; a
third, of 199 others, to 31.0 % again. The PPM of all three, of 257 problems, puts right answers
above wrong ones in 81.5 % [71-90] of the cases, and its best of 8 samples is right in 39.0 % of
100 test problems, of which greedy solves 24.0 %: 17 won and 2 lost, p = 0.0007. Of
63 problems, right samples took it from 20.0 to 29.3 %, right trajectories of trees of as many
tokens to 21.3 %, p = 0.017 between the two.) The PPM learns from whole solutions of different trees
of a problem, too, or these samples would give it no pairs. No test problem is searched or trained
on: what overlaps with the benchmark is taken out of the training problems. The last round has a
PPM, and is evaluated with samples and searches for as many tokens; a policy that solves less than
the one before it says so in the table. It goes on where it was stopped.

What the settings go by is in experiments/LOG.md. Keeping all answers finds 5.5 times as many right
trajectories for the same tokens; few candidates and more rollouts find more different programs;
copies of a program teach nothing new; behind a step that failed no answer was right; a general
model leaves the form of a solution now and then, which is not to be learnt; marks are learnt within
an epoch, boxes within three; a small model's samples are partly noise at temperature 1; the
paper's tanh saturates before so few pairs have taught a PPM anything, raw values held around 0 do
not; a PPM whose head is fitted first learns more from as many pairs. Policy and PPM are trained by
LoRA, which holds half the memory; all weights with --config.training.sft.lora=0
--config.training.sft.learning_rate=1e-5.
"""

from ml_collections import ConfigDict

from rstar_jax import settings


def get_config() -> ConfigDict:
    config = settings.default()
    config.policy.path = ''
    config.last_round = 2
    config.data.limit = 400

    config.search.prompt = 'few_shot'
    config.search.rollouts = 4
    config.search.candidates = 3
    config.search.error_threshold = config.eval.error_threshold = 1
    config.search.temperature = config.eval.temperature = 0.7
    config.search.answers_kept = config.eval.answers_kept = 'all'
    config.search.unvisited_value = config.eval.unvisited_value = 10.0
    config.search.path_tokens = 1536

    config.curate.rounds = 'all'
    config.curate.final_step_pairs = 'problem'
    config.curate.trajectories = 4
    config.curate.trajectory_side = 2
    config.curate.distinct = True
    config.curate.well_formed = True

    config.training.moments = 'bfloat16'
    for training in (config.training.sft, config.training.ppm):
        training.length = 1024
        training.lora = 16
    config.training.sft.learning_rate = 2e-4
    config.training.sft.epochs = 3
    config.training.sft.batch_size = 4
    config.training.ppm.epochs = 2
    config.training.ppm.batch_size = 8
    config.training.ppm.learning_rate = 1e-4
    config.training.ppm.squash = 'tanh5'
    config.training.ppm.center = 0.01
    config.training.ppm.head = 'fitted'

    config.eval.limit = 300
    config.eval.strategies = 'greedy'
    config.eval.mean_tokens = 1000
    config.eval.candidates = 4
    samples = {'search.candidates': 1, 'search.rollouts': 1, 'search.trees': 9}
    return settings.schedule(
        config,
        {
            1: {'stages': 'search,curate,sft,eval', 'curate.choice': 'right', **samples},
            2: {
                'data.limit': 800,
                'training.sft.epochs': 2,
                'eval.strategies': 'greedy,sampled,unguided,mcts',
            },
        },
    )
