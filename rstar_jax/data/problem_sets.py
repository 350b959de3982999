"""The published problem sets: benchmarks, the paper's and newer ones, and training sets.

Benchmarks are named so, model cards cite them, and `tfds:rstar_problems/NAME` downloads them.
"""

import dataclasses
import pathlib
from collections.abc import Iterable

_QWEN = 'https://raw.githubusercontent.com/QwenLM/Qwen2.5-Math/main/evaluation/data'
_GSM8K = 'https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data'
_HUB = 'https://huggingface.co/datasets'
HUB, TFDS = 'hf:', 'tfds:'  # before the names of data sets
OURS = 'rstar_problems'  # the builder that comes with this package
PREPARED = 'tensorflow_datasets'  # where it prepares, in the folder
ENDINGS = ('.json', '.jsonl', '.parquet')


@dataclasses.dataclass(frozen=True)
class ProblemSet:
    """One set.

    Attributes:
      hub: its name on the Hugging Face hub, by which model cards cite it.
      urls: its files where its makers, or an evaluation suite that others use, publish them.
      count: rows in these files; None where nobody has counted.
      stems: names that a file of it has in people's folders, without ending.
      split: 'test' for benchmarks, 'train' for what may be trained on.
    """

    hub: str
    urls: tuple[str, ...]
    count: int | None
    stems: tuple[str, ...]
    split: str = 'test'


def file_in(folder: pathlib.Path, stems: Iterable[str]) -> pathlib.Path | None:
    """The first file in a folder of these names and one of ENDINGS, or None."""
    paths = (folder / (stem + ending) for stem in stems for ending in ENDINGS)
    return next(filter(pathlib.Path.is_file, paths), None)


SETS: dict[str, ProblemSet] = {
    'math500': ProblemSet(
        'HuggingFaceH4/MATH-500',
        (f'{_HUB}/HuggingFaceH4/MATH-500/resolve/main/test.jsonl',),
        500,
        ('math500', 'math_500'),
    ),
    'aime2024': ProblemSet(
        'HuggingFaceH4/aime_2024', (f'{_QWEN}/aime24/test.jsonl',), 30, ('aime2024', 'aime24')
    ),
    'aime2025': ProblemSet(
        'math-ai/aime25',
        (f'{_HUB}/math-ai/aime25/resolve/main/test.jsonl',),
        30,
        ('aime2025', 'aime25'),
    ),
    'amc23': ProblemSet('math-ai/amc23', (f'{_QWEN}/amc23/test.jsonl',), 40, ('amc23', 'amc2023')),
    'olympiadbench': ProblemSet(
        'Hothan/OlympiadBench',
        (f'{_QWEN}/olympiadbench/test.jsonl',),
        675,
        ('olympiadbench', 'olympiad_bench', 'olympiad'),
    ),
    'collegemath': ProblemSet(
        'realtreetune/college_math',
        (f'{_QWEN}/college_math/test.jsonl',),
        2818,
        ('collegemath', 'college_math', 'college'),
    ),
    'gsm8k': ProblemSet('openai/gsm8k', (f'{_GSM8K}/test.jsonl',), 1319, ('gsm8k_test', 'gsm8k')),
    'gaokao2023en': ProblemSet(
        'MARIO-Math-Reasoning/Gaokao2023-Math-En',
        (f'{_QWEN}/gaokao2023en/test.jsonl',),
        385,
        ('gaokao2023en', 'gaokao_en', 'gaokao'),
    ),
    'omnimath': ProblemSet(
        'KbsdJames/Omni-MATH',
        (f'{_HUB}/KbsdJames/Omni-MATH/resolve/main/test.jsonl',),
        4428,
        ('omnimath', 'omni_math'),
    ),
    'gsm8k_train': ProblemSet(
        'openai/gsm8k', (f'{_GSM8K}/train.jsonl',), 7473, ('gsm8k_train',), 'train'
    ),
    'math_train': ProblemSet(
        'EleutherAI/hendrycks_math', (f'{_QWEN}/math/train.jsonl',), None, ('math_train',), 'train'
    ),
    'metamath': ProblemSet(
        'meta-math/MetaMathQA',
        (f'{_HUB}/meta-math/MetaMathQA/resolve/main/MetaMathQA-395K.json',),
        395_000,
        ('MetaMathQA-395K', 'metamath', 'metamathqa'),
        'train',
    ),
    'numinamath_cot': ProblemSet(
        'AI-MO/NuminaMath-CoT',
        tuple(
            f'{_HUB}/AI-MO/NuminaMath-CoT/resolve/main/data/train-0000{i}-of-00005.parquet'
            for i in range(5)
        ),
        None,
        ('numinamath_cot', 'numina_cot', 'numinamath'),
        'train',
    ),
}
BENCHMARKS = tuple(name for name, row in SETS.items() if row.split == 'test')
