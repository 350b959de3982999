"""Answers as sympy expressions, compared by their values at fixed points."""

from __future__ import annotations

import functools
import hashlib
import itertools
import re

POINTS = 3
_REAL = (0, 1)  # points where sympy takes as many digits as a difference needs
_PLENTY = 1e6  # of values beyond it, or below its inverse, `close` may miss a term or a factor
_DIGITS = 25
_ALL = 400  # digits, of values that sympy has in full
_SAME = 1e-300
_CLOSE = 1e-9
NOTHING = 1e-100  # what sympy leaves of a difference of equal numbers, with its 100 digits
LARGE = 1e9  # from here on, whole numbers that differ may be as close as that
_TWO_NUMBERS = re.compile(r'(?<![\d.^_])[\d.]+ \d+(?![\d/])')  # not one: 1 2/3 is
# Whole numbers side by side, of which the parser would make a mixed number: 2(3).
_PRODUCT = re.compile(r'(\(-?\d+\))(?=\(\d+\)|\d)|(?<![\w.^_])(\d+)(?=\(\d+\))')
# A mixed number before a factor, of which the parser would make a product: 3\frac{1}{2}\pi.
_MIXED = re.compile(
    r'(?<![\w.^}])(\d+) ?(\\frac\{(\d+)\}\{(\d+)\})(?= ?(?:[a-zA-Z(]|\\(?:pi|sqrt)))'
)
_INVERSE = re.compile(r'(?<![a-zA-Z\\])([a-zA-Z])\^\{-1\}(?= ?\([a-z\d]\))')  # of a function


@functools.lru_cache(maxsize=4096)
def parse(text: str):
    """The sympy expression of a cleaned LaTeX text, or None; `i` is the imaginary unit."""
    from latex2sympy2_extended import latex2sympy
    from math_verify.grader import should_treat_as_complex
    from sympy import Basic, I, MatrixBase

    if _TWO_NUMBERS.search(text) or '!!' in text:  # no factorial of a factorial
        return None
    text = _INVERSE.sub(r'\1_{-1}', _PRODUCT.sub(r'\g<0>\\cdot ', text))
    try:
        found = latex2sympy(
            _MIXED.sub(_mixed, text),
            is_real=not should_treat_as_complex(text),
            convert_degrees=False,
            normalization_config=None,
        )
    except MemoryError:
        raise
    except Exception:
        return None
    if not isinstance(found, Basic | MatrixBase):
        return None
    imaginary = [symbol for symbol in found.free_symbols if symbol.name == 'i']
    return found.xreplace(dict.fromkeys(imaginary, I)) if imaginary else found


def _mixed(match: re.Match) -> str:
    whole, part, top, bottom = match.groups()
    return f'({whole}+{part})' if 0 < int(top) < int(bottom) else match[0]


def same_values(a, b, one=None, two=None) -> bool | None:
    """Compare two expressions by value at fixed points; None where they have no values there.

    Args:
      a, b: sympy expressions.
      one, two: plain Numbers behind them, where they are (for rounded decimals).
    """
    if not (hasattr(a, 'evalf') and hasattr(b, 'evalf')):
        return None
    if not (a.free_symbols or b.free_symbols):
        x, y = value(a, {}), value(b, {})
        if x is None or y is None:
            return None
        if abs(x) >= LARGE and a.is_integer and b.is_integer:
            return round(a) == round(b)
        if close(x, y):
            return _equal_exactly(a, b, {})
        for number in (one, two):
            if number and number.rounded and abs(x - y) <= 0.5 * 10.0**-number.places:
                return True
        return _same_where_real(a, b)
    agreed = 0
    for point in range(POINTS):
        at = places(a, point) | places(b, point)
        x, y = value(a, at), value(b, at)
        if x is None or y is None:
            continue
        if not close(x, y):
            return _same_where_real(a, b)
        if point in _REAL and not 1 / _PLENTY < abs(x) < _PLENTY and not _equal_exactly(a, b, at):
            return False
        agreed += 1
    return True if agreed >= 2 else None


