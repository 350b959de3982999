"""An expander that computes everything anew for every token: what the engine must agree with."""

import collections

import jax
import jax.numpy as jnp
import numpy as np

from rstar_jax import parallel, steps
from rstar_jax.search.engine import sampling, state
from rstar_jax.search.expander import Expander
from rstar_jax.search.nodes import Step
from rstar_jax.steps import marks

LENGTH = 160


@jax.jit
def _pick(logits, key, position, vocab, settings):
    logits = jnp.where(jnp.arange(len(logits)) < vocab, logits, -jnp.inf)
    logits = jnp.pad(logits, (0, -len(logits) % 128), constant_values=-jnp.inf)
    u = sampling.uniforms(key[None], jnp.asarray([position]))
    token, share = sampling.sample(logits[:, None], u, settings)
    return token[0], share[0]


class Naive(Expander):
    """Full forward passes over prompt, path and step, one candidate and one token at a time."""

    def __init__(self, policy, ppm, config):
        self.policy, self.ppm, self.config = policy, ppm, config
        self.rows = self.width = 1
        self.mesh = parallel.local_mesh(devices=parallel.local_mesh().devices.flat[:1])
        self.counters = collections.Counter()
        self.scores = self._scores if ppm else None
        self.bytes = steps.token_bytes(policy.tokenizer, policy.config.vocab_size)
        self.eos = steps.eos_ids(policy.tokenizer)
        self.asked = None

    def expand(self, row, tree):
        if tree.cursor is tree.nodes[0]:
            tree.cursor.tokens = self.policy.tokenizer(tree.prompt)['input_ids']
        self.tree = self.asked = tree
        self.path = [token for i in tree.path for token in tree.nodes[i].tokens]

    def dispatch(self):
        asked, self.asked = self.asked, None
        return asked

    def collect(self, asked):
        if asked is None:
            return []
        return [self._write(j) for j in range(self.config.candidates)]

    def _write(self, candidate):
        tag = self.tree.cursor.tag
        key = sampling.key_of(self.tree.seed, *self.tree.key, tag, candidate)
        tokens, kind, likelihood = [], marks.NONE, 0.0
        while kind == marks.NONE:
            logits = self._logits(self.policy, [*self.path, *tokens])
            settings = sampling.Settings.of(self.config)
            vocab = len(self.policy.tokenizer)
            token, share = _pick(logits, key, len(tokens), vocab, settings)
            tokens.append(int(token))
            likelihood += float(np.log(share))
            kind = self._kind(tokens)
        sampled = len(tokens)
        if kind == marks.EOS:
            tokens = tokens[:-1]
        text = b''.join(self.bytes[t] for t in tokens).decode('utf-8', errors='replace')
        return Step(0, candidate, text, tokens, kind, sampled, likelihood)

    def _kind(self, tokens):
        text = b''.join(self.bytes[t] for t in tokens).decode('utf-8', errors='replace')
        for mark, kind in (
            (steps.STEP_END, marks.STEP),
            (steps.CODE_END, marks.CODE),
            (steps.ANSWER_END, marks.ANSWER),
        ):
            if mark in text:
                return kind
        if tokens[-1] in self.eos:
            return marks.EOS
        if (least := self.config.repetition) and any(
            len(tokens) >= least + period and tokens[-least:] == tokens[-least - period : -period]
            for period in range(1, state.PERIODS + 1)
        ):
            return marks.REPEATED
        return marks.LIMIT if len(tokens) == self.config.step_tokens else marks.NONE

    def _logits(self, model, tokens):
        padded = np.zeros((1, LENGTH), np.int32)
        padded[0, : len(tokens)] = tokens
        return model.logits(padded, np.array([len(tokens)]))[0, len(tokens) - 1]

    def encode(self, text, before=''):
        return self.policy.tokenizer.encode(text, add_special_tokens=False)

    def _scores(self, requests):
        found = []
        rows, numbers, nodes = zip(*requests)
        for node in nodes:
            tokens = [*self.path, *node.tokens]
            padded = np.zeros((1, LENGTH), np.int32)
            padded[0, : len(tokens)] = tokens
            found.append(float(self.ppm.scores(padded, np.array([len(tokens)]))[0]))
        return [(np.array(found, np.float32), np.int32(rows), np.int32(numbers))]
