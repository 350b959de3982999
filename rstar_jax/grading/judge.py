"""Inside a worker: are two answers equivalent, part by part, by numbers first and sympy last.

answers -> structure.form -> parts paired -> plain numbers -> values at fixed points -> math-verify
"""

from __future__ import annotations

import importlib
import logging
import re

from rstar_jax.grading import normalise, plain, structure
from rstar_jax.grading.values import (
    LARGE,
    NOTHING,
    POINTS,
    close,
    digits,
    in_ratio,
    parse,
    places,
    same_values,
    value,
)

_END = r'\s*((?:(?!\\(?:le|ge|ne|lt|gt)(?![a-z]))[^<>=,])+?)\s*'
_BETWEEN = re.compile(rf'{_END}(<|\\leq?(?![a-z]))\s*[a-zA-Z]\s*(<|\\leq?(?![a-z])){_END}')
_PLUS_MINUS = re.compile(r'\\(?:pm|mp)(?![a-z])')
_BASED = re.compile(r'_\{?(\d+)\}?$')
_RELATION = re.compile(r'[<>=]|\\(?:le|ge|ne|lt|gt|neq)(?![a-z])')


def warm() -> None:
    """Load math-verify and the caches of the parser, once."""
    logging.disable(logging.WARNING)  # its notes on time limits, which the worker keeps itself
    for name in ('latex2sympy2_extended', 'math_verify', 'sympy'):
        importlib.import_module(name)
    for answer, truth in (
        (r'\frac{\sqrt{3}}{3}', r'\frac{1}{\sqrt{3}}'),
        ('(x+1)^2', 'x^2+2x+1'),
        ('y=2x+3', '2x-y+3=0'),
        (r'\begin{pmatrix} 1 \\ 2 \end{pmatrix}', '(1,2)'),
        (r'(-\infty,2)\cup(3,\infty)', r'x<2 \text{ or } x>3'),
        (r'1\pm\sqrt{2}', r'1+\sqrt{2},1-\sqrt{2}'),
        (r'\sin^2 x+\ln 2+e^{2x}', r'1-\cos^2 x+\log 2'),
        (r'-2 \le x \le 7', r'x\in[-2,7]'),
        ('6-5i', '6+5i'),
    ):
        equivalent(normalise.clean(answer), normalise.clean(truth))


def handle(job: dict) -> dict:
    """job['pair']: cleaned answer and truth -> {'equal'}; job['answer'] -> {'key'}."""
    if 'pair' in job:
        try:
            return {'equal': equivalent(*job['pair'])}
        except RecursionError:
            return {'equal': False}
    try:
        return {'key': key(job['answer'])}
    except RecursionError:
        return {'key': job['answer']}


def present(report: dict) -> dict:
    """In the zygote: a report as the main process gets it."""
    return report


def equivalent(answer: str, truth: str) -> bool:
    """Whether two cleaned answers mean the same."""
    if structure.differently_joined(answer, truth):
        return False
    answer, truth = structure.listed(answer), structure.listed(truth)
    quick = plain.verdict(answer, truth)
    if quick is not None:
        return quick
    (name_a, value_a), (name_b, value_b) = map(structure.assignment, (answer, truth))
    if name_a or name_b:
        # x = 4 is 4, but not x^2 = 4.
        equations = '=' in (answer if not name_a else '') + (truth if not name_b else '')
        alike = not (name_a and name_b and name_a != name_b)
        if alike and not equations and same(value_a, value_b):
            return True
        if name_a and name_b and name_a == name_b:
            return False
    return same(answer, truth)


