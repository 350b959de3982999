"""Training speed: SFT and PPM steps against a plain padded PyTorch loop on the same examples.

Both sides train the same random model on the same random examples, whose lengths are those of
solutions of GSM8K: full fine-tuning, AdamW, clipping, float32 on CPUs. PyTorch runs transformers'
model as most scripts do: a batch is padded to its longest example, a pair is two rows. Ours are
the trainer's own compiled functions, packing included. Compilation is not counted, nor are first
runs of either side. tokens_per_second counts tokens of the examples, no padding, and shared
prefixes as often as they are read by someone.
"""

import time
import types

import numpy as np

SHAPES = {
    # SmolLM2-135M
    '135m': {'embed_dim': 576, 'mlp_dim': 1536, 'num_layers': 30, 'heads': (9, 3), 'vocab': 49152},
    'tiny': {'embed_dim': 128, 'mlp_dim': 512, 'num_layers': 3, 'heads': (4, 2), 'vocab': 1024},
}


def run(
    *,
    model: str = '135m',
    examples: int = 16,
    nodes: int = 4,
    batch: int = 8,
    repeats: int = 2,
    seed: int = 0,
) -> dict[str, float]:
    """Settings: examples, SFT examples of a step; nodes, tree nodes of 4 pairs of a step; batch,
    rows that PyTorch runs at once (4 pairs); repeats, measured steps of each kind, the best counts.
    """
    import jax

    shape = _shape(model)
    rng = np.random.default_rng(seed)
    sft, ppm = _sft_data(rng, examples, shape.vocab_size), _pair_data(rng, nodes, shape.vocab_size)
    figures: dict[str, float] = {}
    # PyTorch's CPU build is no match for an accelerator.
    compared = jax.default_backend() == 'cpu'
    for label, loss, encoded in (('sft', 'sft', sft), ('ppm', 'pairwise', ppm)):
        ours = _Ours(shape, loss, encoded)
        theirs = _Torch(shape, loss, encoded, batch) if compared else None
        # In turns, so that whatever else the machine does meets both.
        seconds = [(ours.step(), theirs.step() if theirs else 0.0) for _ in range(repeats + 1)]
        mine, other = (min(times) for times in zip(*seconds[1:]))
        micros = ours.micros
        figures[f'{label}_tokens_per_second'] = micros.alone / mine
        if theirs:
            figures[f'{label}_torch_tokens_per_second'] = micros.alone / other
            figures[f'{label}_ratio_vs_torch'] = other / mine
            if abs(theirs.loss - ours.loss) > 0.05 * abs(ours.loss):
                raise RuntimeError(f'{loss}: first losses differ: {ours.loss}, {theirs.loss}')
        if loss == 'sft':
            figures['matmul_peak_share'] = ours.flops / mine / _peak(shape)
            figures['padding_share'] = 1 - sum(micros.tokens) / micros.places
        else:
            figures['shared_prefix_tokens_share'] = 1 - sum(micros.tokens) / micros.alone
    return figures


def _shape(model: str):
    from rstar_jax import models
    from rstar_jax.errors import UserError

    if model not in SHAPES:
        raise UserError(f'--model={model}: expected one of {", ".join(SHAPES)}')
    values = dict(SHAPES[model])
    heads, kv_heads = values.pop('heads')
    return models.Config(
        family='llama',
        vocab_size=values.pop('vocab'),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=values['embed_dim'] // heads,
        tie_embeddings=True,
        **values,
    )


def _sft_data(rng, count: int, vocab: int):
    from rstar_jax.training import examples, packing

    encoded = examples.Encoded(examples.SFT_FIELDS, 2048)
    for _ in range(count):
        prompt, response = rng.integers(50, 130), int(np.clip(rng.lognormal(5.1, 0.35), 60, 600))
        tokens = rng.integers(1, vocab, prompt + response).astype(np.int32)
        targets, weights = np.zeros_like(tokens), np.zeros(len(tokens), np.float32)
        targets[prompt - 1 : -1], weights[prompt - 1 : -1] = tokens[prompt:], 1
        field = {'targets': targets, 'weights': weights, 'mark': np.zeros_like(tokens)}
        encoded.add('', packing.Example((tokens,), (int(prompt) - 1,), (field,)))
    return encoded


