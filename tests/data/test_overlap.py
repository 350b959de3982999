"""Overlap of training problems with benchmarks."""

from rstar_jax.data import overlap as overlap_module
from rstar_jax.data.overlap import Overlap
from rstar_jax.data.problem import Problem

LONG = 'A farmer has 17 sheep and 4 dogs and sells 9 of the sheep to his old neighbour.'
BENCHMARKS = {
    'short': [Problem(0, 'What is $1+1$?')],
    'long': [Problem(0, f'{LONG} How many sheep has he left?')],
}


def test_the_same_question_is_found_however_it_is_spelt():
    overlap = Overlap(BENCHMARKS, 13)
    assert overlap.find('what is 1 + 1') == 'short'
    assert overlap.find('What is $1+1$, doubled?') is None  # shorter than 6 words: all or nothing
    assert overlap.find('') is None


def test_questions_without_a_word_are_not_all_alike():
    overlap = Overlap({'signs': [Problem(0, '∑?')]}, 13)
    assert overlap.find('∫ ∞') is None


def test_without_benchmarks_no_text_is_looked_at(monkeypatch):
    monkeypatch.setattr(overlap_module, '_words', None)
    assert Overlap({}, 13).find(LONG) is None


def test_a_short_question_is_found_within_a_longer_one():
    short = r'Simplify $\sqrt{242}$. Express your answer in simplest radical form.'
    overlap = Overlap({'short': [Problem(0, short)]}, 13)
    assert len(overlap._known) == 1  # ten words
    assert overlap.find(f'Ann has a square. {short} How long is its side?') == 'short'
    assert overlap.find(short.replace('242', '244') + ' Why?') is None
    assert overlap.find(short.replace('form.', '')) is None
    few = Overlap({'few': [Problem(0, 'Find the sum of the digits.')]}, 13)  # six words
    assert few.find('Add 2 and 3. Find the sum of the digits of it.') == 'few'
    fewer = Overlap({'fewer': [Problem(0, 'Find the sum of digits.')]}, 13)
    assert fewer.find('Add 2 and 3. Find the sum of digits of it.') is None
    other = short.replace('in simplest radical form', 'as decimal')  # that begins alike
    both = Overlap({'short': [Problem(0, other), Problem(0, short)]}, 13)
    assert all(both.find(f'{text} Why?') for text in (short, other))
    whole = Overlap({'short': [Problem(0, short)]}, 10**6)  # the same questions alone
    assert whole.find(f'{short} Why?') is None and whole.find(short) == 'short'


def test_so_many_words_in_a_row_are_an_overlap():
    overlap = Overlap(BENCHMARKS, 13)
    assert overlap.find(f'Once upon a time: {LONG} How much money has he?') == 'long'
    ends = ' '.join(BENCHMARKS['long'][0].question.split()[-13:])
    assert overlap.find(f'Tell me: {ends}') == 'long'
    other = LONG.replace('sells', 'buys')  # eight words before it, eight behind
    assert overlap.find(f'{other} What does he earn?') is None
    assert Overlap(BENCHMARKS, 8).find(other) == 'long'
    assert overlap.find(LONG.replace('17', '18')) == 'long'  # 13 words behind the number


def test_what_is_kept_of_so_many_words_is_small():
    """And the same on all hosts, so that they leave out the same problems."""
    assert Overlap({'short': BENCHMARKS['short']}, 13)._known == {
        bytes.fromhex('90e08d00cb43e096'): 'short'
    }
    assert {len(gram) for gram in Overlap(BENCHMARKS, 13)._known} == {8}


def test_problems_are_split_and_counted_by_index():
    problems = [
        Problem(4, 'What is 1+1?'),
        Problem(9, 'What is 1+2?'),
        Problem(2, LONG),
    ]
    kept, found = Overlap(BENCHMARKS, 13).split(problems)
    assert [p.index for p in kept] == [9]
    assert found == {4: 'short', 2: 'long'}
