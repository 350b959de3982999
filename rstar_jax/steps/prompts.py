"""The prompts: few-shot for a general model (bootstrap), the one that SFT trains, and one for new
problems."""

import itertools
import math
from collections.abc import Sequence

from rstar_jax.settings.errors import UserError
from rstar_jax.steps.language import ANSWER_END, ASSISTANT, USER

KINDS = ('sft', 'few_shot')

_INSTRUCTIONS = """\
You solve mathematics problems by writing Python. Keep exactly to this format:
- Open with <code>. Write the program in small steps. Every step is a comment that says what is \
done, then the code that does it, then a line <end_of_step>.
- The last step prints the final answer and ends with <end_of_code> in place of <end_of_step>.
- The program is run and its output is shown between <output> and <end_of_output>.
- Then write <answer>, one sentence that holds the final answer in \\boxed{}, and <end_of_answer>.

"""

_EXAMPLES = (
    """\
Question: A baker fills 7 trays with 12 rolls each. He sells 59 rolls for $0.50 each and gives a \
quarter of the rest to a school. How many rolls does he have at the end?
Solution:
<code>
# Step 1: Count the rolls that were baked
rolls_baked = 7 * 12
<end_of_step>
# Step 2: Take away the rolls that were sold
rolls_left = rolls_baked - 59
<end_of_step>
# Step 3: Take away the quarter given to the school
rolls_at_end = rolls_left - rolls_left / 4
<end_of_step>
# Now print the final answer
print(rolls_at_end)
<end_of_code>
<output>18.75<end_of_output>
<answer>He has \\boxed{18.75} rolls at the end.<end_of_answer>

""",
    """\
Question: What is the sum of the real solutions of $x^2 - 5x = 14$?
Solution:
<code>
# Step 1: Write the equation with sympy
from sympy import symbols, Eq, solve
x = symbols('x', real=True)
equation = Eq(x**2 - 5*x, 14)
<end_of_step>
# Step 2: Solve it for x
solutions = solve(equation, x)
<end_of_step>
# Step 3: Add the solutions
total = sum(solutions)
<end_of_step>
# Now print the final answer
print(total)
<end_of_code>
<output>5<end_of_output>
<answer>The sum of the solutions is \\boxed{5}.<end_of_answer>

""",
)


ORDERS = math.factorial(len(_EXAMPLES))  # in which the examples can stand


def prompt(question: str, kind: str = 'sft', order: int = 0) -> str:
    """Returns the text that a policy continues with the first step.

    Args:
      question: the problem's text.
      kind: 'sft', the prompt of a trained policy; 'few_shot', instructions and two worked examples
        for a general model; 'whole', the question as it is, for what is no problem to be solved.
      order: which order the examples stand in. Where it is the same for all problems, so are the
        keys and values of everything before the question.

    Raises:
      UserError: `kind` is none of these.
    """
    if kind == 'sft':
        lead = "Let's think step by step and solve the problem with code."
        return f'{USER}:\n{question}\n{ASSISTANT}: {lead}'
    if kind == 'few_shot':
        orders = list(itertools.permutations(_EXAMPLES))
        examples = ''.join(orders[order % len(orders)])
        return f'{_INSTRUCTIONS}{examples}Question: {question}\nSolution:\n'
    if kind == 'whole':
        return question
    raise UserError(f'search.prompt={kind!r}: expected one of {", ".join(KINDS)}')


def split_prompt(text: str) -> tuple[str, str]:
    """(question, what follows) of a text that begins with a trained policy's prompt; (text, '') of
    any other."""
    head, tail = prompt('\0').split('\0')
    question, mark, rest = text.partition(tail)
    if not mark or not question.startswith(head):
        return text, ''
    return question[len(head) :], rest


def writing_prompt(questions: Sequence[str]) -> str:
    """Returns the text that a policy continues with a new problem and `<end_of_answer>`.

    questions: of the problems that the new one is to be like.
    """
    lead = (
        'Mathematics problems that can be solved with what they tell, each closed by '
        f'{ANSWER_END}. No two ask for the same.\n\n'
    )
    return lead + ''.join(f'Problem: {q}{ANSWER_END}\n\n' for q in questions) + 'Problem:'
