"""Curves as inline SVG, and the TensorBoard events that they are drawn from."""

import html
import math
import os
import pathlib
import struct
from collections.abc import Iterator, Mapping, Sequence

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 380, 190
# Margins around the plot; on the left is room for a label such as -1.234e+05.
LEFT, RIGHT, TOP, BOTTOM = 72, 10, 8, 24
COLOURS = ('#1f5fbf', '#c2410c', '#157f3b', '#7e3ab0', '#806000')
MOST_POINTS = 400


def line(title: str, lines: Mapping[str, Points]) -> str:
    """Returns a <figure> with one line for each entry of `lines`; points that are no numbers skip.

    Args:
      title: the caption.
      lines: {label: [(x, y), ...]}; labels are shown where there is more than one.
    """
    kept = {name: _thinned(points) for name, points in lines.items()}
    flat = [point for points in kept.values() for point in points]
    if not flat:
        return ''
    x_low, x_high = _range([x for x, _ in flat])
    y_low, y_high = _range([y for _, y in flat])

    def place(x: float, y: float) -> str:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        down = TOP + (y_high - y) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return f'{across:.1f},{down:.1f}'

    parts = [
        f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" '
        f'height="{HEIGHT - TOP - BOTTOM}" fill="none" stroke="#ddd"/>'
    ]
    for value, y in ((y_high, TOP + 10), (y_low, HEIGHT - BOTTOM)):
        parts.append(f'<text x="{LEFT - 5}" y="{y}" text-anchor="end">{value:.4g}</text>')
    for value, x, anchor in ((x_low, LEFT, 'start'), (x_high, WIDTH - RIGHT, 'end')):
        parts.append(f'<text x="{x}" y="{HEIGHT - 8}" text-anchor="{anchor}">{value:.6g}</text>')
    for colour, points in zip(_colours(), kept.values()):
        path = ' '.join(place(x, y) for x, y in points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>'
        )
        if len(points) < 20:
            for x, y in points:
                across, down = place(x, y).split(',')
                parts.append(f'<circle cx="{across}" cy="{down}" r="2.5" fill="{colour}"/>')
    legend = ''
    if len(kept) > 1:
        names = zip(_colours(), kept)
        legend = ' '.join(f'<span style="color:{c}">{html.escape(n)}</span>' for c, n in names)
        legend = f'<br>{legend}'
    drawing = '\n'.join(parts)
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">\n'
        f'{drawing}\n</svg><figcaption>{html.escape(title)}{legend}</figcaption></figure>'
    )


def read_events(directory: str | os.PathLike) -> dict[str, list[tuple[float, float]]]:
    """Returns {name: [(step, value), ...]} of the TensorBoard scalars in a folder, by step.

    Where a step comes twice (a run that was killed and went on) the later one counts. A file that
    breaks off in the middle of an event is read up to there.
    """
    found: dict[str, dict[float, tuple[float, float]]] = {}
    for path in sorted(pathlib.Path(directory).glob('*tfevents*')):
        for name, step, value, time in _scalars(path):
            steps = found.setdefault(name, {})
            if step not in steps or steps[step][1] <= time:
                steps[step] = (value, time)
    return {
        name: [(step, steps[step][0]) for step in sorted(steps)] for name, steps in found.items()
    }


def _scalars(path: pathlib.Path) -> Iterator[tuple[str, float, float, float]]:
    from tensorboardX.proto.event_pb2 import Event

    data = path.read_bytes()
    at = 0
    while at + 12 <= len(data):  # TFRecord: u64 length, u32 checksum, the bytes, u32 checksum
        (size,) = struct.unpack_from('<Q', data, at)
        if at + 16 + size > len(data):
            return
        event = Event.FromString(data[at + 12 : at + 12 + size])
        at += 16 + size
        for value in event.summary.value:
            if value.HasField('simple_value'):
                yield value.tag, event.step, value.simple_value, event.wall_time


def _thinned(points: Points) -> list[tuple[float, float]]:
    """At most about MOST_POINTS, finite ones; first and last stay."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    stride = max(1, math.ceil(len(finite) / MOST_POINTS))
    return finite[:-1:stride] + finite[-1:]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _colours() -> Iterator[str]:
    while True:
        yield from COLOURS
