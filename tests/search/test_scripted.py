"""Scripted searches: every rule of the tree, and equality with the plain reference."""

import collections
import dataclasses
import functools
import hashlib

import numpy as np
import pytest

from rstar_jax import search, steps
from rstar_jax.data.problem import Problem
from rstar_jax.search import Status, begin
from rstar_jax.settings.errors import UserError
from rstar_jax.steps import marks
from tests.search import reference


def _random(*parts):
    digest = hashlib.blake2b('/'.join(map(str, parts)).encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, 'little'))


def random_texts(question, prefix, n):
    """Steps that run, fail, print, answer, repeat each other or say nothing, by the prefix."""
    rng = _random('texts', question, prefix)
    texts = []
    for _ in range(n):
        kind = rng.choice(7, p=[0.4, 0.1, 0.15, 0.12, 0.03, 0.15, 0.05])
        value = int(rng.integers(3))
        texts.append(
            [
                f'x = {value}\n<end_of_step>',
                f'fail_{value}\n<end_of_step>',
                f'print({value})\n<end_of_code>',
                f'<answer>\\boxed{{{value}}}<end_of_answer>',
                '<answer>no box<end_of_answer>',
                'x = 0\n<end_of_step>',
                '  ',
            ][kind]
        )
    return texts


def random_score(question, prefix):
    return float(np.float32(_random('score', question, prefix).uniform(-1, 1)))


@pytest.fixture(scope='module')
def workers():
    with search.Workers.start(search.Config()) as started:
        yield started


@pytest.fixture
def grow(workers):
    return functools.partial(_grow, workers)


def _problems(count):
    return [Problem(i, f'q{i}', str(i % 3)) for i in range(count)]


def _compare(record, nodes):
    """Node by node, visit by visit, value by value."""
    index = {id(node): i for i, node in enumerate(nodes)}
    assert record.texts == [node.text for node in nodes]
    parents = [index[id(node.parent)] if node.parent else -1 for node in nodes]
    np.testing.assert_array_equal(record.parent, parents)
    np.testing.assert_array_equal(record.status, [node.status for node in nodes])
    np.testing.assert_array_equal(record.visits, [node.visits for node in nodes])
    np.testing.assert_array_equal(record.value_sum, [node.value_sum for node in nodes])
    np.testing.assert_array_equal(record.errors, [node.errors for node in nodes])
    np.testing.assert_array_equal(record.depth, [node.depth for node in nodes])


@pytest.mark.parametrize(
    'settings',
    [
        dict(rollouts=8, candidates=4, max_depth=4, error_threshold=2),
        dict(rollouts=8, candidates=4, max_depth=4, error_threshold=2, failed_steps='once'),
        dict(rollouts=6, candidates=4, max_depth=4, error_threshold=3),
        dict(rollouts=6, candidates=3, max_depth=4, error_threshold=1, answers_kept='all'),
        dict(rollouts=8, candidates=3, max_depth=4, error_threshold=2, scored=True),
        dict(rollouts=5, max_depth=3, scored=True, use_ground_truth=False, error_threshold=2),
        dict(rollouts=8, candidates=2, max_depth=2, unvisited_value=5.0, exploration=0.7),
        dict(rollouts=8, candidates=4, max_depth=3, strategy='puct', scored=True),
        dict(rollouts=8, max_depth=4, strategy='puct', answers_kept='all', error_threshold=2),
        dict(rollouts=8, candidates=4, max_depth=3, stop_reward=1.0),
        dict(candidates=4, max_depth=4, strategy='beam', width=3, scored=True),
        dict(max_depth=4, strategy='beam', width=4, answers_kept='all', error_threshold=2),
        dict(max_depth=4, strategy='dvts', width=3, scored=True, error_threshold=2),
        dict(max_depth=4, strategy='dvts', width=3, error_threshold=2),
        dict(max_depth=4, strategy='dvts', width=3, answers_kept='all', scored=True),
        dict(candidates=3, max_depth=4, strategy='dvts', width=2, scored=True, stop_reward=1.0),
    ],
    ids=str,
)
def test_random_searches_equal_the_reference(settings, workers):
    scored = settings.pop('scored', False)
    config = search.Config(**{'candidates': 4, 'repetition': 0, **settings})
    score = random_score if scored else None
    expander = search.scripted(random_texts, score, trees=64)
    records = list(
        search.run(
            _problems(200), expander=expander, config=config, share=search.Share(workers=workers)
        )
    )
    assert sorted(r.key for r in records) == [(i, 0) for i in range(200)]

    def execute(cells):
        result = workers.pool.submit(cells).result()
        return result.ok, result.output if result.ok else result.error

    seen, below = set(), 0
    for record in records:
        question, truth = record.problem.question, record.problem.answer
        nodes = reference.search(question, truth, random_texts, score, execute, config)
        _compare(record, nodes)
        seen |= set(record.status.tolist())
        # Nodes behind a step that failed without ending its branch, in the same program.
        below += sum(
            bool(record.errors[above]) and steps.CODE_END not in record.texts[above]
            for above in record.parent[1:].tolist()
        )
    assert seen >= {Status.ANSWER, Status.CODE_ERRORS, Status.UNPARSABLE}
    assert (Status.EXHAUSTED in seen) == (config.strategy in ('mcts', 'puct'))
    assert (below > 100) == (config.error_threshold > 1), below


