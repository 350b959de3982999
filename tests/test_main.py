"""The command line: help, wrong flags and keys, Ctrl-C, exit codes; nothing is a traceback."""

import errno
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from rstar_jax import main, rounds
from rstar_jax import settings as configs
from rstar_jax.job import command, interrupts
from rstar_jax.settings import errors
from tests.parallel import processes

REPOSITORY = pathlib.Path(__file__).parents[1]
QUICKSTART = str(REPOSITORY / 'experiments' / 'quickstart.py')


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    """The real command in a process of its own."""
    return subprocess.run(
        [sys.executable, '-m', 'rstar_jax.main', *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=240,
        **options,
    )


def failing(capsys, *arguments: str) -> str:
    """The one line that the command prints when it fails."""
    assert main.main([*arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ')
    assert error.count('\n') == 1
    return error


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], '--config: needs a config file, for example experiments/quickstart.py'),
        (['--config=nope.py'], '--config=nope.py: no such file'),
        (['--config.question=caf\udce9?'], r"--config.question='caf\udce9?': not UTF-8 text"),
        (['--workdir=caf\udce9'], r"--workdir='caf\udce9': not UTF-8 text"),
        (['--config.search.rolouts=3'], 'did you mean --config.search.rollouts?'),
        (['--config.rolouts=3'], 'did you mean --config.'),
        (['--config.search=3'], '--config.search: a section: set one of its settings'),
        (
            ['--config=experiments/serve.py', '--config.schedule=3'],
            '--config.schedule: a section: what a round has of its own, a config file says by',
        ),
        (
            ['--config.schedule.round2.seed=3'],
            '--config.schedule.round2.seed: no such key in this file: what a round has of its own',
        ),
        (['--config.search.candidates=0'], '--config.search.candidates=0: needs at least 1'),
        (['--policy.path=mine'], '--policy.path: no such flag; did you mean --config.policy.path?'),
        (['--config.eval.limit=9999999999'], '.limit=9999999999: needs at most 2147483647'),
        (['--config.execution.seconds=1e9'], '.seconds=1000000000.0: needs at most 86400'),
        (['--config.search.candidates=x'], '--config.search.candidates=x: needs a whole number'),
        (['--config.search.temperature='], '--config.search.temperature=: needs a number'),
        (['--config.search.one_size=no?'], '--config.search.one_size=no?: needs True or False'),
        (['--config.search.prompt=sf'], '--config.search.prompt=sf: needs one of sft, few_shot'),
        (['--config.last_round=0'], '--config.last_round=0: needs at least first_round=1'),
        (
            ['--config=experiments/quickstart.py:paper'],
            'has no presets: leave :paper away',
        ),
        (
            ['--config=experiments/ablations.py', '--workdir=x', '--stages=eval'],
            '--stages=eval: ablations run all: --config.stages says which the rounds have',
        ),
        (['--plan'], '--plan: needs a value, --plan=VALUE; --help lists the flags'),
        (['--config.seed'], '--config.seed: needs a value, --config.seed=VALUE;'),
        (['--wrkdir=x'], "unknown flag 'wrkdir'. Did you mean: workdir ?"),
        (['--stages=serch'], '--stages=serch: no stage serch: did you mean search?'),
        (['--config.stages=x'], '--config.stages=x: no stage x: there are'),
        (['--config.schedule.round1.stages=x'], '--config.schedule.round1.stages=x: no stage x'),
        (['--workdir=x', '--stages='], '--stages=: needs at least one of'),
        (['--workdir=x', '--plan='], '--plan=: expected a topology'),
        (['--workdir=x', '--config.question= '], '--config.question= : needs a question'),
        (
            ['--workdir=x', '--config.data.levels=1-2'],
            '--config.data.levels=1-2: arithmetic has none to choose from',
        ),
        (['extra'], 'extra: expected --name=value'),
        (
            ['--config.training.dtype=float17'],
            '--config.training.dtype=float17: needs one of nothing, float32, bfloat16',
        ),
        (['--config.training.ppm.lora=-1'], '--config.training.ppm.lora=-1: needs at least 0'),
        (['--config.training.ppm.head=fitted'], 'head=fitted: needs --config.training.ppm.center'),
        (['--config.training.keep=best'], 'keep=best: needs --config.training.measure_ev'),
        (['--config.seed=3'], '--workdir: needs a folder for what the run makes'),
        (['--workdir=x', '--problems=5'], '--problems=5: goes with --plan'),
        (
            ['--workdir=x', '--stages=eval', '--config.eval.benchmarks='],
            '--stages=eval: nothing to do in rounds 1 to 3: eval needs --config.eval.benchmarks',
        ),
        (
            ['--workdir=x', '--stages=search', '--config.first_round=0', '--config.last_round=0'],
            '--stages=search: nothing to do in rounds 0 to 0\n',
        ),
        (
            ['--config.question=Why?', '--stages=search'],
            '--stages=search: a question is answered, no round is run',
        ),
        (
            ['--config=experiments/ablations.py', '--workdir=x', '--config.eval.benchmarks='],
            '--config.eval.benchmarks=: ablations compare',
        ),
        (
            ['--config=experiments/ablations.py', '--workdir=x', '--config.first_round=2'],
            '--config.first_round=2: ablations begin with round 1',
        ),
        (
            ['--config=experiments/ablations.py', '--workdir=x', '--config.search.candidates=1'],
            '--config.search.candidates=1: ablations compare trees with samples, and round 1 draws',
        ),
        (
            ['--config=experiments/ablations.py', '--workdir=x', '--config.eval.trajectories=0'],
            '--config.eval.trajectories=0: ablations compare searches: needs at least 1',
        ),
        (
            ['--config=experiments/ablations.py', '--workdir=x', '--config.curate.sft=a.json'],
            'data compares what round 1 learns from, and examples come from a.json',
        ),
        (
            ['--config=experiments/ablations.py', '--workdir=x', '--config.stages=bootstrap,sft'],
            '--config.stages=bootstrap,sft: ablations need a PPM of the last round',
        ),
        (
            ['--config=experiments/ablations.py', '--workdir=x', '--config.search.agree=2'],
            '--config.search.agree=2: ablations need as many trees of each problem',
        ),
    ],
)
def test_a_wrong_command_line_is_one_line(capsys, arguments, message):
    if arguments and not arguments[0].startswith('--config='):
        arguments = [f'--config={QUICKSTART}', *arguments]
    assert message in failing(capsys, *arguments)