def same(a: str, b: str) -> bool:
    """Compare the forms of two texts, then their parts."""
    one, two = structure.form(a), structure.form(b)
    kinds = {one.kind, two.kind}
    if kinds == {'one'}:
        return leaf(one.parts[0], two.parts[0])
    if kinds == {'matrix'}:
        return one.brackets == two.brackets and ordered(one.parts, two.parts)
    if kinds == {'tuple', 'matrix'}:
        matrix = one if one.kind == 'matrix' else two
        return '1' in matrix.brackets.split('x') and ordered(one.parts, two.parts)
    if kinds == {'ratio'}:
        first = one.parts[0], two.parts[0]
        return len(one.parts) == len(two.parts) and all(
            equivalent(rf'({x})\cdot({first[1]})', rf'({y})\cdot({first[0]})')
            for x, y in zip(one.parts[1:], two.parts[1:], strict=True)
        )
    if 'ratio' in kinds:
        return False
    if kinds == {'tuple'}:
        # Of three or more they are no interval's: a Python list is a tuple, too.
        alike = one.brackets == two.brackets or len(one.parts) > 2
        return alike and ordered(one.parts, two.parts)
    if kinds == {'tuple', 'list'} and 1 in map(len, (one.parts, two.parts)):  # [(1, 2)]
        return same(
            one.parts[0] if one.kind == 'list' else a, two.parts[0] if two.kind == 'list' else b
        )
    if 'tuple' in kinds and '[]' in (one.brackets, two.brackets):
        if kinds & {'set', 'list'} or _PLUS_MINUS.search(a + b):  # a Python list, meant as a set
            return unordered(_spread(one.parts), _spread(two.parts))
    if kinds == {'tuple', 'set'}:
        return False
    if kinds == {'tuple', 'list'}:
        return ordered(one.parts, two.parts)
    if kinds <= {'set', 'list', 'one'} and not _relations(a, b):
        return unordered(_spread(one.parts), _spread(two.parts))
    if kinds == {'one', 'tuple'} and _relations(a, b):
        interval = ray(a if one.kind == 'one' else b)
        if interval is not None:
            return same(interval, b if one.kind == 'one' else a)
    if kinds == {'list', 'union'} and _relations(a, b):
        rays = [ray(part) for part in (one if one.kind == 'list' else two).parts]
        union = one if one.kind == 'union' else two
        return None not in rays and unordered(tuple(rays), union.parts)
    if kinds == {'union'}:
        return unordered(one.parts, two.parts) or symbolic(a, b)
    return symbolic(a, b)


def ray(relation_: str) -> str | None:
    """'x < 2' as '(-\\infty, 2)', '1 \\le x < 2' as '[1, 2)', or None."""
    between = _BETWEEN.fullmatch(relation_)
    if between:
        low, left, right, high = between.groups()
        return f'{"(" if left == "<" else "["}{low}, {high}{")" if right == "<" else "]"}'
    found = re.fullmatch(r'\s*[a-z]\s*(<|>|\\leq?|\\geq?)\s*([^<>=]+)', relation_)
    if not found:
        return None
    sign, end = found.groups()
    if sign in ('<', '\\le', '\\leq'):
        return f'(-\\infty, {end}{")" if sign == "<" else "]"}'
    return f'{"(" if sign == ">" else "["}{end}, \\infty)'


def _relations(*texts: str) -> bool:
    return any(_RELATION.search(text) for text in texts)