def _grow(workers, script, score=None, truth='1', **settings):
    """Searches one problem beside two others, whose scripts must not matter; returns its record."""
    table = {'q': script, 'wrong': {'': ['<answer>\\boxed{7}<end_of_answer>']}, 'stuck': {}}

    def texts(question, prefix, n):
        found = table[question].get(prefix, ['pass\n<end_of_step>'])
        return [found[i % len(found)] for i in range(n)]

    config = search.Config(**{'rollouts': 1, 'candidates': 2, 'max_depth': 2, **settings})
    problems = [Problem(i, question, truth) for i, question in enumerate(('wrong', 'q', 'stuck'))]
    records = search.run(
        problems,
        expander=search.scripted(texts, score),
        config=config,
        share=search.Share(workers=workers),
    )
    return {r.problem.question: r for r in records}['q']


STEP_A, STEP_B = 'a = 1\n<end_of_step>', 'b = 2\n<end_of_step>'
OOPS = "NameError: name 'oops' is not defined"
RIGHT = '<answer>\\boxed{1}<end_of_answer>'
WRONG = '<answer>\\boxed{2}<end_of_answer>'


def test_identical_texts_are_merged(grow):
    record = grow({'': [STEP_A, STEP_A]}, max_depth=1)
    assert record.texts == ['', STEP_A]
    record = grow({'': [STEP_A, STEP_A + '\n']}, max_depth=1)  # a mark's last token took one along
    assert record.texts == ['', STEP_A]


def test_only_the_first_answer_is_kept(grow):
    script = {'': [STEP_A, WRONG, RIGHT]}
    record = grow(script, candidates=3)
    assert record.texts == ['', WRONG]
    assert record.value_sum.tolist() == [-1, -1]
    record = grow(script, candidates=3, answers_kept='all', max_depth=1)
    assert record.texts == ['', STEP_A, WRONG, RIGHT]
    assert record.visits.tolist() == [2, 0, 1, 1]
    assert record.value_sum.tolist() == [0, 0, -1, 1]
    assert record.correct == [False, False, False, True]


def test_backup_reaches_the_root(grow):
    record = grow({'': [STEP_A, STEP_B], STEP_A: [RIGHT, RIGHT]})
    assert record.texts == ['', STEP_A, STEP_B, RIGHT]
    assert record.visits.tolist() == [1, 1, 0, 1]
    assert record.value_sum.tolist() == [1, 1, 0, 1]
    assert record.status[1] == Status.EXHAUSTED


def test_a_root_of_terminal_children_ends_the_tree(grow):
    record = grow({'': [RIGHT, RIGHT]}, rollouts=5)
    assert record.status.tolist() == [Status.EXHAUSTED, Status.ANSWER]
    assert record.visits.tolist() == [1, 1]


