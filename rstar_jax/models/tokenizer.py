"""Tokenizers: transformers' fast ones, read from a folder or rebuilt from a GGUF file's metadata.

A GGUF file holds vocabulary, merges and kinds of token, but names the splitting of a text into
words only by a word ('smollm', 'qwen2', 'llama-bpe'); the patterns behind those words are here.
"""

import copy
import json
import pathlib
from typing import Any

from rstar_jax.job import atomic
from rstar_jax.settings.errors import UserError, one_line

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama.cpp's kinds of token
WHOLE = (CONTROL, USER_DEFINED)
FILES = ('tokenizer.json', 'tokenizer.model', 'vocab.json')
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
# Words that mean Llama 3's: texts begin with BOS, and a word that is an entry is not put together
# by merges (llama.cpp's `add_bos` and `ignore_merges`).
LLAMA3 = ('llama-bpe', 'llama3', 'llama-v3')
# Patterns that cut a text into words before the merges; None = GPT-2's own.
SPLITS = {
    'qwen2': _WORDS % '',
    'deepseek-r1-qwen': _WORDS % '',
    'llama-bpe': _WORDS % '{1,3}',
    'llama3': _WORDS % '{1,3}',
    'llama-v3': _WORDS % '{1,3}',
    'smaug-bpe': _WORDS % '{1,3}',
    'smollm': None,  # after each digit is cut off
    'gpt-2': None,
    'default': None,
}


def load(folder: pathlib.Path) -> Any:
    """The fast tokenizer of a Hugging Face folder; UserError where there is none."""
    from transformers import AutoTokenizer

    if not any((folder / name).exists() for name in FILES):
        expected = f'no tokenizer: expected one of {", ".join(FILES)}'
        raise UserError(str(folder), expected=expected)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the libraries raise many kinds for a damaged file
        expected = f'its tokenizer cannot be read ({one_line(error)})'
        raise UserError(str(folder), expected=expected) from None
    if not tokenizer.is_fast:
        raise UserError(str(folder), expected='expected a fast tokenizer (tokenizer.json)')
    return _as_written(tokenizer, folder)


def _as_written(tokenizer: Any, folder: pathlib.Path) -> Any:
    """The tokenizer, cutting texts as its file says.

    transformers 5 cuts them as the class does that tokenizer_config.json names: of SmolLM2, which
    calls itself GPT2Tokenizer, digits as GPT-2 does. Added tokens may lose what they strip.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    file = folder / 'tokenizer.json'
    if not file.exists():
        return tokenizer
    if _cuts(Tokenizer.from_file(str(file))) == _cuts(tokenizer.backend_tokenizer):
        return tokenizer
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _cuts(backend: Any) -> list[Any]:
    """How a tokenizers' tokenizer changes and cuts a text before it looks for tokens."""

    def plain(part):
        # Of the pieces' places in the text, which nobody asks for.
        return {name: value for name, value in part.items() if name != 'trim_offsets'}

    parts = backend.normalizer, backend.pre_tokenizer
    steps = [part and json.loads(part.__getstate__(), object_hook=plain) for part in parts]
    return [*steps, repr(backend.get_added_tokens_decoder())]


def save(tokenizer: Any, folder: pathlib.Path) -> None:
    """Writes a tokenizer into a folder in a form that transformers 4 reads as well.

    Version 5 calls special tokens beyond the named ones, and the class, by names of its own, at
    which version 4 ends; it reads the older names as its own.
    """
    tokenizer.save_pretrained(folder)
    file = folder / 'tokenizer_config.json'
    values = json.loads(file.read_text(encoding='utf-8'))
    if isinstance(values.get('extra_special_tokens'), list):
        values['additional_special_tokens'] = values.pop('extra_special_tokens')
    if values.get('tokenizer_class') == 'TokenizersBackend':
        values['tokenizer_class'] = 'PreTrainedTokenizerFast'
    atomic.write_json(file, values, indent=2, ensure_ascii=False)


def rows(tokenizer: Any) -> int:
    """Rows of an embedding that holds all entries: more than these where ids are left out."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def continuing(tokenizer: Any) -> Any:
    """The tokenizer for texts that go on where others end: one that puts no space before them.

    SentencePiece's kind (Llama 2, Phi-3) puts one before a text and behind each special token. What
    is sampled, read as text and encoded again for the next round would gain one each time.
    """
    from tokenizers import normalizers, pre_tokenizers

    def spaces(backend):
        parts = (*_parts(backend.normalizer), *_parts(backend.pre_tokenizer))
        kinds = (normalizers.Prepend, pre_tokenizers.Metaspace, pre_tokenizers.ByteLevel)
        return [part for part in parts if isinstance(part, kinds)]

    def adds(part):
        scheme = getattr(part, 'prepend_scheme', 'never')
        added = isinstance(part, normalizers.Prepend) or scheme != 'never'
        return added or getattr(part, 'add_prefix_space', False)

    if not any(map(adds, spaces(tokenizer.backend_tokenizer))):
        return tokenizer
    made = copy.deepcopy(tokenizer)
    for part in spaces(made.backend_tokenizer):
        if isinstance(part, normalizers.Prepend):
            part.prepend = ''
        elif isinstance(part, pre_tokenizers.Metaspace):
            part.prepend_scheme = 'never'
        else:
            part.add_prefix_space = False
    return made


def _parts(steps: Any) -> list[Any]:
    """The steps of a tokenizers' normalizer or pre_tokenizer; none of None."""
    if type(steps).__name__ == 'Sequence':
        return list(steps)
    return [] if steps is None else [steps]