def _spread(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Parts with `\\pm` as two parts each, duplicates kept."""
    out = []
    for part in parts:
        name, value = structure.assignment(part)
        part = value if name else part
        if _PLUS_MINUS.search(part):
            up = re.sub(r'\\pm(?![a-z])', '+', re.sub(r'\\mp(?![a-z])', '-', part))
            down = re.sub(r'\\pm(?![a-z])', '-', re.sub(r'\\mp(?![a-z])', '+', part))
            out += [up, down]
        else:
            out.append(part)
    return tuple(out)


def ordered(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    return len(a) == len(b) and all(equivalent(x, y) for x, y in zip(a, b, strict=True))


def unordered(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    """A perfect matching of equal parts (greedy: equality is transitive)."""
    if len(a) != len(b) or len(a) > 50:
        return False
    left = list(b)
    for part in a:
        found = next((index for index, other in enumerate(left) if equivalent(part, other)), None)
        if found is None:
            return False
        del left[found]
    return True


def leaf(a: str, b: str) -> bool:
    """Two single values: number against value with units, or expressions, relations."""
    (value_a, unit_a), (value_b, unit_b) = plain.split_unit(a), plain.split_unit(b)
    if not plain.same_unit(unit_a, unit_b):
        return False
    if plain.squeezed(value_a) == plain.squeezed(value_b):
        return True
    if '\\text' in value_a or '\\text' in value_b:
        return False
    if _PLUS_MINUS.search(value_a + value_b):
        both = _spread((value_a,)), _spread((value_b,))
        return unordered(*both) if len(both[0]) == len(both[1]) == 2 else False
    if _relations(value_a) != _relations(value_b):
        return symbolic(value_a, value_b) if _relations(value_a, value_b) else False
    if _relations(value_a):
        return relation(value_a, value_b)
    based = [_BASED.search(value) for value in (value_a, value_b)]
    if any(based):
        if not based[0]:  # as a unit, a base that only the truth has is left out
            digits_b = re.fullmatch(r'\d[\dA-F.]*', value_b[: based[1].start()].strip())
            return digits_b is not None and plain.squeezed(value_a) == digits_b[0]
        return (
            all(based)
            and based[0][1] == based[1][1]
            and leaf(value_a[: based[0].start()], value_b[: based[1].start()])
        )
    one, two = plain.number(value_a), plain.number(value_b)
    if one and two:
        return plain.same_measure(one, unit_a, two, unit_b)
    first, second = _exact(value_a, one), _exact(value_b, two)
    if first is None or second is None:
        return False
    first = _with_e(first, second)
    if (unit_a == '%') != (unit_b == '%'):
        if unit_a == '%':
            alike = same_values(first / 100, second, one and plain.hundredth(one), two)
        else:
            alike = same_values(first, second / 100, one, two and plain.hundredth(two))
        if alike:
            return True
    found = same_values(first, second, one, two)
    return symbolic(value_a, value_b) if found is None else found


def _with_e(answer, truth):
    """The answer, its E (a symbol named e) as sympy prints the number e if the truth has that."""
    from sympy import E, exp

    letter = [one for one in answer.free_symbols - truth.free_symbols if one.name == 'e']
    return answer.xreplace({letter[0]: E}) if letter and truth.has(E, exp) else answer


def _exact(text: str, number: plain.Number | None):
    """A value as a sympy expression; plain numbers have spellings that the parser misreads."""
    if number is None or number.rounded:
        return parse(text)
    from sympy import Rational

    return Rational(number.value.numerator, number.value.denominator)


def relation(a: str, b: str) -> bool:
    """Equations up to a factor; inequalities and the rest by math-verify."""
    one, two = parse(a), parse(b)
    if one is None or two is None:
        return False
    from sympy import Eq

    if isinstance(one, Eq) and isinstance(two, Eq):
        first, second = one.lhs - one.rhs, two.lhs - two.rhs
        ratios = []
        for point in range(POINTS):
            x = value(first, places(first, point))
            y = value(second, places(second, point))
            if x is None or y is None or not x or not y:
                continue
            ratios.append(x / y)
        if len(ratios) >= 2 and first.free_symbols == second.free_symbols:
            return all(close(ratio, ratios[0]) for ratio in ratios) and in_ratio(first, second)
        return False
    return symbolic(a, b)


def symbolic(a: str, b: str) -> bool:
    """math-verify, in both orders, one expression each."""
    from math_verify import verify

    one, two = parse(a), parse(b)
    if one is None or two is None:
        return False
    options = {'timeout_seconds': None, 'allow_set_relation_comp': True}
    return bool(verify(two, one, **options) or verify(one, two, **options))


def key(answer: str) -> str:
    """A text that equivalent answers share, where values can tell it; else the answer itself.

    Others may share it, too: one leaf's key is its value (at a fixed point) to 9 digits, or to all
    of its whole part, without units and names; a form's key is its parts'.
    """
    answer = structure.listed(answer)
    _name, text = structure.assignment(answer)
    found = structure.form(text)
    parts = _spread(found.parts)
    if found.kind == 'one' and len(parts) == 1:
        said = plain.words(answer)
        return f'text:{said}' if said is not None else _leaf_key(found.parts[0])
    if found.kind == 'ratio':
        parts = tuple(rf'\frac{{{part}}}{{{parts[0]}}}' for part in parts)
    parts = [key(part) for part in parts]
    if found.kind in ('one', 'set', 'list', 'union'):
        parts.sort()
    kind = 'set' if found.kind in ('one', 'list') else found.kind
    return f'{kind}{found.brackets}[{";".join(parts)}]'


def _leaf_key(text: str) -> str:
    text, unit = plain.split_unit(text)
    unit = '%' if unit == '%' else ''
    if based := _BASED.search(text):
        return f'{_leaf_key(text[: based.start()])}_{based[1]}'
    number = plain.number(text)
    if number is not None:
        return f'{_short(complex(number.value), number.value)}{unit}'
    expression = None if _relations(text) or '\\text' in text else parse(text)
    if expression is None or not hasattr(expression, 'evalf'):
        return f'raw:{plain.squeezed(text)}{unit}'
    if not expression.free_symbols:
        found = value(expression, {})
        if found is None:
            return f'raw:{text}{unit}'
        to = ':' if plain.RATIO.search(text) and _whole(found) else ''  # 3:1 is not 3
        return f'{_short(found, expression)}{to}{unit}'
    for point in range(POINTS):
        at = places(expression, point)
        found = value(expression, at)
        if found is not None:
            break
    else:
        return f'raw:{text}{unit}'
    if abs(found) < LARGE:
        return f'f:{_short(found)}{unit}'
    from sympy import Float, Rational

    # A decimal is a fraction here: 0.1x and x/10 have one key.
    fractions = expression.xreplace({one: Rational(str(one)) for one in expression.atoms(Float)})
    return f'f:{_short(found, digits(fractions, at))}{unit}'


def _whole(number: complex) -> bool:
    return abs(number - round(number.real)) < 1e-12


def _short(number: complex, exact=None) -> str:
    real, imag = (
        0.0 if abs(part) < max(NOTHING, 1e-13 * abs(number)) else part
        for part in (number.real, number.imag)
    )
    if exact is not None and not imag and abs(real) >= LARGE:
        return str(round(exact))
    return f'{real:.9g}' if not imag else f'{real:.9g}{imag:+.9g}i'