def _pair_data(rng, nodes: int, vocab: int):
    from rstar_jax.training import examples, packing

    encoded = examples.Encoded(examples.PAIR_FIELDS, 2048, 4096)
    for _ in range(nodes):
        prefix = rng.integers(1, vocab, rng.integers(100, 300))
        sides = []
        for _ in range(4):
            step = rng.integers(1, vocab, int(np.clip(rng.lognormal(3.6, 0.6), 8, 256)))
            sides.append(np.concatenate([prefix, step]).astype(np.int32))
        example = packing.Example(
            tuple(sides),
            tuple(map(len, sides)),
            pairs=np.array([[0, 2], [0, 3], [1, 2], [1, 3]], np.int32),
            pair_weights=np.full(4, 0.25, np.float32),
            count=4,
        )
        encoded.add('', example)
    return encoded


def _settings():
    from rstar_jax import training

    settings = training.default_ppm()
    settings.update({'micro_batch': 1, 'dropout': 0.0, 'squash': 'tanh5'})
    return settings


class _Ours:
    """One optimiser step of the trainer over all examples, again and again."""

    def __init__(self, shape, loss: str, encoded):
        import jax

        from rstar_jax import models
        from rstar_jax.models import decoder
        from rstar_jax.training import checkpoints, step, trainer

        self._settings, self._encoded = _settings(), encoded
        mesh = checkpoints.one_device()
        self._compiled = step.Compiled(shape, self._settings, loss, mesh, 100)
        params = decoder.init_params(shape, jax.random.key(0))
        if loss != 'sft':
            params = models.init_ppm(models.Policy(shape, None, params)).params
        self._state = self._compiled.init(params)
        self._trainer = trainer
        self.loss: float | None = None
        self.micros = self._pack()
        weights = sum(p.size for p in jax.tree.leaves(params) if p.ndim > 1)
        tokens = sum(self.micros.tokens)
        # Products of forward and backward pass; what is computed twice is counted once.
        self.flops = 6.0 * weights * tokens

    def _pack(self):
        everything = range(len(self._encoded.examples))
        mesh = self._compiled.mesh
        return self._trainer.Micros(self._encoded, everything, self._settings, mesh)

    def step(self) -> float:
        """Seconds of one step."""
        import jax

        start, compiling = time.monotonic(), self._compiled.seconds
        micros, params = self._pack(), self._state['params']
        grads, loss = self._compiled.zeros(params), 0.0
        for batch in micros.batches:
            scale = 1 / micros.weight
            grads, sums = self._compiled.accumulate(grads, params, batch, scale, (0, 0))
            loss += sums['loss']
        self._state, _ = self._compiled.update(self._state, grads)
        jax.block_until_ready(self._state)
        if self.loss is None:
            self.loss = float(loss) / micros.weight
        return time.monotonic() - start - (self._compiled.seconds - compiling)


