"""Progress, clocks, tables, events."""

import io
import math
import re

import pytest

from rstar_jax.job import progress


@pytest.mark.parametrize(
    ('seconds', 'text'),
    [(5.4, '0:05'), (65, '1:05'), (3725, '1:02:05'), (float('nan'), '?'), (float('inf'), '?')],
)
def test_clock(seconds, text):
    assert progress.clock(seconds) == text


def test_nothing_is_said_of_a_time_that_is_not_known():
    assert progress.times(65, 10) == '1:05 gone, 0:10 left'
    assert progress.times(65, float('nan')) == '1:05 gone'


def test_percent():
    assert [progress.percent(x) for x in (0.125, 1.0, None, float('nan'))] == [
        '12.5 %',
        '100.0 %',
        '-',
        '-',
    ]


def test_a_log_gets_a_line_now_and_then(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
    stream = io.StringIO()
    line = progress.Line('search', stream)
    for _ in range(40):
        now[0] += 1
        line.show(f'{now[0]:.0f} s')
    line.say('done')
    assert stream.getvalue().splitlines() == [
        'search: 1 s',
        'search: 16 s',
        'search: 31 s',
        'search: done',
    ]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    for name in ('NO_COLOR', 'FORCE_COLOR', 'TTY_COMPATIBLE', 'TTY_INTERACTIVE'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('TERM', 'xterm-256color')
    monkeypatch.setenv('COLUMNS', '80')
    return Terminal()


def plain(text):
    """What stays of it without colours and movements of the cursor."""
    return re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', text)


def test_a_terminal_gets_a_bar_that_is_redrawn(terminal, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
    with progress.Line('round 1 sft', terminal) as line:
        line.show('step 1/4 [loss 2.0]', 0.25)
        line.show('too soon', 0.5)
        now[0] += 2
        line.show('step 3/4', 0.75)
        line.say('done in 0:02')
    text = terminal.getvalue()
    assert '\x1b[2K' in text  # the line is erased before it is drawn anew
    bars = [plain(part) for part in text.split('\x1b[2K') if '━' in part]
    assert 'step 1/4 [loss 2.0]' in bars[0] and 'step 3/4' in bars[-1]
    assert 'too soon' not in text
    widths = [bar.split('round 1 sft')[1].split('step')[0] for bar in (bars[0], bars[-1])]
    assert all(len(bar.splitlines()[0]) <= 80 for bar in bars)
    assert len(widths[0]) == len(widths[1])
    assert plain(text).rstrip().endswith('round 1 sft: done in 0:02')


def test_a_long_text_stays_on_its_line(terminal):
    with progress.Line('search', terminal) as line:
        line.show('x' * 200)
    assert '…' in plain(terminal.getvalue()) and 'x' * 81 not in plain(terminal.getvalue())


def test_the_terminal_is_given_back_by_an_exception(terminal):
    with pytest.raises(KeyboardInterrupt), progress.Line('search', terminal) as line:
        line.show('1/2 trees', 0.5)
        text = terminal.getvalue()
        assert text.rindex('\x1b[?25h') > text.rindex('\x1b[?25l')  # the cursor is there all along
        raise KeyboardInterrupt
    assert terminal.getvalue().rstrip().endswith('\x1b[2K')  # nothing of the bar is left


ROWS = [('stage', 'time', 'result'), ('sft', '1:05', 'a [b]'), ('search', '12:00', 'x' * 300)]


def test_a_table_is_plain_where_nobody_looks():
    stream = io.StringIO()
    progress.show('', progress.table(ROWS, right=(1,)), 'p = 0.1', stream=stream)
    assert stream.getvalue().splitlines() == [
        '',
        'stage    time  result',
        'sft      1:05  a [b]',
        f'search  12:00  {"x" * 300}',
        'p = 0.1',
    ]
    stream = io.StringIO()
    progress.show(progress.table(ROWS[:2], heading=False), stream=stream)
    assert stream.getvalue() == 'stage  time  result\nsft    1:05  a [b]\n'


def test_a_table_fits_a_terminal_and_has_colours_there(terminal):
    progress.show(progress.table(ROWS, right=(1,)), stream=terminal)
    assert '\x1b[1m' in terminal.getvalue()
    lines = plain(terminal.getvalue()).splitlines()
    assert max(map(len, lines)) <= 80 and sum(line.count('x') for line in lines) == 300


def test_no_color_is_heeded(terminal, monkeypatch):
    monkeypatch.setenv('NO_COLOR', '1')
    with progress.Line('search', terminal) as line:
        line.show('1/2 trees', 0.5)
    assert not re.search(r'\x1b\[(3[0-9]|38|9[0-9])', terminal.getvalue())


def test_events_are_numbers_that_a_reader_finds(tmp_path):
    events = progress.Events(tmp_path / 'events')
    events.add('search', {'solved': 3, 'seconds_left': float('nan'), 'kind': 'x'}, 7)
    events.close()
    [file] = (tmp_path / 'events').iterdir()
    content = file.read_bytes()
    assert b'search/solved' in content
    assert b'seconds_left' not in content
    progress.Events(None).add('search', {'solved': 3}, 7)


def test_a_training_tells_its_speed_once_it_has_one():
    """One that goes on knows its last loss, and no speed before a step of its own."""
    now = {'step': 5, 'steps': 9, 'loss': 0.5, 'mfu': 0.25, 'tokens_per_second': 70.0}
    first, share = progress.of_training({**now, 'seconds': 2.0, 'seconds_left': math.nan})
    later, _ = progress.of_training({**now, 'seconds': 4.0, 'seconds_left': 8.0})
    assert first.startswith('step 5/9, loss 0.500, 0:02 gone') and share == 5 / 9
    assert later.startswith('step 5/9, loss 0.500, 70 tokens/s, 25 % of peak, 0:04 gone')
    reading = {'read': 3000, 'to_read': 12_000, 'seconds': 2.0, 'seconds_left': 6.0}
    text = '3,000 of 12,000 examples read, 0:02 gone, 0:06 left'
    assert progress.of_training(reading) == (text, 0.25)