def test_a_tried_wrong_child_can_beat_an_untried_one(grow):
    """Unvisited children count 0; -1 + 2 sqrt(ln 2 / 1) is 0.67."""
    script = {'': [STEP_A, STEP_B, WRONG], STEP_A: [WRONG, STEP_A, STEP_A]}
    settings = {'rollouts': 2, 'candidates': 3, 'answers_kept': 'all'}
    record = grow(script, **settings)
    assert record.visits[:3].tolist() == [2, 1, 0]
    assert (record.parent == 1).any() and not (record.parent == 2).any()
    record = grow(script, unvisited_value=1.0, **settings)
    assert (record.parent == 2).any()


def test_errors_end_a_branch_at_the_threshold(grow):
    bad = 'oops\n<end_of_step>'
    script = {'': [bad, bad], bad: [bad, STEP_A], bad + STEP_A: [bad, bad]}
    record = grow(script, error_threshold=2, max_depth=3, failed_steps='once')
    first, again, fine, last = record.texts[1:5]
    assert first == bad
    assert again.startswith(bad.rstrip()) and again.endswith('<end_of_output>')
    assert "name 'oops' is not defined" in again and '<end_of_code>\n<output>' in again
    assert record.errors.tolist()[:5] == [0, 1, 2, 0, 1]
    assert record.status[2] == Status.CODE_ERRORS and record.value_sum[2] == -1
    assert record.answers[2] == 'Too many consecutive steps have code errors.'
    assert fine == STEP_A and last == bad
    record = grow(script, error_threshold=1)
    assert record.status.tolist() == [Status.EXHAUSTED, Status.CODE_ERRORS]


def test_a_failed_step_fails_every_step_behind_it(grow):
    """By default, as in the released code; the branch around it, and a new program, go on."""
    bad, new = 'oops\n<end_of_step>', 'print(1 / 0)\n<end_of_code>'
    script = {'': [STEP_A, STEP_B], STEP_A: [bad, STEP_B], STEP_A + bad: [STEP_B, RIGHT]}
    record = grow(script, error_threshold=2, max_depth=4, answers_kept='all', rollouts=4)
    behind = record.texts.index(f'{STEP_B}<end_of_code>\n<output>{OOPS}<end_of_output>')
    assert record.texts[record.parent[behind]] == bad
    assert record.status[behind] == Status.CODE_ERRORS and record.errors[behind] == 2
    assert record.outputs[behind] == OOPS
    # An answer is no code: it is as good behind the failed step as elsewhere.
    assert record.status[record.texts.index(RIGHT)] == Status.ANSWER
    once = grow(
        script, error_threshold=2, max_depth=4, answers_kept='all', rollouts=4, failed_steps='once'
    )
    assert Status.CODE_ERRORS not in once.status
    assert not once.errors[(once.parent >= 0) & (np.array(once.texts) == STEP_B)].any()

    # What follows `<end_of_code>` is a program of its own.
    failed = f'{new}\n<output>ZeroDivisionError: division by zero<end_of_output>'
    record = grow({'': [new, new], failed: [STEP_A, STEP_A]}, error_threshold=2)
    assert record.texts[:3] == ['', failed, STEP_A]
    assert record.errors.tolist()[:3] == [0, 1, 0]


def test_what_ran_out_of_time_does_not_run_again_for_each_candidate(grow, workers, monkeypatch):
    slow = 'import time; time.sleep(60)\n<end_of_step>'
    runs, submit = [], workers.pool.submit
    monkeypatch.setattr(workers.pool, 'submit', lambda *a: runs.append(submit(*a)) or runs[-1])
    steps = [f'x = {n}\n<end_of_step>' for n in range(4)]
    record = grow({'': [slow], slow: steps}, candidates=4, error_threshold=2)
    results = [future.result() for future in runs]
    late = [result for result in results if result.error.startswith('TimeoutError')]
    assert len(late) == 4 + 4
    assert len({id(result) for result in late if result.seconds > 5}) == 1
    assert record.status[record.parent == 1].tolist() == [Status.CODE_ERRORS] * 4


