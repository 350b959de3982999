"""Cheap, exact comparison of answers as text and as plain numbers; no sympy.

raw answer -> clean(): one LaTeX-like spelling -> split_unit(), number(), words()
                                               -> verdict(): True, False, or None = ask a worker
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

LONGEST = 1500  # characters; longer answers are compared only as text
_UNICODE = {
    '−': '-', '–': '-', '—': '-', '×': r'\times ', '·': r'\cdot ', '÷': '/', '∗': '*', 'π': r'\pi ',
    '√': r'\sqrt ', '∞': r'\infty ', '≤': r'\le ', '≥': r'\ge ', '≠': r'\ne ', '∪': r'\cup ',
    '∩': r'\cap ', '∈': r'\in ', '±': r'\pm ', '°': r'^\circ ', '′': "'", 'θ': r'\theta ',
    'α': r'\alpha ', 'β': r'\beta ', 'γ': r'\gamma ', 'φ': r'\phi ', 'λ': r'\lambda ',
    'ω': r'\omega ', '∅': r'\emptyset ', '∖': r'\setminus ', 'ℝ': r'\mathbb{R}', '“': '"',
    '”': '"', '’': "'", '²': '^2', '³': '^3', '⁄': '/',
}  # fmt: skip
_FRACTION_CHARS = {'½': (1, 2), '⅓': (1, 3), '⅔': (2, 3), '¼': (1, 4), '¾': (3, 4), '⅕': (1, 5)}
_FUNCTIONS = {
    'sqrt': r'\sqrt', 'sin': r'\sin', 'cos': r'\cos', 'tan': r'\tan', 'cot': r'\cot',
    'sec': r'\sec', 'csc': r'\csc', 'log': r'\log', 'ln': r'\ln', 'exp': r'\exp',
    'arcsin': r'\arcsin', 'arccos': r'\arccos', 'arctan': r'\arctan', 'asin': r'\arcsin',
    'acos': r'\arccos', 'atan': r'\arctan',
}  # fmt: skip
_NAMES = {
    'pi': r'\pi', 'infinity': r'\infty', 'inf': r'\infty', 'oo': r'\infty', 'theta': r'\theta',
    'alpha': r'\alpha', 'beta': r'\beta', 'gamma': r'\gamma', 'lambda': r'\lambda', 'phi': r'\phi',
}  # fmt: skip
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
    'day': 'day', 'week': 'week', 'month': 'month', 'year': 'year', 'mph': 'mile/h',
}  # fmt: skip
_SCALES = {'hundred': 2, 'thousand': 3, 'million': 6, 'billion': 9, 'trillion': 12}
_SCALED = re.compile(rf'(?<=\d)\s*(\\text\{{)?\s*({"|".join(_SCALES)})s?(?![a-z])\s*')
_SMALL = [
    'zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten', 'eleven',
    'twelve', 'thirteen', 'fourteen', 'fifteen', 'sixteen', 'seventeen', 'eighteen', 'nineteen',
]  # fmt: skip
_TENS = ['twenty', 'thirty', 'forty', 'fifty', 'sixty', 'seventy', 'eighty', 'ninety']
_CURRENCY = {'$': '$', '£': 'pound', '€': 'euro', '¥': 'yen'}
_TEXT = r'\\(?:text|mbox|textbf|textit|textrm|mathrm|mathbf|mathit|operatorname|rm|bf|hbox|emph)'
_SPACES = re.compile(r'\\[,;:! ]|\\q?quad(?![a-zA-Z])|(?<!\\)~|\\(?:hspace|phantom)\{[^{}]*\}')
_GROUPED = re.compile(r'(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])')
_INT = r'\d+'
_DECIMAL = re.compile(r'[+-]?(?:\d+\.?\d*|\.\d+)')
_POWER10 = re.compile(
    r'([+-]?(?:\d+\.?\d*|\.\d+))(?:[eE]([+-]?\d+)|(?:\\times|\\cdot|\*)10\^\{?([+-]?\d+)\}?)'
)
_RATIO = re.compile(
    rf'([+-]?)(?:\\frac\{{([+-]?)({_INT})\}}\{{([+-]?)({_INT})\}}|({_INT})/({_INT})|'
    rf'\(({_INT})/({_INT})\)|\{{({_INT})\}}/\{{({_INT})\}})'
)
_MIXED = re.compile(rf'([+-]?)({_INT})(?:\\frac\{{({_INT})\}}\{{({_INT})\}}|[ +]({_INT})/({_INT}))')


@dataclass(frozen=True)
class Number:
    """A plain number: exact value, and how many significant digits a decimal spelling shows."""

    value: Fraction
    decimal: bool = False
    digits: int = 0
    places: int = 0


def clean(raw: object) -> str:
    """One spelling for many: spaces, fractions, roots, signs, Unicode, delimiters of math mode."""
    text = unicodedata.normalize('NFC', str(raw)).strip()
    for char, (top, bottom) in _FRACTION_CHARS.items():
        text = text.replace(char, rf'\frac{{{top}}}{{{bottom}}}')
    for char, replacement in _UNICODE.items():
        if char in text:
            text = text.replace(char, replacement)
    text = unbox(_unwrap_math(text))
    text = text.replace('\\\\', '\x00')  # the row separator of matrices
    text = re.sub(r'(?<=\d),\\!\s*(?=\d)|(?<=\d)\\!\s*,\s*(?=\d)|(?<=\d)\{,\}(?=\d)', ',', text)
    text = _SPACES.sub(' ', text).replace('\\displaystyle', ' ')
    text = re.sub(r'\\(?:left|right|bigl?|bigr?|Bigl?|Bigr?)(?=[\s()\[\]|\\.{}])', '', text)
    text = re.sub(r'\\[dtc]frac(?![a-z])', r'\\frac', text)
    text = re.sub(r'\\(?:leqslant|leq)(?![a-z])', r'\\le ', text)
    text = re.sub(r'\\(?:geqslant|geq)(?![a-z])', r'\\ge ', text)
    text = text.replace('<=', r'\le ').replace('>=', r'\ge ')
    text = re.sub(r'\\(?:varnothing|O)(?![a-z])', r'\\emptyset', text)
    text = text.replace('\\lbrace', '\\{').replace('\\rbrace', '\\}')
    text = re.sub(r'\\(?:lvert|rvert|vert|mid)(?![a-z])', '|', text)
    text = re.sub(r'\\(?:ast|star)(?![a-z])', '*', text).replace('**', '^')
    text = re.sub(r'\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree', r' \\text{deg}', text)
    text = re.sub(rf'{_TEXT}\s*\{{([^{{}}]*)\}}', _text, text)
    text = re.sub(r'_\{?\s*(?:\\text\{(\d+)\}|\((\d+)\))\s*\}?', r'_{\1\2}', text)
    text = re.sub(r'^\\text\{([^{}]*\d[^{}]*)\}$', r'\1', text.strip())
    text = re.sub(r'(?<=[\d)}])\s+(?:and|or)\s+(?=[-\d\\(a-z])', ', ', text)
    text = _SCALED.sub(lambda match: rf'\times 10^{{{_SCALES[match[2]]}}} {match[1] or ""}', text)
    text = _functions(text.replace('\\text{}', ''))
    text = _GROUPED.sub(lambda match: match[0].replace(',', ''), text) if _scalar(text) else text
    text = _arguments(text)
    text = re.sub(r'\s+', ' ', text).strip()
    if text.endswith('.') and not text.endswith('..'):
        text = text[:-1].strip()
    return _spelled(text) or text.replace('\x00', '\\\\')


def _unwrap_math(text: str) -> str:
    for left, right in (('$$', '$$'), ('$', '$'), ('\\(', '\\)'), ('\\[', '\\]')):
        if text.endswith(f'{right}.'):
            text = text[:-1]
        inside = text[len(left) : -len(right)]
        if text.startswith(left) and text.endswith(right) and inside and left not in inside:
            if not (left == '$' and inside.endswith('\\')):
                return inside.strip()
    return text


def unbox(text: str) -> str:
    """The content of `\\boxed{...}` where that is the whole text."""
    match = re.match(r'\s*\\f?boxed\s*\{', text)
    if not match or not text.rstrip().endswith('}'):
        return text
    inner, depth = text.rstrip()[match.end() : -1], 0
    for char in inner:
        depth += (char == '{') - (char == '}')
        if depth < 0:
            return text
    return _unwrap_math(inner.strip())


def _text(match: re.Match) -> str:
    inside = match[1].strip()
    lone = inside.lower()
    if lone in ('or', 'and'):
        return ','
    if re.fullmatch(r'[A-Za-z]', inside) and not match.group(0).startswith(('\\text', '\\mbox')):
        return f' {inside} '
    return rf'\text{{{inside}}}' if inside else ' '


def _spelled(text: str) -> str:
    """'18' for 'eighteen'; '' for what is no whole number below 100 in words."""
    words = text.removeprefix('\\text{').removesuffix('}').lower().replace('-', ' ').split()
    if len(words) == 1 and words[0] in _SMALL:
        return str(_SMALL.index(words[0]))
    if not words or words[0] not in _TENS:
        return ''
    value = 10 * (2 + _TENS.index(words[0]))
    if len(words) == 2 and words[1] in _SMALL[1:10]:
        return str(value + _SMALL.index(words[1]))
    return str(value) if len(words) == 1 else ''


def _scalar(text: str) -> bool:
    return not re.match(r'[(\[]|\\\{|\\begin', text.strip()) or not re.search(r',', text)


def _functions(text: str) -> str:
    """sqrt(2), pi, 3*x as LaTeX."""
    text = re.sub(
        r'(?<![\\a-zA-Z{])('
        + '|'.join(sorted(_FUNCTIONS, key=len, reverse=True))
        + r')(?=\s*[({])',
        lambda match: _FUNCTIONS[match[1]],
        text,
    )
    text = re.sub(
        r'(?<![\\a-zA-Z])(' + '|'.join(sorted(_NAMES, key=len, reverse=True)) + r')(?![a-zA-Z])',
        lambda match: _NAMES[match[1]],
        text,
    )
    while (start := re.search(r'\\(?:sqrt|cbrt)\s*\(', text)) is not None:
        end = closing(text, start.end() - 1)
        if end < 0:
            break
        text = f'{text[: start.end() - 1]}{{{text[start.end() : end]}}}{text[end + 1 :]}'
    return re.sub(r'\s*\*\s*', r'\\cdot ', text)


def closing(text: str, start: int) -> int:
    """Index of the bracket that closes the one at `start`, or -1."""
    depth = 0
    for index in range(start, len(text)):
        char = text[index]
        if char in '([{':
            depth += 1
        elif char in ')]}':
            depth -= 1
            if depth == 0:
                return index
    return -1


def _arguments(text: str) -> str:
    """Braces around the bare arguments of `\\frac` and `\\sqrt`, and the spaces before them away."""  # noqa: E501
    out, index = [], 0
    while index < len(text):
        match = re.match(r'\\frac(?![a-zA-Z])|\\sqrt(?![a-zA-Z])(\s*\[[^\]]*\])?', text[index:])
        if not match:
            out.append(text[index])
            index += 1
            continue
        out.append(re.sub(r'\s', '', match[0]))
        index += match.end()
        for _ in range(2 if match[0] == '\\frac' else 1):
            while index < len(text) and text[index] == ' ':
                index += 1
            if index >= len(text) or text[index] == '{':
                end = _brace(text, index)
                if end < 0:
                    break
                out.append(f'{{{_arguments(text[index + 1 : end]).strip()}}}')
                index = end + 1
            else:
                atom = re.match(r'\\[a-zA-Z]+|.', text[index:])[0]
                if atom in (')', ']', '}', ',', '\x00'):
                    break
                out.append(f'{{{atom}}}')
                index += len(atom)
    return ''.join(out)


def _brace(text: str, start: int) -> int:
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == '{') - (text[index] == '}')
        if depth == 0:
            return index
    return -1


def split_unit(text: str) -> tuple[str, str]:
    """(value, unit) of a cleaned scalar: currency signs, percent, degrees, units in words.

    The unit is one canonical spelling ('' if none, '?' plus the words where unknown).
    """
    unit = ''
    text = text.strip()
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
        if re.search(r'[\d})]$|\\pi$', head) and (known[0] != '?' or not plain or _wordy(words)):
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
    text = text.replace(' ', '')
    if len(text) > 400:
        return None
    if _DECIMAL.fullmatch(text):
        _, point, after = text.partition('.')
        digits = len(text.replace('.', '').lstrip('+-0'))
        return Number(Fraction(text), bool(point and after), digits, len(after))
    power = _POWER10.fullmatch(text)
    if power:
        exponent = int(power[2] or power[3])
        if abs(exponent) <= 400:
            return Number(Fraction(power[1]) * Fraction(10) ** exponent)
        return None
    ratio = _RATIO.fullmatch(text)
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
    if not (a.decimal or b.decimal):
        return False
    gap = abs(a.value - b.value)
    if gap <= Fraction(1, 10**9) * max(abs(a.value), abs(b.value)):
        return True
    for rounded, exact in ((a, b), (b, a)):
        if rounded.decimal and not exact.decimal and rounded.digits >= 6:
            if exact.value.denominator != 1 and gap <= Fraction(1, 2 * 10**rounded.places):
                return True
    return False


def words(text: str) -> str | None:
    """The lower-case words of a cleaned text answer ('\\text{Evelyn}', 'no solution'), or None."""
    inside = re.fullmatch(r'\\text\{([^{}]*)\}', text)
    plain = inside[1] if inside else text
    choice = re.fullmatch(r'\(\s*([A-Z])\s*\)', plain) or (
        re.fullmatch(r'\s*([A-Z])\s*', plain) if inside else None
    )
    if choice:
        return choice[1]
    if not inside and not re.fullmatch(r"[A-Za-z][A-Za-z' .\-]*[A-Za-z.]", plain):
        return None
    plain = ' '.join(re.sub(r'[^a-z0-9]+', ' ', plain.lower()).split())
    plain = re.sub(r'^(?:an?|the) (?=\w{3})', '', plain)
    return plain if inside or re.search(r'[a-z]{3}', plain) else None


def verdict(answer: str, truth: str) -> bool | None:
    """Equivalent or not where that is plain; None where a worker must look.

    Args:
      answer: a cleaned answer.
      truth: a cleaned accepted answer.
    """
    if not answer or not truth:
        return False
    squeezed = re.sub(r'\s', '', answer), re.sub(r'\s', '', truth)
    if squeezed[0] == squeezed[1]:
        return True
    if max(map(len, squeezed)) > LONGEST or any(_hopeless(one) for one in squeezed):
        return False
    said = words(answer), words(truth)
    if said[0] is not None and said[1] is not None:
        if said[0] == said[1]:
            return True
        if any(re.search('[a-z]{4}', one) or len(one) == 1 for one in said):
            return False
    elif 'A' <= (said[1] or said[0] or '') <= 'Z':  # a choice against something else
        other = answer if said[1] else truth
        letter = said[1] or said[0]
        return bool(re.fullmatch(rf'\(?{letter}\)?(?:[.):]?\s.*|[.):].*)?', other)) or None
    (a, unit_a), (b, unit_b) = split_unit(answer), split_unit(truth)
    one, two = number(a), number(b)
    if one is None or two is None:
        return None
    return same_measure(one, unit_a, two, unit_b)


def same_measure(a: Number, unit_a: str, b: Number, unit_b: str) -> bool:
    """Two numbers with units: a unit left out is right, another unit is wrong."""
    if not same_unit(unit_a, unit_b):
        return False
    if same_number(a, b):
        return True
    if (unit_a == '%') != (unit_b == '%'):
        percent, plain = (a, b) if unit_a == '%' else (b, a)
        return same_number(Number(percent.value / 100, True), plain)
    return False


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
