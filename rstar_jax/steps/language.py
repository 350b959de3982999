"""Marks of the step language, and what can be read off the text of one step.

A solution reads

    <code>
    # Step 1: ...
    x = ...
    <end_of_step>
    # Now print the final answer
    print(x)
    <end_of_code>
    <output>16<end_of_output>
    <answer>... \\boxed{16}<end_of_answer>

The executor, never the model, writes what stands between `<output>` and `<end_of_output>`.
"""

import re
from collections.abc import Sequence

CODE = '<code>'
STEP_END = '<end_of_step>'
CODE_END = '<end_of_code>'
OUTPUT = '<output>'
OUTPUT_END = '<end_of_output>'
ANSWER = '<answer>'
ANSWER_END = '<end_of_answer>'
USER = '<|user|>'
ASSISTANT = '<|assistant|>'
REFINE = '<refine>'
REFINE_END = '<end_of_refine>'

# What a solution is written with; of these the executor writes OUTPUT_MARKS.
TEMPLATE_MARKS = (CODE, STEP_END, CODE_END, OUTPUT, OUTPUT_END, ANSWER, ANSWER_END)
OUTPUT_MARKS = (OUTPUT, OUTPUT_END)

# The order is that of the ids which a tokenizer hands out when they are added to it.
SPECIAL_TOKENS = [
    CODE,
    STEP_END,
    CODE_END,
    OUTPUT,
    OUTPUT_END,
    ANSWER,
    ANSWER_END,
    USER,
    ASSISTANT,
    REFINE,
    REFINE_END,
    '\n' + ASSISTANT,
]
SFT_TOKENS = [*SPECIAL_TOKENS, '<error_info>', '<end_of_error_info>', '<BACK>']

# Final answers of the terminal kinds that are not answers, exactly as in the interchange files.
CODE_ERRORS_ANSWER = 'Too many consecutive steps have code errors.'
TOO_DEEP_ANSWER = 'Fail to sove the problem within limited steps.'
UNPARSABLE_ANSWER = 'Fail to generate parsable text for next step.'

_MARKS = re.compile('|'.join(map(re.escape, (CODE, STEP_END, CODE_END, OUTPUT, OUTPUT_END))))
_OUTPUTS = re.compile(f'{re.escape(OUTPUT)}.*?({re.escape(OUTPUT_END)}|$)', re.DOTALL)
_TEXT = f'(?:(?!{"|".join(map(re.escape, TEMPLATE_MARKS))}).)*'
_SOLUTION = re.compile(
    rf'\s*({CODE}{_TEXT}({STEP_END}{_TEXT})*{CODE_END}\s*{OUTPUT}{_TEXT}{OUTPUT_END}\s*)+'
    rf'{ANSWER}{_TEXT}{ANSWER_END}\s*',
    re.DOTALL,
)
_FENCE = re.compile(r'^\s*```(?:python)?\s*$', re.MULTILINE)


def boxed(text: str, bare: bool = True) -> str | None:
    """Returns the content of the last complete `\\boxed{...}` of `text`, or None.

    Braces nest; an escaped brace (`\\{`) counts as text. `\\fbox` is read as well, and with
    `bare` a box without braces (`\\boxed 5`).
    """
    for match in reversed(list(re.finditer(r'\\(?:boxed|fbox)\s*', text))):
        rest = text[match.end() :]
        if not rest.startswith('{'):
            word = re.match(r'(?:(?!<end_of_)[^\s$\\{}])+', rest)
            if bare and word:
                return word.group()
            continue
        depth, i = 0, 0
        while i < len(rest):
            if rest[i] == '\\':
                i += 2
                continue
            depth += (rest[i] == '{') - (rest[i] == '}')
            if depth == 0:
                return rest[1:i].strip()
            i += 1
    return None


def code_of(step: str) -> str:
    """Returns the Python code of one step's text: marks, outputs and Markdown fences removed."""
    return _FENCE.sub('', _MARKS.sub('', _OUTPUTS.sub('', step))).strip('\n')


def well_formed(solution: str) -> bool:
    """Whether a solution reads as above: programs with their outputs, then one answer, all closed.

    Between them stands nothing but space.
    """
    return _SOLUTION.fullmatch(solution) is not None


def ended_at_marks(texts: Sequence[str]) -> list[str]:
    """Steps that follow each other, as a policy writes them whose marks are tokens.

    To a general model, whose steps end in tokens such as `>\\n`, whitespace behind a mark belongs
    to the step before. Here it begins the next one, and behind the last there is none.
    """
    made, space = [], ''
    for text in texts:
        end = text.rstrip()
        cut = len(end) if end.endswith(TEMPLATE_MARKS) else len(text)
        made.append(space + text[:cut])
        space = text[cut:]
    return made


def with_output(step: str, output: str, behind: str = '') -> str:
    """Returns the step's text with the executor's output, and what stands behind it.

    A step that ended its branch without `<end_of_code>` gets that mark first. The newline before
    `<output>` is left out where the step's own text already ends in one.
    """
    if CODE_END not in step:
        step += CODE_END
    newline = '' if step.endswith('\n') else '\n'
    return f'{step}{newline}{OUTPUT}{output}{OUTPUT_END}{behind}'