def test_a_block_that_the_next_step_completes_is_no_failure_any_more(grow):
    """The program is run again as a whole, not the error remembered."""
    head, body = 'for i in range(3):\n<end_of_step>', '    x = i\n<end_of_step>'
    record = grow({'': [head, head], head: [body, STEP_A]}, error_threshold=2)
    assert record.texts[:3] == ['', head, body]
    assert record.errors.tolist() == [0, 1, 0, 2]
    assert record.status[3] == Status.CODE_ERRORS and 'IndentationError' in record.outputs[3]


def test_output_follows_the_end_of_the_code_and_variables_carry_over(grow):
    first, second = 'x = 2\n<end_of_step>', 'print(x / 3)\n<end_of_code>'
    record = grow({'': [first], first: [second]})
    assert record.texts[2] == second + '\n<output>0.6667<end_of_output>'
    assert record.outputs[2] == '0.6667'


def test_code_that_speaks_of_a_box_is_code(grow):
    """The few-shot instruction ends in the words, and a model may say them back."""
    spoken = '# Now the answer in \\boxed{} or \\boxed format\nprint(2)\n<end_of_code>'
    record = grow({'': [spoken]})
    assert record.outputs[1] == '2'
    record = grow({'': ['# \\boxed{1}\n<end_of_step>']})
    assert record.status[1] == Status.ANSWER and record.solved
    record = grow({'': ['<answer>It is \\boxed 1<end_of_answer>']})
    assert record.status[1] == Status.ANSWER and record.solved


def test_beams_that_have_found_answers_end_alone(grow):
    """Several answers of one beam take no other beam along; its own steps are not gone on with."""
    scores = {STEP_A: 0.5, STEP_B: 0.25, STEP_A + STEP_B: 0.75}
    script = {'': [STEP_A, STEP_B, STEP_A], STEP_A: [WRONG, STEP_B, RIGHT], STEP_B: [STEP_A]}
    settings = {'candidates': 3, 'max_depth': 2, 'width': 2, 'answers_kept': 'all'}

    def expanded(strategy):
        record = grow(script, lambda q, p: scores.get(p, 0.0), strategy=strategy, **settings)
        paths = map(record.trajectory, set(record.parent.tolist()) - {-1, 0})
        return {''.join(record.texts[i] for i in path) for path in paths}

    assert expanded('dvts') == {STEP_A, STEP_B, STEP_B + STEP_A}
    assert expanded('beam') == {STEP_A, STEP_B, STEP_A + STEP_B}


def test_a_solution_that_goes_round_ends(grow):
    """At the third step in a row that does the same, whatever number it has."""
    one, *others = (f'# Step {i}\nx = 1\n<end_of_step>\n' for i in range(1, 5))
    script, prefix = {'': [STEP_A], STEP_A: [one]}, STEP_A + one
    for text in others:
        script[prefix] = [text]
        prefix += text
    record = grow(script, max_depth=8)
    assert record.texts == ['', STEP_A, one, *others[:2]]
    assert record.status[-1] == Status.UNPARSABLE and record.value_sum[-1] == -1
    record = grow(script, repetition=0, max_depth=8)
    assert record.texts[:6] == ['', STEP_A, one, *others]
    talk = [f'# {i}\n<end_of_step>' for i in range(3)]
    script = {'': talk[:1], talk[0]: talk[1:2], talk[0] + talk[1]: talk[2:]}
    record = grow(script, max_depth=3)
    assert record.texts[:4] == ['', *talk] and Status.UNPARSABLE not in record.status


