"""Progress lines, clocks, tables, events."""

import io

import pytest

from rstar_jax import progress


@pytest.mark.parametrize(
    ('seconds', 'text'),
    [(5.4, '0:05'), (65, '1:05'), (3725, '1:02:05'), (float('nan'), '?'), (float('inf'), '?')],
)
def test_clock(seconds, text):
    assert progress.clock(seconds) == text


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
    line.end('done')
    assert stream.getvalue().splitlines() == [
        'search: 1 s',
        'search: 16 s',
        'search: 31 s',
        'search: done',
    ]


def test_a_terminal_gets_one_line_that_is_redrawn(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
    stream = io.StringIO()
    stream.isatty = lambda: True
    line = progress.Line('sft', stream)
    line.show('a long text')
    now[0] += 2
    line.show('short')
    line.end('done')
    assert stream.getvalue() == '\rsft: a long text\rsft: short      \rsft: done \n'


def test_a_table_is_aligned():
    rows = [('stage', 'time'), ('sft', '1:05'), ('search', '12:00')]
    assert progress.table(rows, right=(1,)) == 'stage    time\nsft      1:05\nsearch  12:00'


def test_events_are_numbers_that_a_reader_finds(tmp_path):
    events = progress.Events(tmp_path / 'events')
    events.add('search', {'solved': 3, 'seconds_left': float('nan'), 'kind': 'x'}, 7)
    events.close()
    [file] = (tmp_path / 'events').iterdir()
    content = file.read_bytes()
    assert b'search/solved' in content
    assert b'seconds_left' not in content
    progress.Events(None).add('search', {'solved': 3}, 7)
