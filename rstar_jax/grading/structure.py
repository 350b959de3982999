"""The outer form of an answer: tuple, interval, set, list, matrix, union, ratio, or one value."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rstar_jax.grading.normalise import closing

_MATRIX = re.compile(
    r'\\begin\{([pbB]?matrix|array|smallmatrix)\}(?:\{[^}]*\})?(.*)\\end\{\1\}', re.S
)
_NAME = r'(?:[A-Za-z]|\\[a-zA-Z]+)(?:_\{?[A-Za-z0-9]+\}?)?'
_ASSIGN = re.compile(
    rf'\s*({_NAME}(?:\([A-Za-z, ]*\))?)\s*(?:=|\\(?:in|equiv)(?![a-z]))\s*([^=<>]+)$'
)


@dataclass(frozen=True)
class Form:
    """An answer taken apart.

    Attributes:
      kind: 'one', 'tuple' (any of the brackets around commas), 'set', 'list' (bare commas),
        'matrix', 'union', 'ratio' (of three terms or more; of two, it is a value).
      parts: the parts' texts; of a matrix, its entries row by row.
      brackets: of a tuple, its two brackets; of a matrix, 'rows x columns'.
    """

    kind: str
    parts: tuple[str, ...]
    brackets: str = ''


def split(text: str, separator: str = ',') -> list[str]:
    """Split where no bracket is open; half-open intervals count as closed by either bracket."""
    parts, depth, start, index = [], 0, 0, 0
    while index < len(text):
        char = text[index]
        if char in '([{':
            depth += 1
        elif char in ')]}':
            depth -= 1
        elif depth == 0 and text.startswith(separator, index):
            parts.append(text[start:index].strip())
            index += len(separator)
            start = index
            continue
        index += 1
    return [*parts, text[start:].strip()]


def listed(text: str) -> str:
    """A text with commas for the 'and' and 'or' of inequalities (`normalise.clean`)."""
    return re.sub(r'\\l(?:and|or)(?![a-z])', ',', text)


def differently_joined(a: str, b: str) -> bool:
    """Whether one text says 'and' where the other says 'or', or unites."""
    one, two = (set(re.findall(r'\\(land|lor|cup)(?![a-z])', text)) for text in (a, b))
    return bool(one and two) and ('land' in one) != ('land' in two)


def assignment(text: str) -> tuple[str, str]:
    """('x', '5') of 'x = 5' or 'x \\in 5'; ('', text) where there is none."""
    match = _ASSIGN.match(text)
    return (match[1].replace(' ', ''), match[2].strip()) if match else ('', text)


def form(text: str) -> Form:
    """Take a cleaned answer apart, one level."""
    text = text.strip()
    matrix = _MATRIX.fullmatch(text)
    if matrix:
        rows = [row for row in re.split(r'\\\\', matrix[2]) if row.strip()]
        return _matrix([row.split('&') for row in rows])
    python = re.fullmatch(r'(?:Matrix|np\.array|array)\s*\((.*)\)', text, re.S)
    inner = python[1].strip() if python else text
    if re.fullmatch(r'\[\s*\[.*\]\s*\]', inner, re.S) and closing(inner, 0) == len(inner) - 1:
        rows = split(inner[1:-1])
        if all(row.startswith('[') and row.endswith(']') for row in rows):
            return _matrix([split(row[1:-1]) for row in rows])
    unions = split(text, '\\cup')
    if len(unions) > 1:
        return Form('union', tuple(unions))
    if text.startswith('\\{') and text.endswith('\\}') and text.count('\\{') == 1:
        return Form('set', _items(text[2:-2]))
    if text[:1] == '{' and text[-1:] == '}' and closing(text, 0) == len(text) - 1:
        return Form('set', _items(text[1:-1]))
    if text[:1] in ('(', '[') and text[-1:] in (')', ']') and closing(text, 0) == len(text) - 1:
        parts = split(text[1:-1].replace(';', ','))
        if len(parts) > 1:
            return Form('tuple', tuple(parts), text[0] + text[-1])
        if text[0] == '[':
            return Form('list', tuple(parts))
        return form(text[1:-1])
    parts = [part for part in split(text.replace(';', ',')) if part]
    if len(parts) > 1:
        return Form('list', tuple(parts))
    terms = split(text, ':')
    if len(terms) > 2 and all(terms):
        return Form('ratio', tuple(terms))
    return Form('one', (text,))


def _items(inside: str) -> tuple[str, ...]:
    return tuple(part for part in split(inside) if part)


def _matrix(rows: list[list[str]]) -> Form:
    width = len(rows[0]) if rows else 0
    if any(len(row) != width for row in rows):
        return Form('one', ('',))
    return Form(
        'matrix', tuple(cell.strip() for row in rows for cell in row), f'{len(rows)}x{width}'
    )