class _Torch:
    """The same step, with transformers' model, padded batches and torch's AdamW."""

    def __init__(self, shape, loss: str, encoded, batch: int):
        import torch
        import transformers

        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.embed_dim,
            intermediate_size=shape.mlp_dim,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            num_key_value_heads=shape.num_kv_heads,
            tie_word_embeddings=True,
            use_cache=False,
        )
        model = transformers.LlamaForCausalLM(config)
        self._torch = torch
        self._head = torch.nn.Linear(shape.embed_dim, 1)
        torch.nn.init.normal_(self._head.weight, 5e-7, 1e-6)
        self._model = model.train() if loss == 'sft' else model.model.train()
        parameters = [*self._model.parameters()]
        parameters += [] if loss == 'sft' else [*self._head.parameters()]
        self._parameters = parameters
        self._optimiser = torch.optim.AdamW(parameters, lr=7e-6, weight_decay=0.1)
        self._batches = self._sft(encoded, batch) if loss == 'sft' else self._pairs(encoded, batch)
        self._loss = self._sft_loss if loss == 'sft' else self._pair_loss
        self._weight = sum(example.weight for example in encoded.examples)
        self.loss: float | None = None

    def step(self) -> float:
        """Seconds of one step."""
        start = time.monotonic()
        total = 0.0
        self._optimiser.zero_grad()
        for batch in self._batches:
            loss = self._loss(batch) / self._weight
            loss.backward()
            total += float(loss.detach())
        self._torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimiser.step()
        self.loss = total if self.loss is None else self.loss
        return time.monotonic() - start

    def _padded(self, sequences):
        length = max(map(len, sequences))
        tokens = np.zeros((len(sequences), length), np.int64)
        mask = np.zeros((len(sequences), length), np.int64)
        for i, sequence in enumerate(sequences):
            tokens[i, : len(sequence)], mask[i, : len(sequence)] = sequence, 1
        return self._torch.tensor(tokens), self._torch.tensor(mask)

    def _sft(self, encoded, size: int) -> list:
        batches = []
        for start in range(0, len(encoded.examples), size):
            part = encoded.examples[start : start + size]
            tokens, mask = self._padded([example.sequences[0] for example in part])
            labels = self._torch.full(tokens.shape, -100)
            for i, example in enumerate(part):
                length, prompt = len(example.sequences[0]), example.shareable[0] + 1
                labels[i, prompt:length] = tokens[i, prompt:length]
            batches.append(types.SimpleNamespace(tokens=tokens, mask=mask, labels=labels))
        return batches

    def _sft_loss(self, batch):
        logits = self._model(input_ids=batch.tokens, attention_mask=batch.mask).logits
        return self._torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), reduction='sum'
        )

    def _pairs(self, encoded, size: int) -> list:
        pairs = [
            (example.sequences[i], example.sequences[j], weight)
            for example in encoded.examples
            for (i, j), weight in zip(example.pairs, example.pair_weights)
        ]
        batches = []
        for start in range(0, len(pairs), size // 2):
            chosen, rejected, weights = zip(*pairs[start : start + size // 2])
            tokens, mask = self._padded([*chosen, *rejected])
            weights = self._torch.tensor(np.array(weights))
            batches.append(types.SimpleNamespace(tokens=tokens, mask=mask, weights=weights))
        return batches

    def _pair_loss(self, batch):
        hidden = self._model(input_ids=batch.tokens, attention_mask=batch.mask).last_hidden_state
        rows = self._torch.arange(len(hidden))
        reward = self._head(hidden[rows, batch.mask.sum(1) - 1])[:, 0]
        chosen, rejected = reward.chunk(2)
        return -(batch.weights * self._torch.nn.functional.logsigmoid(chosen - rejected)).sum()


def _peak(shape) -> float:
    """FLOP/s of one large product of this model, in the dtype it trains in: the best of some."""
    import jax
    import jax.numpy as jnp

    from rstar_jax.training import step

    dtype = step.compute_dtype(_settings())
    weight = jnp.ones((shape.mlp_dim, shape.embed_dim), dtype)
    rows = jnp.ones((2048, shape.embed_dim), dtype)
    product = jax.jit(lambda w, x: jnp.einsum('fd,td->ft', w, x))
    product(weight, rows).block_until_ready()
    best = float('inf')
    for _ in range(20):
        start = time.monotonic()
        product(weight, rows).block_until_ready()
        best = min(best, time.monotonic() - start)
    return 2 * weight.size * rows.shape[0] / best
