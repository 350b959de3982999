"""Programs in the pool: cells, output, errors, limits, memory of identical programs."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time

import pytest

from rstar_jax import execution
from rstar_jax.execution import scratch, workers
from rstar_jax.execution.process import WorkerDied
from rstar_jax.settings.errors import UserError
from tests.execution.processes import alive, family, folders

LIMITS = execution.Limits(seconds=2, memory_mb=256)


@pytest.fixture(scope='module')
def pool():
    with execution.Pool(workers=1, limits=LIMITS) as pool:
        yield pool


def run(pool, program):
    return pool.submit(program).result(60)


def test_output_of_the_last_cell_only(pool):
    result = run(pool, ['x = 3', 'print(x)', 'y = x * x\nprint(y + 7)'])
    assert (result.ok, result.output, result.error) == (True, '16', '')
    assert run(pool, ['print(1)', 'z = 2']).output == ''


def test_cells_of_a_whole_program_end_it_with_their_first_error(pool):
    cells = ['x = 1', 'oops', 'print(x)']
    assert run(pool, cells).output == '1'
    result = pool.submit(cells, whole=True).result(60)
    assert (result.ok, result.output) == (False, '')
    assert result.error == "NameError: name 'oops' is not defined"
    # One that does not compile fails it, too, unless the next goes on inside of its block.
    loop = 'for i in range(3):'
    assert 'IndentationError' in pool.submit([loop, 'print(2)'], whole=True).result(60).error
    assert pool.submit([loop, '    print(i)'], whole=True).result(60).output == '0\n1\n2'
    assert pool.submit(['x = 4', 'print(x)'], whole=True).result(60).output == '4'


def test_cells_that_are_known_to_fail_do_not_run_again(pool):
    error = 'TimeoutError: ran longer than the limit of 2 s'
    again = pool.submit(['while True: pass', 'print(1)'], whole=True, failed=error).result(60)
    assert (again.ok, again.output, again.error) == (False, '', error)
    assert again.seconds < 1.5
    cells = ['try:\n    int("x")\nexcept KeyError:\n    pass', 'except ValueError:\n    print(3)']
    first = pool.submit(cells[:1], whole=True).result(60).error
    assert pool.submit(cells, whole=True, failed=first).result(60).output == '3'
    last = pool.submit([cells[0], 'def f(:'], whole=True, failed=first).result(60)
    assert last.error == 'SyntaxError: invalid syntax'


def test_integers_of_any_length_are_printed(pool):
    assert run(pool, 'print(sum(int(digit) for digit in str(2**20000)))').output == '26995'
    assert run(pool, 'print(len(str(int("7" * 5000))))').output == '5000'
    assert 'TimeoutError' in run(pool, 'print(2**50_000_000)').error


def test_cells_share_names_functions_and_imports(pool):
    cells = ['import math\ndef area(r):\n    return math.pi * r ** 2', 'r = 2', 'print(area(r))']
    assert run(pool, cells).output == '12.5664'


def test_a_block_may_go_on_in_the_next_cell(pool):
    assert (
        run(pool, ['s = 0\nfor i in range(4):\n    s += i', '    s += 1\nprint(s)']).output == '10'
    )


def test_a_program_is_the_main_module_and_has_no_arguments(pool):
    pickled = 'import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))))'
    assert run(pool, pickled).output == "<class '__main__.A'>"
    assert run(pool, ['x = 2', 'import __main__\nprint(__main__.x)']).output == '2'
    parsed = 'import argparse, sys\nargparse.ArgumentParser().parse_args()\nprint(sys.argv[1:])'
    assert run(pool, parsed).output == '[]'


def test_a_trusted_job_is_not_over_while_it_waits_for_a_processor():
    spawn = {'count': 1, 'jobs_per_child': 9, 'isolation': 'auto', 'finish': lambda r: (r, False)}
    several = workers.Workers(
        'tests.execution.waiting', limits=execution.Limits(seconds=1), **spawn
    )
    try:
        assert several.submit({'wait': 2}).result(60)['waited'] == 2
        assert several.submit({'wait': 60}).result(60)['killed'] == 'seconds'
        assert several.submit({'work': 60}).result(60)['killed'] == 'seconds'
    finally:
        several.close()


@pytest.mark.skipif(sys.platform != 'linux', reason='its processor time is not known elsewhere')
def test_a_program_is_not_over_while_it_waits_for_a_processor():
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(ours)})  # the workers share one
    try:
        with execution.Pool(workers=2, limits=execution.Limits(seconds=1)) as pool:
            work = 'import time\nwhile time.process_time() < 0.8: pass\nprint({})'
            both = [pool.submit(work.format(number)) for number in range(2)]
            assert [future.result(60).output for future in both] == ['0', '1']
            for program in ('while True: pass', 'import time\ntime.sleep(60)'):
                result = run(pool, program)
                assert 'TimeoutError' in result.error
                assert result.seconds < 10
    finally:
        os.sched_setaffinity(0, ours)


@pytest.mark.skipif(not os.path.exists('/proc/thread-self/schedstat'), reason='not told here')
def test_a_program_that_others_keep_from_processors_does_not_sleep():
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(ours)})
    others = []
    try:
        with execution.Pool(workers=1, limits=execution.Limits(seconds=1)) as pool:
            assert run(pool, 'print(0)').ok
            loop = [sys.executable, '-c', 'while True: pass']
            others += [subprocess.Popen(loop) for _ in range(8)]
            work = 'import time\nwhile time.process_time() < 0.3: pass\nprint(1)'
            assert run(pool, work).output == '1'
            result = run(pool, 'import time\ntime.sleep(60)')
            assert 'TimeoutError' in result.error and result.seconds < 3
    finally:
        for other in others:
            other.kill()
            other.wait()
        os.sched_setaffinity(0, ours)


def test_a_trusted_job_does_not_suffer_from_what_others_left_in_memory():
    spawn = {'count': 1, 'jobs_per_child': 9, 'isolation': 'auto', 'finish': lambda r: (r, False)}
    several = workers.Workers('tests.execution.waiting', limits=LIMITS, **spawn)
    try:
        kept = [several.submit({'keep': size}).result(60).get('kept') for size in (90, 91, 92, 93)]
        assert kept == [1, 2, 1, 2]
        assert several.submit({'keep': 1000}).result(60)['killed'] == 'ended'
    finally:
        several.close()


@pytest.mark.parametrize(
    ('program', 'error'),
    [
        ('print(1/0)', 'ZeroDivisionError: division by zero'),
        ('x = undefined_name', "NameError: name 'undefined_name' is not defined"),
        ('def f(:', 'SyntaxError: invalid syntax'),
        ('raise ValueError("two\\nlines")', 'ValueError: two lines'),
        ('raise SyntaxError(5)', 'SyntaxError: 5'),
        ('raise KeyboardInterrupt', 'KeyboardInterrupt'),
        ('exit(3)', 'SystemExit: 3'),
        ('import os\nos._exit(0)', 'SystemExit: the process ended itself with code 0'),
        ('input()', 'EOFError: EOF when reading a line'),
        ('def f():\n    f()\nf()', 'RecursionError: maximum recursion depth exceeded'),
        ('while True: pass', 'TimeoutError: ran longer than the limit of 2 s'),
        ('x = [0] * 10**9', 'MemoryError'),
        ('print("x" * 2000000)', 'OutputError: printed more than the limit of 1000000 characters'),
    ],
)
def test_errors_are_one_line_that_says_what_failed(pool, program, error):
    result = run(pool, program)
    assert not result.ok
    assert result.error.startswith(error)
    assert '\n' not in result.error


def test_a_plot_is_drawn_for_nobody(pool):
    pytest.importorskip('matplotlib')
    plot = 'import matplotlib.pyplot as plt\nplt.plot([1, 2], [3, 4])\nplt.show()\nprint(7)'
    result = run(pool, plot)
    assert (result.output, result.error) == ('7', '')
    assert run(pool, 'import os\nprint(os.listdir())').output == '[]'


def test_a_program_may_hide_what_it_prints_for_a_while(pool):
    cells = [
        'import io, sys\nsys.stdout = io.StringIO()\nprint(1)',
        'sys.stdout = sys.stderr = io.StringIO()\nprint(2)\n'
        'sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__\nprint(3)',
    ]
    assert run(pool, cells).output == '3'
    alone = cells[1].replace('sys.stdout', 'import io, sys\nsys.stdout', 1)
    assert run(pool, alone).output == '3'


@pytest.mark.parametrize('loss', ['os.rmdir', 'shutil.rmtree', 'lambda x: os.rename(x, x + "x")'])
def test_a_program_that_takes_its_folder_away_leaves_the_next_one_another(loss):
    before = folders()
    write = 'open("new", "w").write("x")\nimport os\nprint(os.listdir(os.getcwd()))'
    with execution.Pool(workers=1, limits=LIMITS, isolation='none') as pool:
        assert run(pool, f'import os, shutil\n({loss})(os.getcwd())').ok
        assert [run(pool, f'{write}  # {n}').output for n in range(2)] == ["['new']"] * 2
        # So may who cleans up, and what is around it.
        (ours,) = folders() - before
        shutil.rmtree(ours)
        run(pool, 'print(1)')
        assert run(pool, f'{write}  # again').output == "['new']"


def test_an_interpreter_that_needs_its_libraries_told_starts(monkeypatch, tmp_path):
    """As one of a cluster's modules does."""
    script = tmp_path / 'python'
    script.write_text(
        f'#!/bin/sh\nif [ -z "$LD_LIBRARY_PATH" ]; then exit 127; fi\nexec {sys.executable} "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, 'executable', str(script))
    monkeypatch.setenv('LD_LIBRARY_PATH', str(tmp_path))
    with execution.Pool(workers=1, limits=LIMITS) as pool:
        assert run(pool, 'import os\nprint(os.environ.get("LD_LIBRARY_PATH"))').output == 'None'


@pytest.mark.skipif(sys.platform != 'linux', reason='looks at /proc')
def test_where_memory_runs_out_programs_end_first(pool):
    assert run(pool, 'print(1)  # it is warm').ok
    scores = []
    for pid in (os.getpid(), *family(os.getpid())):
        with open(f'/proc/{pid}/oom_score_adj', encoding='ascii') as file:
            scores.append(int(file.read()))
    assert scores[0] < max(scores) == 1000


def test_earlier_cells_are_history(pool):
    result = run(pool, ['x = 2\nprint(1 / 0)', 'syntax error here', 'print(x)'])
    assert (result.ok, result.output, result.error) == (True, '2', '')
    result = run(pool, ['print(1)', 'print(1 / 0)'])
    assert (result.ok, result.output) == (False, '')
    assert result.error == 'ZeroDivisionError: division by zero'


def test_output_limit_holds_though_its_error_is_swallowed(pool):
    program = 'try:\n    while True: print("y" * 10000)\nexcept BaseException: pass\nprint(1)'
    assert run(pool, program).error.startswith('OutputError')


def test_nothing_survives_from_one_program_to_the_next(pool):
    assert run(pool, 'import builtins, math\nbuiltins.leak = 1\nmath.pi = 3\nleft = 2').ok
    assert run(pool, 'import math\nprint(math.pi > 3.1)').output == 'True'
    assert run(pool, 'print(leak)').error == "NameError: name 'leak' is not defined"
    assert run(pool, 'print(left)').error == "NameError: name 'left' is not defined"
    assert run(pool, 'open("note", "w").write("x")\nimport os\nprint(os.listdir())').ok
    assert run(pool, 'import os\nprint(os.listdir("."))').output == '[]'


def test_the_same_program_says_the_same_in_every_worker():
    program = (
        'import random, numpy\n'
        'print(random.random(), numpy.random.rand(), numpy.random.default_rng().random(),'
        ' {"a", "bc", "def"}, hash("rstar"), random.Random().random(), end=" ")\n'
        'import secrets, uuid\nprint(secrets.randbelow(10**9), uuid.uuid4(), end=" ")\n'
        'random.seed(); numpy.random.seed()\n'
        'print(random.random(), numpy.random.rand(), numpy.random.RandomState().rand())'
    )
    outputs = set()
    for _ in range(2):
        with execution.Pool(workers=1, limits=LIMITS) as pool:
            outputs |= {run(pool, program + ' ' * count).output for count in range(3)}
    assert len(outputs) == 1


def test_identical_programs_run_once_and_those_that_broke_a_limit_again(pool):
    before = pool.counters
    futures = [pool.submit(['q = 21', 'print(q * 2)']) for _ in range(5)]
    assert {future.result().output for future in futures} == {'42'}
    after = pool.counters
    assert after['computed'] - before['computed'] == 1
    assert after['remembered'] - before['remembered'] == 4
    for number, program in enumerate(2 * ['x = [0] * 10**9', 'print("y" * 10**7)'], 1):
        assert run(pool, program).error
        assert pool.counters['computed'] - after['computed'] == number


def test_cancelled_programs_do_not_run(pool):
    slow = pool.submit('import time\ntime.sleep(0.3)')
    waiting = [pool.submit(f'cancelled = {number}') for number in range(50)]
    before = pool.counters['computed']
    assert all(future.cancel() for future in waiting)
    slow.result()
    run(pool, 'print("after")')
    assert pool.counters['computed'] - before <= 2


def test_a_future_may_be_cancelled_in_the_moment_of_its_result():
    with execution.Pool(workers=1, limits=LIMITS) as pool:
        slow = 'import time\ntime.sleep(0.3)\nprint("both")'
        first = pool.submit(slow)
        while not first.running():
            time.sleep(0.01)
        second = pool.submit(slow)
        deliver = second.set_result
        second.set_result = lambda result: second.cancel() and deliver(result)
        assert first.result(60).output == 'both'
        assert run(pool, 'print("after")').output == 'after'
        assert second.cancelled()


def test_each_step_of_a_branch_runs_once(pool):
    cells = ['runs = []', *(f'runs.append({number})' for number in range(1, 11)), 'print(runs)']
    assert run(pool, cells).output == str(list(range(1, 11)))


def test_the_layers_are_told_once():
    told = []
    with execution.Pool(workers=2, limits=LIMITS, announce=told.append) as pool:
        futures = [pool.submit(f'print({number})') for number in range(20)]
        assert all(future.result(60).ok for future in futures)
        assert len(told) == 1
        assert told[0].startswith('execution: limits, empty environment')
        assert all(name in told[0] for name in (*pool.layers, *pool.missing))


def test_garbage_of_a_program_is_collected(pool):
    cycles = 'for _ in range(40_000):\n    x = [bytearray(10_000)]\n    x.append(x)\nprint("done")'
    assert run(pool, cycles).output == 'done'  # 400 MB, where 256 are allowed


def test_a_lost_worker_is_replaced(caplog):
    with execution.Pool(workers=1, limits=LIMITS) as pool:
        assert run(pool, 'print(1)').output == '1'
        os.kill(max(family(os.getpid())), signal.SIGKILL)  # the worker's innermost process
        assert run(pool, 'print(2)').output == '2'


@pytest.fixture
def starts(monkeypatch, tmp_path):
    """Says which starts of an interpreter fail, by their number from 0; returns how many were."""
    count = tmp_path / 'starts'
    count.write_text('')

    def failing(which):
        script = tmp_path / 'python'
        script.write_text(
            f'#!/bin/sh\nn=$(wc -c < {count}); printf x >> {count}\n'
            f'case " {which} " in *" $n "*) exit 1;; esac\nexec {sys.executable} "$@"\n'
        )
        script.chmod(0o755)
        monkeypatch.setattr(sys, 'executable', str(script))
        return lambda: len(count.read_text())

    return failing


def test_a_worker_that_ends_at_its_start_is_tried_again(starts):
    before, started = folders(), starts('0')
    with execution.Pool(workers=1, limits=LIMITS) as pool:
        assert run(pool, 'print(1)').output == '1'
        assert started() >= 2
        (ours,) = folders() - before
        assert len(os.listdir(ours)) == 1  # the folder of the first is gone


def test_there_are_no_more_workers_than_jobs_at_once():
    before = folders()
    with execution.Pool(workers=9, limits=LIMITS) as pool:
        for number in range(5):
            assert run(pool, f'print({number})').ok
        (ours,) = folders() - before
        assert len(os.listdir(ours)) == 1
        futures = [pool.submit(f'import time\ntime.sleep(1)  # {number}') for number in range(3)]
        assert all(future.result(60).ok for future in futures)
        assert len(os.listdir(ours)) == 3


def test_a_worker_that_does_not_start_leaves_its_job_to_others(starts):
    """As where a container allows only so many processes."""
    started = starts(' '.join(map(str, range(1, 20))))
    slow = [f'import time\ntime.sleep(1)\nprint({number})' for number in range(2)]
    with execution.Pool(workers=2, limits=LIMITS) as pool:
        assert run(pool, 'print(0)').output == '0'
        assert [one.result(60).output for one in [*map(pool.submit, slow)]] == ['0', '1']
        assert run(pool, 'print(5)').output == '5'
        assert started() > 1


def test_a_worker_that_never_starts_is_told(monkeypatch):
    monkeypatch.setattr(sys, 'executable', '/nowhere/at/all')
    before = os.listdir('/dev/fd')
    with execution.Pool(workers=1, limits=LIMITS) as pool:
        with pytest.raises(WorkerDied):
            run(pool, 'print(1)')
        assert len(os.listdir('/dev/fd')) == len(before)


def test_run_many_keeps_the_order():
    results = execution.run_many([f'print({n} ** 2)' for n in range(20)], limits=LIMITS)
    assert [result.output for result in results] == [str(n**2) for n in range(20)]


def test_run_many_keeps_to_the_limits_of_each_call():
    limits = LIMITS, execution.Limits(printed_chars=10)
    (whole,), (cut,) = (execution.run_many(['print("z" * 50)'], limits=each) for each in limits)
    assert whole.ok and cut.error == 'OutputError: printed more than the limit of 10 characters'


def test_only_folders_of_this_host_are_swept(monkeypatch, tmp_path):
    ended = subprocess.Popen([sys.executable, '-c', ''])
    ended.wait()
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    (tmp_path / f'{scratch.prefix()}{ended.pid}-x').mkdir()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(socket, 'gethostname', lambda: 'another')
        theirs = tmp_path / f'{scratch.prefix()}{ended.pid}-x'
    theirs.mkdir()
    scratch.remove_stale()
    assert list(tmp_path.iterdir()) == [theirs]


@pytest.mark.parametrize(
    ('text', 'shown'),
    [
        ('16\n', '16'),
        ('0.30000000000000004', '0.3'),
        ('3.14159265', '3.1416'),
        ('16.0', '16.0'),
        ('-2.00004', '-2.0'),
        ('1e-07', '0.0'),
        ('x = 0.333333333', 'x = 0.333333333'),
        ('nan', 'nan'),
        ('1.00000000000000e+400', '1.00000000000000e+400'),
        ('12345', '12345'),
    ],
)
def test_format_of_numbers(text, shown):
    assert execution.format_output(text) == shown


def test_long_outputs_are_cut_in_the_middle():
    shown = execution.format_output('a' * 2000 + 'b' * 2000)
    assert len(shown) <= 1024
    assert shown.startswith('a' * 510)
    assert shown.endswith('b' * 510)
    assert execution.format_output('c' * 1024) == 'c' * 1024


@pytest.mark.parametrize('last', ['while True: print(end=".", flush=True)', 'print(1)'])
def test_a_program_that_prints_fills_no_disk(pool, last):
    files = 'for n in range(2): open(str(n), "wb").write(bytes(6 * 2**20))\n'
    assert run(pool, files + last).error.startswith('OSError')


@pytest.mark.parametrize(
    ('argument', 'make'),
    [
        ('seconds', lambda: execution.Limits(seconds=0)),
        ('memory_mb', lambda: execution.Limits(memory_mb='much')),
        ('workers', lambda: execution.Pool(workers=0)),
        ('isolation', lambda: execution.Pool(isolation='some')),
        ('isolation', lambda: execution.check('some')),
        ('programs', lambda: execution.run_many('print(1)')),
    ],
)
def test_an_error_names_what_is_wrong(argument, make):
    with pytest.raises(UserError) as caught:
        make()
    assert caught.value.argument == argument and caught.value.expected
    assert '\n' not in str(caught.value)


SCRIPT = """
import os, signal, sys, time
from rstar_jax import execution
# What a shell starts in the background ignores it.
signal.signal(signal.SIGINT, signal.default_int_handler)
pool = execution.Pool(workers=2, limits=execution.Limits(seconds=30))
for future in [pool.submit(f'import time\\ntime.sleep(1)  # {n}') for n in range(2)]:
    future.result()
pool.submit('while True: pass')
time.sleep(0.2)
print('ready', flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='looks at /proc')
@pytest.mark.parametrize('sign', [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_the_main_process(sign, tmp_path):
    environment = {**os.environ, 'TMPDIR': str(tmp_path), 'PYTHONPATH': os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, '-c', textwrap.dedent(SCRIPT)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline().strip() == 'ready'
    members = family(process.pid)
    assert len(members) >= 4
    process.send_signal(sign)
    _, errors = process.communicate(timeout=120)
    deadline = time.monotonic() + 60
    while any(map(alive, members)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not [pid for pid in members if alive(pid)]
    left = [str(path) for path in tmp_path.glob('rstar-*/*')]
    assert not left
    assert errors.count('Traceback') <= 1  # the main process's own, on Ctrl-C
    assert 'worker' not in errors.replace('rstar-worker', '')