def test_an_evaluation_has_a_folder_by_its_model(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(rounds, 'run', lambda config, workdir, stages: asked.append(workdir))
    evaluate = f'--config={QUICKSTART.replace("quickstart", "evaluate")}'
    model = '--config.policy.path=runs/full/round4/policy'
    assert main.main([evaluate, model]) == 0
    assert asked == ['runs/evaluate/runs-full-round4-policy']
    assert capsys.readouterr().out == f'--workdir={asked[0]}\n'
    assert '--workdir: needs' in failing(capsys, evaluate, model, '--config.last_round=1')
    assert '--config.policy.path=: needs the model' in failing(capsys, evaluate)


def test_paths_may_begin_with_the_home_folder(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setattr(rounds, 'run', lambda config, workdir, stages: asked.append(workdir))
    assert main.main([f'--config={QUICKSTART}', '--workdir=~/runs/a']) == 0
    assert asked == [f'{tmp_path}/runs/a']
    flags = '--config.data.problems=~/p.json', '--config.eval.benchmarks=~/a.json,b~/c,~/d.json'
    config, _ = main.parse(QUICKSTART, flags)
    assert config.data.problems == f'{tmp_path}/p.json'
    assert config.eval.benchmarks == f'{tmp_path}/a.json,b~/c,{tmp_path}/d.json'


@pytest.mark.parametrize(('kind', 'code'), [(errors.UserError, 2), (errors.Later, 1)])
def test_what_may_be_over_when_started_again_has_the_code_for_that(capsys, kind, code):
    """A JobSet starts a job again by it: a lost machine's lock lives on for a while."""

    def fail() -> int:
        raise kind('in use')

    assert command.guarded(fail) == code
    assert capsys.readouterr().err == 'error: in use\n'


def test_the_process_exits_with_2_and_one_line():
    result = run(f'--config={QUICKSTART}', '--config.search.rolouts=3')
    assert result.returncode == 2
    assert result.stdout == ''
    assert result.stderr.startswith('error: --config.search.rolouts: ')
    assert result.stderr.endswith('did you mean --config.search.rollouts?\n')


def test_overrides_reach_the_config():
    config, values = main.parse(
        QUICKSTART, ['--workdir=w', '--config.search.rollouts=3', '--config.seed', '5']
    )
    assert (config.search.rollouts, config.seed, values.workdir) == (3, 5, 'w')
    assert config.is_locked


def test_a_config_file_below_a_folder_with_a_colon(tmp_path):
    path = tmp_path / 'a:b' / 'mine.py'
    path.parent.mkdir()
    text = 'from rstar_jax import settings as configs\ndef get_config(preset=""):\n'
    path.write_text(
        f'{text}    config = configs.default()\n    config.question = preset\n    return config\n'
    )
    assert configs.load(str(path)).question == ''
    assert configs.load(f'{path}:paper').question == 'paper'
    assert 'settings:' in configs.describe(f'{path}:paper')


def test_a_file_that_may_not_be_written_is_one_line(capsys):
    def denied():
        raise PermissionError(errno.EACCES, 'Permission denied', '/mnt/run/x.png')

    assert command.guarded(denied) == 2
    assert capsys.readouterr().err == (
        'error: /mnt/run/x.png: Permission denied: give this user the right to it, or write '
        'elsewhere; what was stored before is whole\n'
    )


def test_help_lists_flags_experiments_and_settings(capsys):
    assert main.main(['--help']) == 0
    text = capsys.readouterr().out
    assert '--workdir=DIR' in text
    assert 'quickstart.py' in text
    assert main.main([f'--config={QUICKSTART}', '--help']) == 0
    text = capsys.readouterr().out
    assert text.startswith('Three rounds on a tiny model')
    assert '--config.search.rollouts=' in text


def python(program: str, **options) -> subprocess.Popen:
    """A process that runs the program, its output a pipe."""
    return subprocess.Popen(
        [sys.executable, '-c', program],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def test_tries_to_reach_the_hub_are_not_told_one_by_one():
    process = python(
        """
from rstar_jax import main
from huggingface_hub.utils import logging
logging.get_logger('huggingface_hub.utils._http').warning('Retrying in 1s')
""",
        stderr=subprocess.STDOUT,
    )
    assert process.communicate(timeout=120)[0] == ''


def test_ctrl_c_is_not_lost_where_python_ignores_it():
    """An exception in a garbage collection's callback or a finaliser is ignored."""
    process = python(
        'import signal, time\n'
        'from rstar_jax import main\n'
        'class Late:\n'
        '    def __del__(self):\n'
        '        signal.raise_signal(signal.SIGINT)\n'
        'def run(arguments):\n'
        '    Late()\n'
        '    time.sleep(300)\n'
        'main._run = run\n'
        'print(main.main([]))\n',
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.communicate(timeout=120)[0] == '130\n'
    finally:
        process.kill()


def test_an_answer_is_told_where_the_locale_lacks_its_signs():
    process = python(
        'from rstar_jax import main\n'
        "main._run = lambda arguments: print('Answer: \\u221a2') or 0\n"
        'raise SystemExit(main.main([]))\n',
        env={**os.environ, 'PYTHONIOENCODING': 'latin-1'},
    )
    assert process.communicate(timeout=120)[0] == 'Answer: \\u221a2\n'
    assert process.returncode == 0


HANGS = (
    'import time\n'
    'from rstar_jax import main\n'
    'def run(arguments):\n'
    '    try:\n'
    '        print("runs", flush=True)\n'
    '        time.sleep(300)\n'
    '    finally:\n'
    '        print("ends", flush=True)\n'
    '        time.sleep(300)\n'
    'main._run = run\n'
)


def test_a_later_ctrl_c_ends_what_the_first_did_not():
    process = python(HANGS + 'main.main([])\n')
    try:
        for line in ('runs\n', 'ends\n'):
            assert process.stdout.readline() == line
            process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(interrupts.SAME_PRESS + 0.5)  # the second came too soon after the first
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()


def test_what_hangs_after_ctrl_c_ends_all_the_same():
    process = python(
        HANGS
        + 'from rstar_jax.job import interrupts\ninterrupts.LONGEST_END = 0.5\nmain.main([])\n'
    )
    try:
        assert process.stdout.readline() == 'runs\n'
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_are_the_callers_again_afterwards(monkeypatch, capsys, number, code):
    def run(arguments):
        signal.raise_signal(number)

    before = signal.getsignal(number)
    monkeypatch.setattr(main, '_run', run)
    assert main.main([]) == code
    assert signal.getsignal(number) is before
    how = {130: 'stopped', 143: 'preempted'}[code]
    assert capsys.readouterr().err == f'\n{how}; run the same command again to go on\n'


HOLDS = (
    'import sys, time\n'
    'from rstar_jax import main\nfrom rstar_jax.job import interrupts\n'
    'interrupts.NOTICE = 0.5\n'
    'def run(arguments):\n'
    '    with interrupts.held():\n'
    '        print("runs", flush=True)\n'
    '        while not interrupts.asked():\n'
    '            time.sleep(0.01)\n'
    '        print("saves", flush=True)\n'
    '        time.sleep(float(sys.argv[1]))\n'
    '    print("never", flush=True)\n'
    'main._run = run\n'
    'sys.exit(main.main(["x"]))\n'
)


def holding(seconds: float) -> subprocess.Popen:
    """A process that saves for so many seconds when it is asked to end."""
    process = subprocess.Popen(
        [sys.executable, '-c', HOLDS, str(seconds)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == 'runs\n'
    return process


def test_what_is_being_saved_is_not_interrupted_by_further_sigterms():
    process = holding(1.0)
    try:
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == 'saves\n'
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60) == (
            '',
            '\npreempted; run the same command again to go on\n',
        )
    finally:
        process.kill()
    assert process.returncode == 143


def test_who_waits_for_the_end_of_a_save_is_told_and_can_go():
    process = holding(300.0)
    try:
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == 'saves\n'
        assert process.stderr.readline() == '\n'
        assert process.stderr.readline() == f'{interrupts.WAITING}\n'
        time.sleep(interrupts.SAME_PRESS)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.communicate()


def _bootstrap(workdir):
    return subprocess.Popen(
        [
            sys.executable, '-m', 'rstar_jax.main',
            f'--config={QUICKSTART}', f'--workdir={workdir}', '--stages=bootstrap',
        ],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=processes.environment_of(1),
    )  # fmt: skip


def test_an_error_is_written_by_one_call(monkeypatch):
    class Stream:
        def __init__(self):
            self.calls = []

        def write(self, text):
            self.calls.append(text)

        def flush(self):
            pass

    monkeypatch.setattr(sys, 'stderr', Stream())
    errors.tell('process 0\nis gone')
    assert sys.stderr.calls == ['error: process 0 is gone\n']


def test_a_closed_output_is_one_line_and_141(tmp_path):
    process = _bootstrap(tmp_path)
    process.stdout.close()
    try:
        error = process.stderr.read()
        assert process.wait(60) == 141
    finally:
        process.kill()
    assert error == f'nobody reads the output; {command.STOPPED}\n'


@pytest.mark.parametrize('closed', ['>&-', '2>&-', '>&- 2>&-'])
def test_an_output_that_was_never_open_is_not_missed(closed):
    code = (
        'import os, sys\n'
        'from rstar_jax.job import command, interrupts, progress\n'
        'from rstar_jax.settings import errors\n'
        'def run():\n'
        '    progress.show("text")\n'
        '    progress.Line("search").show("text")\n'
        '    for number in 1, 2:\n'
        '        os.fstat(number)\n'  # nor will a tree's file have that number
        '    raise errors.UserError("told")\n'
        'interrupts.leave(command.guarded(run))\n'
    )
    result = subprocess.run(
        ['bash', '-c', f'"$0" -c "$1" {closed}', sys.executable, code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert result.stderr == ('' if '2>&-' in closed else 'error: told\n')


def test_ctrl_c_is_one_line_and_130(tmp_path):
    process = _bootstrap(tmp_path)
    try:
        deadline = time.monotonic() + 240
        while not (tmp_path / 'round0' / 'policy' / 'metrics.jsonl').exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        # As from `timeout` or a terminal with a wrapper: both send it.
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 130
    error = error.removeprefix(f'\n{interrupts.WAITING}\n')  # where a step takes long
    found = re.fullmatch(r'\nstopped at step (\d+) of \d+: state saved; (.*)\n', error)
    assert found and f'stopped; {found[2]}' == command.STOPPED, error
    assert [path.name for path in (tmp_path / 'round0' / 'policy' / 'state').iterdir()] == [
        found[1]
    ]
