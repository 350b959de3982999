"""Finding stop marks in sampled tokens on the device, for any tokenizer.

A mark such as `<end_of_step>` is one token for a policy that was trained on it, and a few tokens
with changing boundaries (`<`, `end`, `_of`, `_step`, `>\\n\\n`) for a general model. Both are read
by one automaton over bytes (Aho and Corasick 1975), compiled into a table over tokens: one gather
a sampled token tells whether a mark is complete. Nothing is ever decoded to find a step's end, and
nothing is sampled beyond it. The token that completes a mark is kept whole.
"""

import dataclasses
import functools

import numpy as np

from rstar_jax.steps import language

# What a completed mark means to the search. NONE: still writing; EOS: the model ended its text;
# LIMIT, REPEATED: it was stopped, as the step was too long or said the same again and again.
NONE, STEP, CODE, ANSWER, EOS, LIMIT, REPEATED = range(7)
CUT = (LIMIT, REPEATED)


@dataclasses.dataclass(frozen=True)
class MarkTable:
    """An automaton over tokens. State 0 is the start.

    Attributes:
      next: u8[states, V], the state after a token. A state that completes a mark is final: what
        follows in the same token does not change it.
      kind: u8[states], NONE or the kind of mark which that state completes.
    """

    next: np.ndarray
    kind: np.ndarray


def token_bytes(tokenizer, vocab_size: int) -> list[bytes]:
    """Returns the bytes that each token id adds to a text; b'' for ids without a text of their own.

    Args:
      tokenizer: a transformers fast tokenizer, byte-level (Qwen, Llama 3, SmolLM2) or SentencePiece
        with byte fallback (Llama 2, Phi-3).
      vocab_size: rows of the model's head; may exceed the tokenizer's entries.
    """
    to_byte = _byte_alphabet()
    added = {i: t.content for i, t in tokenizer.added_tokens_decoder.items()}
    words = tokenizer.convert_ids_to_tokens(list(range(vocab_size)))
    sentencepiece = any(w == '<0x0A>' for w in words if w)
    result = []
    for i, word in enumerate(words):
        if word is None:
            result.append(b'')
        elif i in added:
            result.append(added[i].encode())
        elif sentencepiece:
            if len(word) == 6 and word.startswith('<0x') and word.endswith('>'):
                result.append(bytes([int(word[3:5], 16)]))
            else:
                result.append(word.replace('\u2581', ' ').encode())
        else:
            known = all(c in to_byte for c in word)
            result.append(bytes(to_byte[c] for c in word) if known else word.encode())
    return result


def stops(prompt: str) -> dict[str, int]:
    """Returns the marks that end a step, with their kinds, for a prompt as in `steps.prompt`.

    A general model, prompted by examples, may write the executor's part as well: it ends there.
    """
    kinds = {language.STEP_END: STEP, language.CODE_END: CODE, language.ANSWER_END: ANSWER}
    return {**kinds, language.OUTPUT_END: STEP} if prompt == 'few_shot' else kinds


def marks_are_tokens(tokenizer) -> bool:
    """Whether a transformers fast tokenizer has the marks as tokens of their own."""
    return tokenizer.backend_tokenizer.token_to_id(language.STEP_END) is not None


# Tokens with which chat and base models end a text, beside the tokenizer's own.
ENDS = (
    *('<|endoftext|>', '<|im_end|>', '<|end|>', '<|eot_id|>', '<|end_of_text|>', '</s>'),
    *('<|EOT|>', '<\uff5cend\u2581of\u2581sentence\uff5c>', '<eos>', '<end_of_turn>'),
)


def eos_ids(tokenizer) -> list[int]:
    """Returns the ids at which a model has ended its text."""
    ids = {tokenizer.eos_token_id}
    ids |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.content in ENDS}
    return sorted(i for i in ids if i is not None)


def mark_table(texts: list[bytes], marks: dict[str, int], eos_ids: list[int]) -> MarkTable:
    """Compiles stop marks into a table over tokens.

    Args:
      texts: the bytes of each token id, as from `token_bytes`; V of them.
      marks: mark -> its kind (STEP, CODE or ANSWER).
      eos_ids: ids that end the model's text whatever came before.
    """
    goto, kind = _automaton({m.encode(): k for m, k in marks.items()})
    kind = np.append(kind, np.uint8(EOS))
    end = len(kind) - 1
    lengths = np.array([len(t) for t in texts])
    width = max(1, int(lengths.max()))
    symbols = np.zeros((len(texts), width), np.uint8)
    for i, text in enumerate(texts):
        symbols[i, : len(text)] = np.frombuffer(text, np.uint8)
    state = np.repeat(np.arange(end, dtype=np.uint8)[:, None], len(texts), axis=1)
    for p in range(width):
        rows = np.nonzero(lengths > p)[0]
        now = state[:, rows]
        state[:, rows] = np.where(kind[now] == NONE, goto[now, symbols[rows, p]], now)
    table = np.concatenate([state, np.full((1, len(texts)), end, np.uint8)])
    table[:, eos_ids] = end
    return MarkTable(table, kind)


def _automaton(marks: dict[bytes, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns goto u8[states, 256] and kind u8[states] of the Aho-Corasick automaton of `marks`."""
    children: list[dict[int, int]] = [{}]
    kind = [NONE]
    for mark, mark_kind in marks.items():
        state = 0
        for byte in mark:
            if byte not in children[state]:
                children[state][byte] = len(children)
                children.append({})
                kind.append(NONE)
            state = children[state][byte]
        kind[state] = mark_kind
    goto = np.zeros((len(children), 256), np.uint8)
    fail = [0] * len(children)
    queue = list(children[0].values())
    for byte, child in children[0].items():
        goto[0, byte] = child
    while queue:
        state = queue.pop(0)
        goto[state] = goto[fail[state]]
        kind[state] = kind[state] or kind[fail[state]]
        for byte, child in children[state].items():
            fail[child] = int(goto[state, byte])
            goto[state, byte] = child
            queue.append(child)
    return goto, np.array(kind, np.uint8)


@functools.cache
def _byte_alphabet() -> dict[str, int]:
    """The printable character that byte-level BPE writes for each byte (GPT-2), inverted."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = {chr(b): b for b in printable}
    rest = [b for b in range(256) if b not in printable]
    alphabet.update({chr(256 + i): b for i, b in enumerate(rest)})
    return alphabet
