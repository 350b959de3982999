"""Cheap, exact comparison of answers as text and as plain numbers; no sympy.

cleaned answer (`normalise.clean`) -> split_unit(), number(), words()
                                   -> verdict(): True, False, or None = ask a worker
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace
from fractions import Fraction

from rstar_jax.grading.normalise import closing

LONGEST = 1500  # characters; longer answers are compared only as text
RATIO = re.compile(r'\d\s*:\s*\d')  # 3:1, or a time
_UNITS = {
    'degree': 'deg', 'deg': 'deg', 'radian': 'rad', 'rad': 'rad', 'dollar': '$', 'usd': '$',
    'cent': 'cent', 'pound': 'pound', 'lb': 'pound', 'euro': 'euro', 'percent': '%',
    'inch': 'inch', 'inches': 'inch', 'in': 'inch', 'foot': 'foot', 'feet': 'foot', 'ft': 'foot',
    'yard': 'yard', 'yd': 'yard', 'mile': 'mile', 'mi': 'mile', 'mm': 'mm', 'millimeter': 'mm',
    'cm': 'cm', 'centimeter': 'cm', 'centimetre': 'cm', 'm': 'm', 'meter': 'm', 'metre': 'm',
    'km': 'km', 'kilometer': 'km', 'kilometre': 'km', 'g': 'g', 'gram': 'g', 'kg': 'kg',
    'kilogram': 'kg', 'mg': 'mg', 'oz': 'ounce', 'ounce': 'ounce', 'ton': 'ton', 'l': 'liter',
    'liter': 'liter', 'litre': 'liter', 'ml': 'ml', 'gallon': 'gallon', 'quart': 'quart',
    'second': 's', 'sec': 's', 's': 's', 'minute': 'min', 'min': 'min', 'hour': 'h', 'hr': 'h',
    'h': 'h', 'day': 'day', 'week': 'week', 'month': 'month', 'year': 'year', 'mph': 'mile/h',
    'am': 'am', 'a m': 'am', 'pm': 'pm', 'p m': 'pm',
}  # fmt: skip
_MODULO = re.compile(  # 5 \pmod{7}, 5 (\bmod 7), 5 \text{(mod 7)}
    r'\s*(?:\\pmod\s*\{?\s*(\w+)\s*\}?|\(\s*(?:\\[bp]?mod|\\text\{mod\}|mod)\s*\{?(\w+)\}?\s*\)|'
    r'\\text\{\(mod (\w+)\)\})$'
)
_OTHERWISE = re.compile(r'\b(?:or|not?|impossible|least|most)\b', re.IGNORECASE)  # 3 or more
_CURRENCY = {'$': '$', '£': 'pound', '€': 'euro', '¥': 'yen'}
_HYPHEN = re.compile(r'(?<=[A-Za-z]{3})-(?=[A-Za-z])|(?<=[A-Za-z])-(?=[A-Za-z]{3})')
_CAPITALS = re.compile('[A-Z]{2,}')
_CHOICE = re.compile(  # (A) 5, \text{(A)} 5, A. 5
    r'(?:\\text\{\(([A-J])\)\}\s*|\\text\{([A-J])[.):]?\}\s+|\(([A-J])\)\s+|([A-J])[.):]\s+)(.+)'
)
_LETTER = re.compile(r'\(?(?:\\text\{\(?)?([A-J])\)?\}?\)?')
_LETTERS = re.compile(r'\\text\{\(?([A-Za-z]+(?: [A-Za-z]+)*)\)?\.?\}')  # \text{No}, \text{(b)}
_LONE = re.compile(r'\\text\{([a-zA-Z])\}')  # 5\text{m}, of which 5 m is a spelling
_WHOLE = re.compile(r'[+-]?\d+')
_INT = r'\d+'
_DECIMAL = re.compile(r'[+-]?(?:\d+\.?\d*|\.\d+)')
_POWER10 = re.compile(
    r'([+-]?(?:\d+\.?\d*|\.\d+))(?:[eE]([+-]?\d+)|(?:\\times|\\cdot|\*)10\^\{?([+-]?\d+)\}?)'
)
_FRACTION = re.compile(
    rf'([+-]?)(?:\\frac\{{([+-]?)({_INT})\}}\{{([+-]?)({_INT})\}}|({_INT})/({_INT})|'
    rf'\(({_INT})/({_INT})\)|\{{({_INT})\}}/\{{({_INT})\}})'
)
_REPEATING = re.compile(r'([+-]?)(\d*)\.(\d*)\\(?:overline|bar)\{(\d+)\}')
_MIXED = re.compile(rf'([+-]?)({_INT})(?:\\frac\{{({_INT})\}}\{{({_INT})\}}|[ +]({_INT})/({_INT}))')


# One answer is compared with many, as by a vote of a problem's trees.
_kept = functools.lru_cache(maxsize=20_000)


@dataclass(frozen=True, slots=True)
class Number:
    """A plain number.

    Attributes:
      value: exact.
      rounded: it may be a rounded one: a decimal of 6 or more digits that is not whole.
      places: of a decimal, digits after the point.
    """

    value: Fraction
    rounded: bool = False
    places: int = 0


@_kept
def split_unit(text: str) -> tuple[str, str]:
    """(value, unit) of a cleaned scalar: currency signs, percent, degrees, units in words, moduli.

    The unit is one canonical spelling ('' if none, '?' plus the words where unknown).
    """
    unit = ''
    text = text.strip()
    match = _MODULO.search(text)
    if match:
        return text[: match.start()], f'mod {match[1] or match[2] or match[3]}'
    match = re.match(r'([+-]?)\s*\\?([$£€¥])\s*(?=[\d.\\])', text)
    if match:
        unit, text = _CURRENCY[match[2]], match[1] + text[match.end() :]
    match = re.search(r'(?<=[\d}\)\s])\s*\\?([$£€¥])$', text)
    if match:
        unit, text = _CURRENCY[match[1]], text[: match.start()].strip()
    match = re.search(r'\s*\\?%$', text)
    if match and match.start():
        return text[: match.start()].strip(), '%'
    tail = re.search(
        r'(?:\\text\{([^{}]*)\}|(?<=[\d}\)\s])([A-Za-z][A-Za-z .]*(?:/ ?[A-Za-z]+)?))'
        r'\s*(\^\s*\{?\s*[23]\s*\}?)?\s*$',
        text,
    )
    if tail and tail.start():
        head = text[: tail.start()].strip()
        words = (tail[1] if tail[1] is not None else tail[2]).strip()
        known = _unit(words)
        plain = tail[1] is None
        apart = text[tail.start() - 1] == ' '  # 6xyz is a product
        named = known[0] != '?' or not plain or (apart and _wordy(words))
        if named and re.search(r'[\d})]$|\\pi$', head) and not _OTHERWISE.search(words):
            if not (plain and len(words) == 1):
                power = re.sub(r'\D', '', tail[3] or '')
                return head, known + (f'^{power}' if power else '')
    return text, unit


def _wordy(words: str) -> bool:
    return all(len(word) >= 3 for word in words.split()) and not re.search(r'\d', words)


def _unit(words: str) -> str:
    """One spelling of a unit such as 'square inches', 'miles per hour', 'cm^2'."""
    words = words.lower().replace('.', ' ')
    power = ''
    match = re.search(r'\^?\s*([23])\s*$', words)
    if match:
        power, words = match[1], words[: match.start()]
    parts = re.split(r'\s*/\s*|\s+per\s+', words.strip())
    out = []
    for part in parts:
        names = part.split()
        if names[:1] in (['square'], ['sq']) and len(names) > 1:
            power, names = '2', names[1:]
        elif names[:1] in (['cubic'], ['cu']) and len(names) > 1:
            power, names = '3', names[1:]
        name = ' '.join(names)
        known = _UNITS.get(name) or _UNITS.get(name.removesuffix('s'))
        out.append(known or f'?{name.removesuffix("s")}')
    text = '/'.join(out) + (f'^{power}' if power else '')
    return text if '?' not in text else '?' + text.replace('?', '')


def squeezed(text: str) -> str:
    """A cleaned text without spaces, but for those between two digits: 1 2 is not 12."""
    return re.sub(r'(?<!\d)\s+|\s+(?!\d)', '', text)


@_kept
def number(text: str) -> Number | None:
    """A cleaned scalar without unit as an exact number, where it is a plain one."""
    text = text.strip()
    for left, right in (('(', ')'), ('{', '}')):
        if text.startswith(left) and text.endswith(right) and ',' not in text:
            if closing(text, 0) == len(text) - 1:
                text = text[1:-1].strip()
    mixed = _MIXED.fullmatch(re.sub(r'\s+(?=\\frac)', '', text))
    if mixed:
        whole, top, bottom = int(mixed[2]), int(mixed[3] or mixed[5]), int(mixed[4] or mixed[6])
        if 0 < top < bottom:
            value = whole + Fraction(top, bottom)
            return Number(-value if mixed[1] == '-' else value)
    text = squeezed(text)
    if len(text) > 400:
        return None
    if _DECIMAL.fullmatch(text):
        value, (_, _, after) = Fraction(text), text.partition('.')
        digits = len(text.replace('.', '').lstrip('+-0'))
        return Number(value, digits >= 6 and value.denominator > 1, len(after))
    power = _POWER10.fullmatch(text)
    if power:
        exponent = int(power[2] or power[3])
        if abs(exponent) <= 400:
            return Number(Fraction(power[1]) * Fraction(10) ** exponent)
        return None
    repeating = _REPEATING.fullmatch(text)
    if repeating:
        sign, whole, first, again = repeating.groups()
        value = Fraction(int(whole + first + again) - int(whole + first or 0), 10 ** len(first))
        value /= 10 ** len(again) - 1
        return Number(-value if sign == '-' else value)
    ratio = _FRACTION.fullmatch(text)
    if ratio:
        sign = '-' in (ratio[1] or ''), '-' in (ratio[2] or ''), '-' in (ratio[4] or '')
        top, bottom = (
            [int(part) for part in ratio.groups()[4::1] if part and part.isdigit()][:2]
            if ratio[3] is None
            else (int(ratio[3]), int(ratio[5]))
        )
        if bottom:
            value = Fraction(top, bottom)
            return Number(-value if sum(sign) % 2 else value)
    return None


def same_number(a: Number, b: Number) -> bool:
    """Equal exactly, up to floating point noise, or one the other rounded to 6 or more digits."""
    if a.value == b.value:
        return True
    if not (a.rounded or b.rounded):
        return False
    gap = abs(a.value - b.value)
    if gap <= Fraction(1, 10**9) * min(10**6, max(abs(a.value), abs(b.value))):
        return True
    if a.rounded and b.rounded:
        return False
    return gap <= Fraction(1, 2 * 10 ** (a if a.rounded else b).places)


@_kept
def words(text: str) -> str | None:
    """The lower-case words of a cleaned text answer ('\\text{Evelyn}', 'not enough'), or None."""
    inside = re.fullmatch(r'\\text\{([^{}]*)\}', text)
    plain = inside[1] if inside else text
    choice = re.fullmatch(r'\(\s*([A-Z])\s*\)', plain) or (
        re.fullmatch(r'\s*([A-Z])\s*', plain) if inside else None
    )
    if choice:
        return choice[1]
    plain = _HYPHEN.sub(' ', plain)
    if not inside and not re.fullmatch(r"[A-Za-z][A-Za-z' .]*[A-Za-z.]", plain):
        return None
    wordy = inside or _CAPITALS.fullmatch(plain) or plain.lower() == 'no'
    plain = ' '.join(re.sub(r'[\s.,;:!?"\'_()\[\]]+', ' ', plain.lower()).split())
    plain = re.sub(r'^(?:an?|the) (?=\w{3})', '', plain)
    plain = plain.removesuffix('s') if plain.startswith('no ') else plain
    return plain if plain and (wordy or re.search(r'[a-z]{3}', plain)) else None


def matched(answer: str, truth: str) -> tuple[str, str]:
    """What of two cleaned answers is to be compared, where one is a choice with its value, (A) 5.

    The letter, where the other has one too, else the value.
    """
    chosen = [_CHOICE.fullmatch(text) for text in (answer, truth)]
    if not any(chosen):
        return answer, truth
    letters = [
        next(filter(None, found.groups()))
        if found
        else (lone := _LETTER.fullmatch(text)) and lone[1]
        for found, text in zip(chosen, (answer, truth), strict=True)
    ]
    if all(letters):
        return rf'\text{{{letters[0]}}}', rf'\text{{{letters[1]}}}'
    return tuple(found[5] if found else text for found, text in zip(chosen, (answer, truth)))


def verdict(answer: str, truth: str) -> bool | None:
    """Equivalent or not where that is plain; None where a worker must look.

    Args:
      answer: a cleaned answer.
      truth: a cleaned accepted answer.
    """
    if not answer or not truth:
        return False
    texts = squeezed(answer), squeezed(truth)
    if _LONE.sub(r'\1', texts[0]) == _LONE.sub(r'\1', texts[1]):
        return True
    if all(map(_CAPITALS.fullmatch, texts)):  # letters in their order: no product
        return False
    if any(map(_WHOLE.fullmatch, texts)) and any(map(RATIO.search, texts)):
        return False
    if max(map(len, texts)) > LONGEST or any(_hopeless(one) for one in texts):
        return False
    said = words(answer), words(truth)
    if said[0] is not None and said[1] is not None:
        if said[0] == said[1] or _same_choice(*said, answer + truth):
            return True
        if any(re.search('[a-z]{4}', one) or len(one) == 1 for one in said):
            return False
    elif _same_letters(answer, truth) or _same_letters(truth, answer):
        return True
    elif 'A' <= (said[1] or said[0] or '') <= 'Z':  # a choice against something else
        other = answer if said[1] else truth
        letter = said[1] or said[0]
        return bool(re.fullmatch(rf'\(?{letter}\)?(?:[.):]?\s.*|[.):].*)?', other)) or None
    (a, unit_a), (b, unit_b) = split_unit(answer), split_unit(truth)
    one, two = number(a), number(b)
    if one is None or two is None:
        return None
    return same_measure(one, unit_a, two, unit_b)


def _same_letters(text: str, other: str) -> bool:
    """Whether \\text{No} and no are the same, of which a parser would take one for a product.

    A single letter may be a name: it is the same in another case only as a choice, \\text{(b)}.
    """
    found = _LETTERS.fullmatch(text)
    if not found:
        return False
    one, two = squeezed(found[1]), squeezed(other).strip('()')
    if len(one) > 1:
        return one.lower() == two.lower()
    return one == two or _same_choice(one, two, text)


def _same_choice(one: str, two: str, text: str) -> bool:
    """Whether two letters are one choice, as the brackets of one tell."""
    return len(one) == 1 and one.lower() == two.lower() and '(' in text


def same_measure(a: Number, unit_a: str, b: Number, unit_b: str) -> bool:
    """Two numbers with units: a unit left out is right, another unit is wrong."""
    if not same_unit(unit_a, unit_b):
        return False
    if same_number(a, b):
        return True
    if (unit_a == '%') != (unit_b == '%'):
        percent, plain = (a, b) if unit_a == '%' else (b, a)
        return same_number(hundredth(percent), plain)
    return False


def hundredth(percent: Number) -> Number:
    """A number of percent without its unit, as many digits of it shown."""
    return replace(percent, value=percent.value / 100, places=percent.places + 2)


def same_unit(a: str, b: str) -> bool:
    """Whether two units agree; unknown words and a missing unit agree with everything."""
    return a == b or not a or not b or '?' in a[:1] or '?' in b[:1]


def _hopeless(text: str) -> bool:
    """Nesting or towers of powers that no answer has and no parser survives."""
    depth = deepest = 0
    for char in text:
        depth += (char in '([{') - (char in ')]}')
        deepest = max(deepest, depth)
    return deepest > 40
