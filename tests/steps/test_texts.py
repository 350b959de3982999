"""The step language on any text: whatever a policy writes, in whatever tokens."""

from hypothesis import given, settings
from hypothesis import strategies as st

from rstar_jax import steps
from rstar_jax.steps import marks

MARKS = [*steps.TEMPLATE_MARKS, '\\boxed{', '}', '```', '```python\n', '\n', '<end_of_', '<']
TEXT = st.lists(st.sampled_from(MARKS) | st.text(max_size=6), max_size=12).map(''.join)
FUZZ = settings(max_examples=100, derandomize=True, deadline=None)


@FUZZ
@given(TEXT, st.data())
def test_the_first_mark_is_found_however_its_text_is_cut_into_tokens(text, data):
    whole = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=10)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    kinds = steps.stops('sft')
    table = steps.mark_table([*pieces, b''], kinds, [len(pieces)])
    state = 0
    for token in range(len(pieces)):
        state = table.next[state, token]
    ends = [(text.index(mark) + len(mark), kind) for mark, kind in kinds.items() if mark in text]
    assert table.kind[state] == (min(ends)[1] if ends else marks.NONE)
    assert table.kind[table.next[state, len(pieces)]] == marks.EOS  # whatever came before


@FUZZ
@given(TEXT, st.text(max_size=20))
def test_an_output_is_no_code(step, output):
    if '<' not in output and steps.OUTPUT not in step and steps.OUTPUT_END not in step:
        shown = steps.with_output(step, output)
        assert output in shown and shown.endswith(steps.OUTPUT_END)
        assert steps.code_of(shown).strip() == steps.code_of(step).strip()


@FUZZ
@given(st.lists(TEXT, max_size=5))
def test_whitespace_moves_and_nothing_else(texts):
    made = steps.ended_at_marks(texts)
    assert len(made) == len(texts)
    assert ''.join(made).rstrip() == ''.join(texts).rstrip()


@FUZZ
@given(TEXT, st.text('ab{}', max_size=8))
def test_the_last_box_is_read(text, inside):
    found = steps.boxed(text)
    assert found is None or found in text
    if inside.count('{') == inside.count('}') and '}' not in inside.split('{')[0]:
        depth = 0
        if all((depth := depth + (c == '{') - (c == '}')) >= 0 for c in inside):
            assert steps.boxed(f'{text} \\boxed{{{inside}}}') == inside