@pytest.mark.parametrize(
    ('code', 'ends'),
    [
        ('x = 1', True),
        ('x = 6 * 7\nprint(x * 2)', False),  # reads what it sets
        ('y = 6 * 7  # {i}\nprint(6)', True),
        ('x = x * 2', False),
        ('x += x', False),
        ('seen.append(3)', False),
        ('print(x)', True),
        ('total = [', False),
    ],
)
def test_only_a_step_that_changes_nothing_goes_round(grow, code, ends):
    """What doubles three times over three steps is no loop."""
    first = '<code>\nx, seen = 1, []\n<end_of_step>\n'
    script, prefix = {'': [first]}, first
    for i in range(3):
        script[prefix] = [code.replace('{i}', str(i)) + '\n<end_of_step>\n']
        prefix += script[prefix][0]
    record = grow(script, max_depth=5, error_threshold=9, rollouts=1)
    assert (record.status[4] == Status.UNPARSABLE) == ends


def test_children_beyond_the_depth_limit(grow):
    record = grow({}, rollouts=2, max_depth=1)
    assert record.depth.tolist() == [0, 1, 2]
    assert record.status.tolist() == [Status.OPEN, Status.EXHAUSTED, Status.TOO_DEEP]
    assert record.answers[2] == 'Fail to sove the problem within limited steps.'
    assert record.value_sum.tolist() == [0, 0, -1]


def test_the_first_of_equals_is_walked_into(grow):
    record = grow({'': [STEP_A, STEP_B]}, score=lambda q, p: 0.5)
    assert record.parent.tolist() == [-1, 0, 0, 1]


def test_ppm_scores_guide_and_stay_on_their_node(grow):
    scores = {STEP_A: -0.5, STEP_B: 0.5, STEP_B + STEP_A: 0.25}
    record = grow(
        {'': [STEP_A, STEP_B], STEP_B: [STEP_A, STEP_A]}, score=lambda q, p: scores.get(p, 0.0)
    )
    assert record.texts == ['', STEP_A, STEP_B, STEP_A]
    assert record.visits.tolist() == [0, 1, 1, 1]
    np.testing.assert_array_equal(record.value_sum, np.float32([0, -0.5, 0.5, 0.25]))


def test_at_test_time_the_ppm_is_the_reward(grow):
    record = grow(
        {'': [WRONG, RIGHT]}, score=lambda q, p: 0.25, use_ground_truth=False, answers_kept='all'
    )
    np.testing.assert_array_equal(record.value_sum, np.float32([0.5, 0.25, 0.25]))
    assert record.visits.tolist() == [2, 1, 1]
    assert record.best_answer() == ('2', 0.25)


def test_records_survive_storage_and_interchange(grow):
    program = 'print(3)\n<end_of_code>'
    script = {'': [STEP_A, program], STEP_A: [STEP_B, RIGHT], STEP_A + STEP_B: [RIGHT, WRONG]}
    script[f'{program}\n<output>3<end_of_output>'] = [WRONG, 'oops\n<end_of_step>']
    settings = dict(rollouts=4, max_depth=3, answers_kept='all', score=lambda q, p: 0.125)
    record = grow(script, **settings)
    assert {Status.ANSWER, Status.CODE_ERRORS} <= {*record.status} and record.outputs[2] == '3'
    again = search.Record.from_bytes(record.to_bytes())
    assert again.to_interchange() == record.to_interchange()
    assert again.tokens == record.tokens and again.correct == record.correct
    back = search.Record.from_interchange(record.to_interchange())
    assert back.to_interchange() == record.to_interchange()
    order = [record.tags().index(tag) for tag in back.tags()]
    for name in ('visits', 'value_sum', 'score', 'depth', 'correct'):
        found, expected = getattr(back, name), np.array(getattr(record, name))[order]
        np.testing.assert_array_equal(found, expected, name)


def test_behind_an_output_a_general_model_goes_on_in_a_new_line(grow):
    program = 'print(1)\n<end_of_code>'
    written = f'{program}\n<output>1<end_of_output>'
    for prompt, behind in (('sft', ''), ('few_shot', '\n')):
        script = {'': [program], written + behind: [RIGHT]}
        record = grow(script, prompt=prompt, rollouts=2)
        assert record.texts[1:] == [written + behind, RIGHT]
        assert record.solved


