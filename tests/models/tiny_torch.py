"""Tiny random models of transformers (torch, float32): the reference of the parity tests."""

import functools
import pathlib

import torch
import transformers

torch.set_num_threads(1)  # tiny products: a second thread only waits

SIZES = {
    'vocab_size': 300,
    'hidden_size': 36,
    'intermediate_size': 50,
    'num_hidden_layers': 2,
    'max_position_embeddings': 128,
    'bos_token_id': 1,
    'eos_token_id': 2,
    'pad_token_id': 0,
}
FACTORS = {
    'short_factor': [1.0, 1.1, 1.2, 1.5, 2.0, 2.5],
    'long_factor': [1.5, 2.0, 3.0, 5.0, 8.0, 12.0],
}


def longrope(original: int, **more) -> dict:
    return {
        'rope_type': 'longrope',
        'rope_theta': 10000.0,
        'original_max_position_embeddings': original,
        **FACTORS,
        **more,
    }


LLAMA3 = {
    'rope_type': 'llama3',
    'rope_theta': 500.0,
    'factor': 8.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 32,
}
YARN = {
    'rope_type': 'yarn',
    'rope_theta': 500.0,
    'factor': 4.0,
    'beta_fast': 8.0,
    'original_max_position_embeddings': 32,
}
# Name -> (config class, options). Heads are odd in number or do not fill the width, texts in the
# tests are longer than the windows and than longrope's original length.
CONFIGS = {
    'llama': ('Llama', {'num_attention_heads': 9, 'num_key_value_heads': 3}),
    'llama_tied_bias': (
        'Llama',
        {
            'num_attention_heads': 3,
            'num_key_value_heads': 1,
            'attention_bias': True,
            'mlp_bias': True,
            'tie_word_embeddings': True,
            'rope_theta': 100000.0,
        },
    ),
    'llama3_rope': (
        'Llama',
        {'num_attention_heads': 6, 'num_key_value_heads': 2, 'rope_parameters': LLAMA3},
    ),
    'llama_linear_rope': (
        'Llama',
        {
            'num_attention_heads': 6,
            'num_key_value_heads': 2,
            'rope_parameters': {'rope_type': 'linear', 'rope_theta': 10000.0, 'factor': 4.0},
        },
    ),
    'qwen2': (
        'Qwen2',
        {'num_attention_heads': 9, 'num_key_value_heads': 3, 'rope_theta': 1000000.0},
    ),
    'qwen2_tied_window': (
        'Qwen2',
        {
            'num_attention_heads': 6,
            'num_key_value_heads': 2,
            'tie_word_embeddings': True,
            'use_sliding_window': True,
            'sliding_window': 7,
            'max_window_layers': 1,
        },
    ),
    'qwen3': ('Qwen3', {'num_attention_heads': 5, 'num_key_value_heads': 5, 'head_dim': 16}),
    'qwen3_tied_bias': (
        'Qwen3',
        {
            'num_attention_heads': 4,
            'num_key_value_heads': 2,
            'head_dim': 12,
            'tie_word_embeddings': True,
            'attention_bias': True,
        },
    ),
    'qwen3_yarn': (
        'Qwen3',
        {
            'num_attention_heads': 4,
            'num_key_value_heads': 2,
            'head_dim': 24,
            'rope_parameters': YARN,
        },
    ),
    'mistral_window': (
        'Mistral',
        {
            'num_attention_heads': 3,
            'num_key_value_heads': 1,
            'head_dim': 16,
            'sliding_window': 7,
        },
    ),
    'olmo2': ('Olmo2', {'num_attention_heads': 6, 'num_key_value_heads': 2}),
    'smollm3': (
        'SmolLM3',
        {
            'num_attention_heads': 6,
            'num_key_value_heads': 2,
            'num_hidden_layers': 4,
        },
    ),
    'smollm3_window_bias': (
        'SmolLM3',
        {
            'num_attention_heads': 3,
            'num_key_value_heads': 1,
            'no_rope_layers': [0, 1],
            'use_sliding_window': True,
            'sliding_window': 7,
            'attention_bias': True,
            'mlp_bias': True,
            'tie_word_embeddings': False,
        },
    ),
    'phi3_4k': (
        'Phi3',
        {'num_attention_heads': 3, 'num_key_value_heads': 3, 'sliding_window': 5},
    ),
    'phi3_128k_short': (
        'Phi3',
        {
            'num_attention_heads': 3,
            'num_key_value_heads': 1,
            'original_max_position_embeddings': 100,
            'rope_parameters': longrope(100),
        },
    ),
    'phi3_128k_long': (
        'Phi3',
        {
            'num_attention_heads': 3,
            'num_key_value_heads': 1,
            'original_max_position_embeddings': 16,
            'rope_parameters': longrope(16),
            'tie_word_embeddings': True,
        },
    ),
}


@functools.cache
def model(name: str):
    """The random torch model `name`; norms and biases are random too."""
    family, options = CONFIGS[name]
    config = getattr(transformers, f'{family}Config')(**(SIZES | options))
    config._attn_implementation = 'eager'
    torch.manual_seed(0)
    network = getattr(transformers, f'{family}ForCausalLM')(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            centre = 1.0 if parameter.ndim == 1 else 0.0
            parameter.normal_(centre, 0.2)
    network.generation_config.eos_token_id = None
    network.generation_config.pad_token_id = 0
    return network


def tokenizer():
    """Bytes alone, and four marks: 260 entries, fewer than the embedding's rows."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(['<pad>', '<bos>', '<eos>', *alphabet])}
    return transformers.Qwen2Tokenizer(
        vocab=vocabulary, merges=[], bos_token='<bos>', eos_token='<eos>', pad_token='<pad>'
    )


def save(name: str, folder: pathlib.Path, dtype: torch.dtype = torch.float32, **options) -> None:
    """The model and a tokenizer as a Hugging Face folder."""
    network = model(name)
    if dtype != torch.float32:
        import copy

        network = copy.deepcopy(network).to(dtype)
    network.save_pretrained(folder, **options)
    tokenizer().save_pretrained(folder)
