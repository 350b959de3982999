"""Settings of a search."""

import dataclasses
from collections.abc import Collection

from rstar_jax import steps
from rstar_jax.settings import table
from rstar_jax.settings.errors import UserError

MOST_NODES = 1 << 20  # of a tree: some 50 MB of arrays; the paper's largest have 16 thousand


@dataclasses.dataclass(frozen=True)
class Config:
    """What is searched, and with which resources. Defaults are those of the released code.

    Attributes:
      rollouts: walks from the root of one tree.
      candidates: steps sampled at each node (n).
      max_depth: moves of one rollout; children deeper than this end as TOO_DEEP.
      exploration: c of UCT.
      error_threshold: consecutive steps with code errors that end a branch.
      use_ground_truth: the reward of an answer is +1 or -1 by the ground truth (making training
        data); otherwise it is the PPM's score (test time).
      prompt: 'sft' or 'few_shot'.
      step_tokens: longest step, in tokens (T).
      temperature: of sampling; 0 takes the likeliest token.
      strategy: 'mcts', 'puct', 'beam' or 'dvts', see `strategies`.
      width: beams of beam search and DVTS.
      stop_reward: a tree is finished with its first answer of this reward: 1 while making training
        data, the first right one; at test time, a score that is good enough. 2 is never reached.
      failed_steps: 'again', the code of a failed step is run again with that of each step behind
        it, down to the end of the program, so that its error counts again (released code); 'once',
        a step fails by its own code alone. It matters where error_threshold is above 1.
      examples: of the few-shot prompt: 'fixed', in one order, or 'shuffled', by the tree.
      top_k, top_p, min_p: which tokens may be sampled at all, see `sampling.Settings`; the paper
        samples from the whole distribution.
      repetition: a step is stopped when so many tokens in a row each were the same as the one some
        way before, no further than 32; by local models only. Its branch ends, as does one of which
        three steps in a row do the same and change nothing by it. 0: neither.
      tokens: sampled for each problem: its trees grow one after another, and none begins, and no
        node is expanded, when so many have been sampled; 0 for no limit.
      agree: at test time a problem is finished when its commonest answer has been found so many
        times more often than any other; 0 never. Its trees grow one after another, too.
      answers_kept: 'first', where some candidate ends in an answer the first such is the only
        child; 'all', every candidate is a child (the paper's text).
      unvisited_value: UCT of a child that was never visited.
      slots: sequences decoded at once on each device (B); 0 chooses by the device.
      trees_in_flight: trees worked on at once on each device (G); 0 chooses three times as many
        as fill the slots.
      path_tokens: longest prompt with partial solution, in tokens (S); chooses the factors of a
        longrope model for all texts, see `models.rope.for_texts_of`.
      one_size: every function is compiled for one shape, the largest. Then nothing at all changes a
        tree; otherwise rounding may, as shapes follow what is being searched beside it: about one
        token in a million in float32.
      chunk: decode steps between two looks of the host; on accelerators up to four times as many
        while every slot has work.
      drafts: tokens drafted behind each slot's at most, where few slots are in use, see
        `engine.drafts`; 0, none.
      tensor: devices that share one model's weights; the others each run their own trees.
      workers: processes at most that run code, and that grade; 0: one a core, or as a container's
        quota allows.
      code_seconds: time limit of one program.
      code_memory_mb: memory limit of one program.
      isolation: 'auto', 'strict', 'weak' or 'none'; see `execution.Pool`.
    """

    rollouts: int = 48
    candidates: int = 12
    max_depth: int = 16
    exploration: float = 2.0
    error_threshold: int = 1
    use_ground_truth: bool = True
    prompt: str = 'sft'
    step_tokens: int = 256
    temperature: float = 1.0
    strategy: str = 'mcts'
    width: int = 8
    stop_reward: float = 2.0
    failed_steps: str = 'again'
    examples: str = 'fixed'
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition: int = 48
    tokens: int = 0
    agree: int = 0
    answers_kept: str = 'first'
    unvisited_value: float = 0.0
    slots: int = 0
    trees_in_flight: int = 0
    path_tokens: int = 4096
    one_size: bool = False
    chunk: int = 8
    drafts: int = 7
    tensor: int = 1
    workers: int = 0
    code_seconds: float = 10.0
    code_memory_mb: int = 1024
    isolation: str = 'auto'

    def __post_init__(self):
        for name, value in vars(self).items():
            # Synthesis has a prompt of its own; some fields are no setting.
            if name != 'prompt' and f'search.{name}' in table.SETTINGS:
                table.check(f'search.{name}', value)
        if self.agree and self.use_ground_truth:
            made = 'a search for training data goes by the ground truth'
            raise UserError('agree', self.agree, made, 'leave it at 0')
        if self.nodes > MOST_NODES:
            raise UserError(
                'candidates',
                self.candidates,
                f'a tree of {self.nodes:,} nodes, with rollouts={self.rollouts} (beams: '
                f'width={self.width}) and max_depth={self.max_depth}',
                f'lower one of them, a tree has at most {MOST_NODES:,} nodes',
            )
        steps.prompt('', self.prompt)  # raises where there is no such prompt

    @property
    def first_answer_only(self) -> bool:
        return self.answers_kept == 'first'

    @property
    def prompt_tokens(self) -> int:
        """Longest prompt that leaves room for a step; a text that is all in one may be shorter."""
        return self.path_tokens - (self.step_tokens if self.prompt != 'whole' else 0)

    @property
    def in_order(self) -> bool:
        """Whether a problem's trees grow one after another, as one decides about the next."""
        return bool(self.tokens or self.agree)

    @property
    def by_level(self) -> bool:
        """Whether trees grow level by level, by beams, and not by rollouts."""
        return self.strategy in ('beam', 'dvts')

    @property
    def nodes(self) -> int:
        """Most nodes that one tree can get (N).

        Each move of each rollout expands at most once; by level, each beam of each level, and
        the root.
        """
        if self.by_level:
            return 1 + (1 + self.max_depth * self.width) * self.candidates
        return 1 + self.rollouts * self.max_depth * self.candidates


def trees_for(tokens: int, first: Collection[float]) -> int:
    """Returns how many trees of each problem sample about `tokens` tokens a problem.

    first: tokens sampled for the first tree of each problem.
    """
    return max(1, round(tokens * len(first) / sum(first))) if sum(first) else 1


def sampled(config: Config) -> Config:
    """Returns the settings of best-of-n and majority voting: each tree is one sampled solution."""
    return dataclasses.replace(config, strategy='mcts', candidates=1, rollouts=1)


def greedy(config: Config) -> Config:
    """Returns the settings of a policy on its own: one candidate, one rollout, temperature 0.

    Each step is run by itself, as while searching; the released code's greedy solution stops
    behind whole programs alone, so there a loop may go on past the end of a step.
    """
    return dataclasses.replace(sampled(config), temperature=0.0, use_ground_truth=False)