def test_a_policy_that_writes_no_mark_is_found_out_after_the_first_trees(workers):
    asked = []

    def texts(question, prefix, n):
        asked.append(question)
        return ['', 'The answer is', 'x = (', 'y'][:n]

    config = search.Config(rollouts=2, candidates=4)
    expander = search.scripted(texts, trees=4)
    records = search.run(
        _problems(100), expander=expander, config=config, share=search.Share(workers=workers)
    )
    with pytest.raises(UserError) as error:
        list(records)
    assert (error.value.argument, error.value.value) == ('prompt', 'sft')
    assert len(asked) == 8

    # One mark is enough, and so is a tree that grows without any.
    for good in ('x = 1\n<end_of_step>', 'x = 1', 'It is \\boxed{7}'):
        expander = search.scripted(lambda q, p, n, good=good: [good if q == 'q1' else ''] * n)
        records = search.run(
            _problems(30), expander=expander, config=config, share=search.Share(workers=workers)
        )
        assert len(list(records)) == 30


def test_a_problem_is_done_when_its_answers_agree(workers):
    """By a lead, over all its trees; 1.0 and 1 are one answer."""
    answers = {0: ['1', '2', '1.0', '1', '2'], 1: ['3', '4', '3', '4', '3']}

    def texts(question, prefix, n):
        # Of one problem at a time, one tree after another.
        number = asked[question]
        asked[question] += 1
        return [f'<answer>\\boxed{{{answers[int(question[1])][number]}}}<end_of_answer>'] * n

    for agree, expected in ((2, [4, 5]), (1, [1, 1]), (0, [5, 5])):
        asked = collections.Counter()
        config = search.Config(
            rollouts=1, candidates=1, max_depth=2, use_ground_truth=False, agree=agree
        )
        expander = search.scripted(texts, trees=8 if agree else 1)
        records = search.run(
            [problem.to_dict() | {'job': 7} for problem in _problems(2)],  # a field like any other
            expander=expander,
            config=config,
            trees=5,
            share=search.Share(workers=workers),
        )
        found = collections.Counter(record.problem.index for record in records)
        assert [found[0], found[1]] == expected, agree
    with pytest.raises(UserError, match='agree=2: a search for training data'):
        search.Config(agree=2)


def test_what_others_have_sampled_behind_an_answer_is_not_spent(workers):
    """How far they come until it is known depends on what else is searched."""

    class Sampled(search.scripted):
        in_vain = 0  # tokens of each candidate behind the first answer

        def collect(self, running):
            found, answered = [], set()
            for step in super().collect(running):
                tokens = self.in_vain if step.row in answered else 4
                found.append(dataclasses.replace(step, sampled=tokens))
                if step.kind == marks.ANSWER:
                    answered.add(step.row)
            return found

    config = search.Config(rollouts=4, candidates=4, max_depth=4, tokens=60)
    made = []
    for in_vain in (0, 4, 50):
        expander = Sampled(random_texts)
        expander.in_vain = in_vain
        records = search.run(
            _problems(20),
            expander=expander,
            config=config,
            trees=9,
            share=search.Share(workers=workers),
        )
        made.append({record.key: record for record in records})
    for others in made[1:]:
        assert others.keys() == made[0].keys()
        for key, record in made[0].items():
            assert others[key].texts == record.texts
            assert others[key].counters['spent_tokens'] == record.counters['spent_tokens']
    tokens = [sum(r.counters['sampled_tokens'] for r in of.values()) for of in made]
    assert tokens[0] < tokens[1] < tokens[2]  # there were such
    assert all(r.counters['spent_tokens'] == r.counters['sampled_tokens'] for r in made[0].values())
    for problem in _problems(20):
        spent = [
            r.counters['spent_tokens'] for key, r in made[0].items() if key[0] == problem.index
        ]
        assert sum(spent) - spent[-1] < 60