def from_gguf(fields: dict[str, Any], where: str) -> Any:
    """The tokenizer that a GGUF file's metadata describes.

    Padding entries at the vocabulary's end are dropped, so that new tokens take their ids.
    """
    from transformers import PreTrainedTokenizerFast

    tokens = fields.get('tokenizer.ggml.tokens')
    if not tokens:
        raise UserError(where, expected='no tokenizer: no tokenizer.ggml.tokens in its metadata')
    kinds = fields.get('tokenizer.ggml.token_type') or [NORMAL] * len(tokens)
    count = len(tokens)
    while count and kinds[count - 1] == UNUSED and tokens[count - 1].startswith('[PAD'):
        count -= 1
    tokens, kinds = tokens[:count], kinds[:count]
    model = fields.get('tokenizer.ggml.model')
    if model not in ('gpt2', 'llama'):
        raise UserError(where, expected=f'tokenizer {model!r}: expected gpt2 or llama')
    try:
        build = _byte_level if model == 'gpt2' else _sentencepiece
        backend = build(fields, tokens, kinds)
    except UserError as error:
        raise UserError(where, expected=str(error)) from None
    except Exception as error:  # what the library raises for tables that do not fit together
        expected = f'its tokenizer cannot be rebuilt ({error!r})'
        raise UserError(where, expected=expected) from None
    _add_whole_tokens(backend, tokens, kinds)

    def token(name):
        index = fields.get(f'tokenizer.ggml.{name}_token_id')
        return tokens[index] if index is not None and index < count else None

    special = {
        'bos_token': token('bos'),
        'eos_token': token('eos'),
        'pad_token': token('padding') or token('eos'),
        'unk_token': token('unknown') if model == 'llama' else None,
    }
    options = {name: text for name, text in special.items() if text is not None}
    begins = model == 'llama' or fields.get('tokenizer.ggml.pre') in LLAMA3
    add_bos = bool(fields.get('tokenizer.ggml.add_bos_token', begins))
    if add_bos and special['bos_token']:
        from tokenizers import processors

        bos = special['bos_token']
        backend.post_processor = processors.Sequence(
            [
                backend.post_processor or processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single=f'{bos} $A',
                    pair=f'{bos} $A {bos} $B',
                    special_tokens=[(bos, tokens.index(bos))],
                ),
            ]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **options
    )
    made.chat_template = fields.get('tokenizer.chat_template')
    return made


def _byte_level(fields, tokens, kinds):
    """GPT-2's byte-level BPE with the file's way of splitting words."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    split = fields.get('tokenizer.ggml.pre', 'default')
    if split not in SPLITS:
        raise UserError('tokenizer.ggml.pre', split, f'expected {", ".join(SPLITS)}')
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(merge.split(' ')) for merge in fields.get('tokenizer.ggml.merges', ())]
    whole = split in LLAMA3
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=whole))
    pattern = SPLITS[split]
    if pattern is not None:
        steps = [
            pre_tokenizers.Split(Regex(pattern), behavior='isolated'),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    else:
        steps = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
        if split == 'smollm':
            steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    if 'qwen' in split:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(fields, tokens, kinds):
    """Sentencepiece's BPE: merges recovered from the pieces' scores, unknown text as bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = fields['tokenizer.ggml.scores']
    vocabulary = {token: index for index, token in enumerate(tokens)}
    pieces = {token: index for token, index in vocabulary.items() if kinds[index] == NORMAL}
    found = []
    for token, index in pieces.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in pieces and right in pieces:
                found.append((-scores[index], pieces[left], pieces[right], left, right))
    merges = [(left, right) for *_, left, right in sorted(found)]
    unknown = fields.get('tokenizer.ggml.unknown_token_id', 0)
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            unk_token=tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = fields.get('tokenizer.ggml.add_space_prefix', True)
    steps = [normalizers.Prepend('▁')] if prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(' ', '▁')])
    ends = [decoders.Strip(content=' ', left=1)] if prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), *ends]
    )
    return backend


def _add_whole_tokens(backend, tokens, kinds):
    """Control and user-defined tokens are never cut, and keep the ids that the file gives them."""
    from tokenizers import AddedToken

    added = [
        AddedToken(token, normalized=False, special=kind == CONTROL)
        for token, kind in zip(tokens, kinds)
        if kind in WHOLE
    ]
    if added:
        backend.add_tokens(added)
