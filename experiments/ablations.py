"""What each part of the method is worth, in the quickstart's world: one table, one page.

    python -m rstar_jax.main --config=experiments/ablations.py --workdir=runs/ablations

Hardware: 2 CPU cores.
Time: 49 minutes, three seeds beside little else (EPYC).
Score: three seeds, 128 problems each. Search with any judge 79 to 81 %, without one 61 %; greedy
and the majority of samples 70 %. After one round, SFT on rejection samples gives 60 % (seeds 45 to
71), on trajectories of trees 48 to 50 % (42 to 55), on the policy's own samples 32 %: here trees
give less, as one tree of a problem solves fewer of the 40 problems (LOG.md).

Compared, for as many sampled tokens, and in the time that plain samples take:

    data       SFT on the policy's own samples, on the right ones of them, on right trajectories of
               trees, on those of the highest Q value
    judge      none, ORM, PQM, PRM and PPM, choosing among samples and guiding MCTS
    strength   the PPM of each round, with the policy of the first
    form       greedy, majority, best of n, beam, DVTS, MCTS, PUCT
    rollouts   1 to 64 rollouts of one tree, beside the majority of samples of as many tokens

DIR/ablations.json has all numbers, DIR/report/index.html the table, plots and where the method
loses, in words. It goes on where it was stopped; --config.ablations.groups=judge,form runs a part,
--config.ablations.seeds=5 adds seeds.
"""

import pathlib

from ml_collections import ConfigDict

from rstar_jax import settings


def get_config() -> ConfigDict:
    config = settings.load(str(pathlib.Path(__file__).with_name('quickstart.py')))
    config.ablations.seeds = 3
    config.ablations.problems = 48
    config.stages = 'bootstrap,search,curate,sft,ppm,eval'
    config.eval.strategies = 'greedy'
    config.eval.limit = 128
    config.eval.mean_tokens = 400
    # Every round has its PPM, which the quickstart needs at the end only.
    settings.command_line_wins(config, {'stages': '', 'eval.strategies': ''})
    return config