def test_a_tree_ends_when_its_answers_agree(workers):
    def texts(question, prefix, n):
        return [STEP_A, RIGHT]

    settings = dict(rollouts=2, candidates=2, max_depth=4, answers_kept='all', repetition=0)
    settings['use_ground_truth'] = False
    sizes = []
    for agree in (0, 2):
        config = search.Config(agree=agree, **settings)
        expander = search.scripted(texts)
        (record,) = search.run(
            _problems(1), expander=expander, config=config, share=search.Share(workers=workers)
        )
        sizes.append(len(record.texts))
    assert sizes == [11, 5]  # two of each expansion; the second one brings the second answer
    # Those of trees before it count: the first tree has two, so the next ends with its first.
    config = search.Config(agree=3, **{**settings, 'rollouts': 1, 'max_depth': 2})
    given = dict(
        expander=search.scripted(texts), config=config, share=search.Share(workers=workers), trees=3
    )
    assert [len(record.texts) for record in search.run(_problems(1), **given)] == [5, 3]


def test_puct_goes_by_how_likely_a_token_of_a_step_is(workers):
    """Of a step of many tokens each may be likelier than those of a short one."""

    class Likely(search.scripted):
        said: dict[str, tuple[float, int]]

        def collect(self, running):
            return [
                dataclasses.replace(step, likelihood=likelihood, sampled=sampled)
                for step in super().collect(running)
                for likelihood, sampled in [self.said.get(step.text, (-1.0, 1))]
            ]

    def texts(question, prefix, n):
        return [WRONG, STEP_A, STEP_B] if not prefix else [RIGHT] * n

    config = search.Config(
        strategy='puct', rollouts=1, candidates=3, max_depth=2, answers_kept='all'
    )
    for said, expected in (
        ({STEP_A: (-2.0, 2), STEP_B: (-3.0, 6)}, STEP_B),
        ({STEP_A: (-2.0, 4), STEP_B: (-3.0, 4)}, STEP_A),
        ({STEP_A: (float('nan'), 1), STEP_B: (-0.5, 1)}, STEP_B),  # one of them is not known
    ):
        expander = Likely(texts)
        expander.said = said
        (record,) = search.run(
            _problems(1), expander=expander, config=config, share=search.Share(workers=workers)
        )
        assert record.texts[record.parent[-1]] == expected
    # Where none is known all are alike, and go by their values: after a wrong answer, the other.
    expander = Likely(lambda q, p, n: [WRONG, STEP_A, STEP_A] if p else [STEP_A, STEP_B, STEP_B])
    expander.said = dict.fromkeys([WRONG, STEP_A, STEP_B], (float('nan'), 1))
    config = dataclasses.replace(config, rollouts=2)
    (record,) = search.run(
        _problems(1), expander=expander, config=config, share=search.Share(workers=workers)
    )
    assert record.texts[:3] == ['', STEP_A, STEP_B] and {0, 1, 2} <= {*record.parent.tolist()}


@pytest.mark.parametrize(('context', 'kind'), [(60, Status.OPEN), (61, Status.TOO_DEEP)])
def test_a_path_is_full_where_a_whole_step_does_not_fit_any_more(context, kind, workers):
    class Counted(search.scripted):
        def collect(self, running):
            return [dataclasses.replace(s, context=context) for s in super().collect(running)]

    config = search.Config(rollouts=1, candidates=1, max_depth=1, path_tokens=100, step_tokens=40)
    expander = Counted(lambda q, p, n: [STEP_A])
    (record,) = search.run(
        _problems(1), expander=expander, config=config, share=search.Share(workers=workers)
    )
    assert record.status[1] == kind


def test_shuffled_examples_stand_in_an_order_of_the_trees_own():
    def prompts(**settings):
        config = search.Config(prompt='few_shot', **settings)
        trees = [(problem, number) for problem in _problems(4) for number in range(4)]
        made = [begin.new_tree(*t, seed=0, config=config, tokenizer=None).prompt for t in trees]
        return [text.replace(p.question, 'q') for text, (p, _) in zip(made, trees, strict=True)]

    orders = [steps.prompt('q', 'few_shot', order) for order in range(steps.ORDERS)]
    assert {*prompts()} == {orders[0]}
    found = prompts(examples='shuffled')
    assert found == prompts(examples='shuffled')
    for some in (found[:4], found[::4]):  # of one problem, and of several
        assert {*some} == {*orders}
