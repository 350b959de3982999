"""What the training bench compares with: transformers' model in a plain loop of PyTorch.

As most scripts have it: a batch is padded to its longest example, a pair is two rows, gradients
are summed over the batches of a step, then clipped, then AdamW. In bfloat16 the network runs under
autocast, parameters, gradients and moments being float32, which is what `transformers.Trainer` does
with bf16=True.
"""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import tempfile
import time
import types

import numpy as np


class Apart:
    """`Torch` in a process of its own, where neither side's threads and memory meet the other's."""

    def __init__(self, *args):
        """args: of `Torch`."""
        spawn = multiprocessing.get_context('spawn')
        self._process = concurrent.futures.ProcessPoolExecutor(1, spawn, _begin, args)
        self.loss: float | None = None
        self.norm: float | None = None

    def step(self) -> float:
        """Seconds of one step."""
        seconds, self.loss, self.norm = self._process.submit(_step).result()
        return seconds

    def close(self) -> None:
        self._process.shutdown()


def _begin(*args) -> None:
    global _torch
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is told by the process that was asked
    _torch = Torch(*args)


def _step() -> tuple[float, float, float]:
    return _torch.step(), _torch.loss, _torch.norm


class Torch:
    """One optimiser step over all examples, again and again, from the weights of ours.

    Attributes:
      loss, norm: of the first step: mean by weight, norm of the gradients before clipping.
    """

    def __init__(self, model, loss: str, encoded, settings, batch: int):
        """model: a Policy ('sft') or a PPM ('pairwise', squashed in use only: squash='tanh5');
        batch: rows of a forward pass."""
        import torch

        torch.set_num_threads(os.cpu_count() or 1)
        self._torch, self._settings = torch, settings
        self._network = _network(model, loss).train()
        self._parameters = [*self._network.parameters()]
        if loss == 'sft':
            self._batches, self._loss = self._sft(encoded, batch), self._sft_loss
        else:
            self._head = _head(model)
            self._parameters += [*self._head.parameters()]
            self._batches, self._loss = self._pairs(encoded, batch), self._pair_loss
        matrices, vectors = ([p for p in self._parameters if (p.ndim > 1) == x] for x in (1, 0))
        self._optimiser = torch.optim.AdamW(
            [
                {'params': matrices, 'weight_decay': settings.weight_decay},
                {'params': vectors, 'weight_decay': 0.0},
            ],
            lr=settings.learning_rate,
        )
        self._weight = sum(example.weight for example in encoded.take())
        self.loss: float | None = None
        self.norm: float | None = None

    def step(self) -> float:
        """Seconds of one step."""
        start = time.monotonic()
        total = 0.0
        self._optimiser.zero_grad()
        for batch in self._batches:
            with self._precision():
                loss = self._loss(batch) / self._weight
            loss.backward()
            total += float(loss.detach())
        norm = self._torch.nn.utils.clip_grad_norm_(self._parameters, self._settings.grad_clip)
        self._optimiser.step()
        seconds = time.monotonic() - start
        if self.loss is None:
            self.loss, self.norm = total, float(norm)
        return seconds

    def _precision(self):
        if self._settings.dtype == 'float32':
            return contextlib.nullcontext()
        return self._torch.autocast('cpu', dtype=getattr(self._torch, self._settings.dtype))

    def _padded(self, sequences):
        length = max(map(len, sequences))
        tokens = np.zeros((len(sequences), length), np.int64)
        mask = np.zeros((len(sequences), length), np.int64)
        for i, sequence in enumerate(sequences):
            tokens[i, : len(sequence)], mask[i, : len(sequence)] = sequence, 1
        return self._torch.tensor(tokens), self._torch.tensor(mask)

    def _sft(self, encoded, size: int) -> list:
        batches = []
        examples = encoded.take()
        for start in range(0, len(examples), size):
            part = examples[start : start + size]
            tokens, mask = self._padded([example.sequences[0] for example in part])
            labels = self._torch.full(tokens.shape, -100)
            for i, example in enumerate(part):
                length, prompt = len(example.sequences[0]), example.shareable[0] + 1
                labels[i, prompt:length] = tokens[i, prompt:length]
            batches.append(types.SimpleNamespace(tokens=tokens, mask=mask, labels=labels))
        return batches

    def _sft_loss(self, batch):
        logits = self._network(input_ids=batch.tokens, attention_mask=batch.mask).logits
        return self._torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), batch.labels[:, 1:].flatten(), reduction='sum'
        )

    def _pairs(self, encoded, size: int) -> list:
        pairs = [
            (example.sequences[i], example.sequences[j], weight)
            for example in encoded.take()
            for (i, j), weight in zip(example.pairs, example.pair_weights)
        ]
        batches, size = [], max(1, size // 2)
        for start in range(0, len(pairs), size):
            chosen, rejected, weights = zip(*pairs[start : start + size])
            tokens, mask = self._padded([*chosen, *rejected])
            weights = self._torch.tensor(np.array(weights))
            batches.append(types.SimpleNamespace(tokens=tokens, mask=mask, weights=weights))
        return batches

    def _pair_loss(self, batch):
        hidden = self._network(input_ids=batch.tokens, attention_mask=batch.mask).last_hidden_state
        last = hidden[self._torch.arange(len(hidden)), batch.mask.sum(1) - 1]
        with self._torch.autocast('cpu', enabled=False):  # ours has the head in float32
            chosen, rejected = self._head(last.float())[:, 0].chunk(2)
        return -(batch.weights * self._torch.nn.functional.logsigmoid(chosen - rejected)).sum()


def _network(model, loss: str):
    """transformers' network, float32, with the decoder's parameters, by way of a folder."""
    import torch
    import transformers

    from rstar_jax import models

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    params = model.params if loss == 'sft' else model.params['decoder']
    kind = transformers.AutoModelForCausalLM if loss == 'sft' else transformers.AutoModel
    with tempfile.TemporaryDirectory() as folder:
        models.save(models.Policy(model.config, None, params), folder)
        network = kind.from_pretrained(folder, dtype=torch.float32)
    network.config.use_cache = False
    return network


def _head(ppm):
    import torch

    weight = torch.tensor(np.asarray(ppm.params['value_head']['weight']))
    head = torch.nn.Linear(weight.shape[1], 1)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(torch.tensor(np.asarray(ppm.params['value_head']['bias'])))
    return head
