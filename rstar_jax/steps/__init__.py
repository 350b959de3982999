"""The step language: a solution is a Python program written step by step (paper, section 3.2)."""

from rstar_jax.steps.language import (
    ANSWER,
    ANSWER_END,
    CODE,
    CODE_END,
    CODE_ERRORS_ANSWER,
    OUTPUT,
    OUTPUT_END,
    OUTPUT_MARKS,
    SFT_TOKENS,
    SPECIAL_TOKENS,
    STEP_END,
    TEMPLATE_MARKS,
    TOO_DEEP_ANSWER,
    UNPARSABLE_ANSWER,
    boxed,
    code_of,
    with_output,
)
from rstar_jax.steps.marks import MarkTable, eos_ids, mark_table, token_bytes
from rstar_jax.steps.prompts import prompt, writing_prompt

__all__ = [
    'ANSWER',
    'ANSWER_END',
    'CODE',
    'CODE_END',
    'CODE_ERRORS_ANSWER',
    'OUTPUT',
    'OUTPUT_END',
    'OUTPUT_MARKS',
    'SFT_TOKENS',
    'SPECIAL_TOKENS',
    'STEP_END',
    'TEMPLATE_MARKS',
    'TOO_DEEP_ANSWER',
    'UNPARSABLE_ANSWER',
    'MarkTable',
    'boxed',
    'code_of',
    'eos_ids',
    'mark_table',
    'prompt',
    'token_bytes',
    'with_output',
    'writing_prompt',
]