def _same_where_real(a, b) -> bool:
    """Whether \\sqrt{a}\\sqrt{b} is \\sqrt{ab}: by values where all is real, else by squares.

    Roots of other numbers may differ in their sign alone, which the fixed points take for other;
    odd ones of negative numbers, \\sqrt[3]{-8}, are complex there, and real here.
    """
    from sympy import Abs, Function, I, Pow, sign

    def odd_root(one) -> bool:
        return one.is_Pow and one.exp.is_Rational and one.exp.q % 2 == 1 < one.exp.q

    rooted = [one for one in a.atoms(Pow) | b.atoms(Pow) if one.exp.is_Rational and one.exp.q > 1]
    a, b = (
        one.replace(odd_root, lambda x: sign(x.base) ** x.exp.p * Abs(x.base) ** x.exp)
        for one in (a, b)
    )
    inside = a.atoms(Pow, Function) | b.atoms(Pow, Function)
    names = sorted({symbol.name for symbol in a.free_symbols | b.free_symbols})
    if not rooted or len(names) > 4 or a.has(I) or b.has(I):
        return False
    agreed = 0
    for scale, *signs in itertools.product((1, 30, 1000), *[(1, -1)] * len(names)):
        turned = dict(zip(names, signs, strict=True))
        at = {
            symbol: scale * turned[symbol.name] * place
            for symbol, place in (places(a, 0) | places(b, 0)).items()
        }
        values = [value(one, at) for one in (a, b)]
        if None in values:
            continue
        real = not any(one is None or one.imag for one in (value(part, at) for part in inside))
        if not (close(*values) if real else close(*(one * one for one in values))):
            return False
        agreed += real
    return agreed >= 2


def _equal_exactly(a, b, at: dict) -> bool:
    """Whether two values that are close are equal, where no rounded number is in them."""
    if _rounded(a) or _rounded(b):
        return True
    gap = (a - b).doit()
    if gap.is_Rational:
        return gap == 0
    found = _evaluated(gap, at)
    if found is None:
        return False
    # Of a number of which sympy finds no digit it keeps one bit; of powers it does not look.
    least = NOTHING * max(abs(value(a, at)), abs(value(b, at)))
    return all(not part or part._prec == 1 or abs(part) < least for part in found.as_real_imag())


def close(x: complex, y: complex) -> bool:
    return abs(x - y) <= _CLOSE * max(abs(x), abs(y)) or abs(x - y) < 1e-15


def places(expression, point: int) -> dict:
    """Values for the free symbols: by name, so the same in every expression."""
    from sympy import Float, I

    out = {}
    for symbol in expression.free_symbols:
        digest = hashlib.blake2b(f'{symbol.name}/{point}'.encode(), digest_size=16).digest()
        real = int.from_bytes(digest[:8], 'big') / 2**64
        other = int.from_bytes(digest[8:], 'big') / 2**64
        base = Float(0.4 + 1.3 * real, _DIGITS)
        out[symbol] = (base, -base, base + I * Float(0.2 + other, _DIGITS))[point]
    return out


def value(expression, at: dict) -> complex | None:
    """The value at a point as a complex number, or None (none, not finite, not a number)."""
    found = _evaluated(expression, at)
    if found is None:
        return None
    out = complex(found)
    return out if abs(out) < 1e300 else None


def _evaluated(expression, at: dict):
    """`value`, with the digits that sympy found."""
    try:
        found = expression.evalf(_DIGITS, subs=at) if at else expression.evalf(_DIGITS)
        if at and getattr(found, 'free_symbols', True):
            found = expression.xreplace(at).doit().evalf(_DIGITS)
        complex(found)
    except MemoryError:
        raise
    except Exception:
        return None
    return found


def in_ratio(first, second) -> bool:
    """Whether two expressions whose ratio seems to be constant have it in all digits."""
    values = [digits(one, places(one, point)) for point in _REAL for one in (first, second)]
    if None in values:
        return True
    one, other = values[0] * values[3], values[1] * values[2]
    return bool(abs(one - other) <= _SAME * max(abs(one), abs(other)))


def digits(expression, at: dict):
    """A real value with `_ALL` digits; None where there is none, or a rounded number is in it."""
    if _rounded(expression):
        return None
    found = expression.evalf(_ALL, subs=at)
    return found if found.is_Float else None


def _rounded(expression) -> bool:
    from sympy import Float, Integral, Product, Sum

    return expression.has(Float, Integral, Product, Sum)
