"""One LaTeX-like spelling for the many in which an answer can be written; `plain` compares them."""

from __future__ import annotations

import re
import unicodedata

_UNICODE = {
    '−': '-', '–': '-', '—': '-', '×': r'\times ', '·': r'\cdot ', '÷': '/', '∗': '*', 'π': r'\pi ',
    '√': r'\sqrt ', '∞': r'\infty ', '≤': r'\le ', '≥': r'\ge ', '≠': r'\ne ', '∪': r'\cup ',
    '∩': r'\cap ', '∈': r'\in ', '±': r'\pm ', '°': r'^\circ ', '′': "'", 'θ': r'\theta ',
    'α': r'\alpha ', 'β': r'\beta ', 'γ': r'\gamma ', 'φ': r'\phi ', 'λ': r'\lambda ',
    'ω': r'\omega ', '∅': r'\emptyset ', '∖': r'\setminus ', 'ℝ': r'\mathbb{R}', '“': '"',
    '”': '"', '’': "'", '≈': r'\approx ', '⁄': '/', '≡': r'\equiv ', '¢': r'\text{cent}',
}  # fmt: skip
_FRACTION_CHAR = re.compile('[¼-¾⅐-⅞]')
_RAISED = '⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺', '0123456789-+'
_FUNCTIONS = {
    'sqrt': r'\sqrt', 'sin': r'\sin', 'cos': r'\cos', 'tan': r'\tan', 'cot': r'\cot',
    'sec': r'\sec', 'csc': r'\csc', 'log': r'\ln', 'ln': r'\ln', 'exp': r'\exp',
    'arcsin': r'\arcsin', 'arccos': r'\arccos', 'arctan': r'\arctan', 'asin': r'\arcsin',
    'acos': r'\arccos', 'atan': r'\arctan', 'sinh': r'\sinh', 'cosh': r'\cosh', 'tanh': r'\tanh',
}  # fmt: skip
# Calls as they are written: before, between and after their arguments.
_CALLS = {
    r'\sqrt': (r'\sqrt{', '}'), r'\cbrt': (r'\cbrt{', '}'), '^': ('^{', '}'), 'abs': ('|', '|'),
    'Abs': ('|', '|'), 'factorial': ('(', ')!'), 'floor': (r'\lfloor ', r'\rfloor '),
    'ceiling': (r'\lceil ', r'\rceil '), 'binomial': (r'\binom{', '}{', '}'),
    'Rational': (r'\frac{', '}{', '}'), 'Fraction': (r'\frac{', '}{', '}'), 'Eq': ('', '=', ''),
    r'\ln': (r'\frac{\ln(', r')}{\ln(', ')}'),
}  # fmt: skip
_CALLED = re.compile(rf'(?:(?<![\\a-zA-Z])|(?=[\\^]))({"|".join(map(re.escape, _CALLS))})\s*\(')
_NAMES = {
    'pi': r'\pi', 'infinity': r'\infty', 'inf': r'\infty', 'oo': r'\infty', 'theta': r'\theta',
    'alpha': r'\alpha', 'beta': r'\beta', 'gamma': r'\gamma', 'lambda': r'\lambda', 'phi': r'\phi',
}  # fmt: skip
_SCALES = {'hundred': 2, 'thousand': 3, 'million': 6, 'billion': 9, 'trillion': 12}
_SCALED = re.compile(rf'(?<=\d)\s*(\\text\{{)?\s*({"|".join(_SCALES)})s?(?![a-z])\s*')
_SMALL = [
    'zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten', 'eleven',
    'twelve', 'thirteen', 'fourteen', 'fifteen', 'sixteen', 'seventeen', 'eighteen', 'nineteen',
]  # fmt: skip
_TENS = ['twenty', 'thirty', 'forty', 'fifty', 'sixty', 'seventy', 'eighty', 'ninety']
_TEXT = (
    r'\\(?:text|mbox|textbf|textit|textrm|mathrm|mathbf|mathit|operatorname|rm|bf|hbox|emph|'
    r'boldsymbol|bm|underline)'
)
_WORDS = ('\\text', '\\mbox')
_COLOR = re.compile(r'\\(?:text)?color\s*\{\w+\}')
_PER = re.compile(  # \text{km} / h
    r'(?<=[\d\s}])\\text\{([A-Za-z ]+)\}\s*/\s*'
    r'(?:\\text\{([A-Za-z ]+)\}|([A-Za-z]{1,3})(?![A-Za-z]))'
)
_UNIT_FRACTION = re.compile(  # 30 \frac{\text{km}}{\text{h}}
    r'(?<=[\d\s}])\\frac\{\s*(\\text\{[A-Za-z ]+\})\s*\}'
    r'\{\s*((?:\\text\{[A-Za-z ]+\}|[A-Za-z]{1,3})\s*(?:\^\s*\{?\d\}?)?)\s*\}'
)
_BASE = re.compile(r'_\{?\s*(?:\\text\{(\w+)\}|\((\d+)\)|(?<=\{)([a-z]+))\s*\}?')
_DOTTED = re.compile(r'(?<=\.)(\d*)(\\dot\s*(?:\{\d\}|\d)(?:\d*\\dot\s*(?:\{\d\}|\d))*)')
_TIMES = re.compile(r'(?<![\w.^])([\d.]+)\s*[xX]\s*(?=10\s*\^)')
_CHOOSE = re.compile(r'(?<![a-zA-Z}])\{((?:(?!\\choose)[^{}])*)\\choose(?![a-z])([^{}]*)\}')
_REALS = re.compile(r'(?:\\text\{)?(?:the )?(?:set of )?all real(?:s| numbers?)\}?', re.IGNORECASE)
_INLINE = re.compile(r'(?<!\\)\$(?=\S)([^$]*[^$\s\\])\$(?!\d)')  # $6$ cm, but not $5,$6
_CASES = re.compile(
    r'(?:\\begin\{cases\}|\\\{\s*\\begin\{array\}\{\w*\})([^&]*=[^&]*)\\end\{(?:cases|array)\}\s*\.?'
)
_WRAPPED = re.compile(rf'(?:{_TEXT}|{_COLOR.pattern})\s*\{{([^{{}}]*\{{.*)\}}', re.DOTALL)
_NOTHING = re.compile(r'(?:\\text\{)?(?:no solutions?|empty set)\.?\}?', re.IGNORECASE)
_LETTERS = re.compile(r'\\text\{([A-J](?:(?:, ?(?:and )?| and )[A-J])+)\}')  # \text{A, B and C}
_ORDINAL = re.compile(r'(?<=\d)(?:st|nd|rd|th|\^\{(?:\\text\{)?(?:st|nd|rd|th)\}{1,2})$')
_SIGN = re.compile(r'[<>]|\\(?:le|ge)(?![a-z])')
_RATIO = re.compile(r'(\d+)\s*(?:\\text\{to\}|to)\s*(\d+)')
_TEMPERATURE = re.compile(r'(\\text\{deg)\}\s*(?:\\text\{)?([CF])\}?\s*$')
_FOR_INTEGERS = re.compile(  # k\pi, k \in \mathbb{Z}
    r'(?:\\text\{(?:where|for|with)\}|\()?\s?\b([a-z])\s?\\in\s?(?:\\mathbb\{[ZN]\}|[ZN])\s?\)?$'
)
# What sympy prints: Interval.open(0, sqrt(2)), Union(...), (-2 < x) & (x <= 3), ... | ...
_END = r'((?:[^(),<>=&|]|\([^()]*\))+?)'
_INTERVAL = re.compile(rf'Interval(?:\.(open|Lopen|Ropen))?\({_END}, {_END}\)')
_BETWEEN = re.compile(rf'\(?\({_END} (<=?) ([a-z])\) & \(\3 (<=?) {_END}\)\)?')
_DICT = re.compile(r'\[?\{[A-Za-z]\w*: [^:<>=|{}]+(?:, [A-Za-z]\w*: [^:<>=|{}]+)*\}\]?')
_UNITED = re.compile(r'(?<=[)\]])\s*U\s*(?=[(\[])')  # (0, 9) U (9, 36)
# What numpy prints: [1 -2], array([1, -2]), [np.float64(1.5)].
_ARRAY = re.compile(r'(?:(?:np|numpy)\.)?array\((\[.*\])\)', re.DOTALL)
_NO_COMMAS = re.compile(r'\[[-+\d.e\s\[\]]*\]')
_SCALAR = re.compile(r'(?:np|numpy)\.(?:float|int|uint)\d+\(([^()]*)\)')
_ROOT = re.compile(r'√\s*(\d+(?:\.\d+)?)')
_SPACES = re.compile(r'\\[,;:! ]|\\q?quad(?![a-zA-Z])|(?<!\\)~|\\(?:hspace|phantom)\{[^{}]*\}')
_COMPLEX = re.compile(r'(\(?-?[\d.]+[-+][\d.]+)j(\)?)')
_TAKES = re.compile(r'\\(?:frac|binom|mathbb)(?![a-zA-Z])|\\sqrt(?![a-zA-Z])(\s*\[[^\]]*\])?')
_ATOM = re.compile(r'\\[a-zA-Z]+|.')
_GROUPED = re.compile(r'(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d|,\d)')
_SPACED = re.compile(r'(?<![\d.^_])\d{1,3}(?: \d{3})+(?![\d/])')
_DEGREES = r'\s*(?:\^\s*\{?\s*\\(?:circ|degree)(?![a-z])\s*\}?|\\degree(?![a-z]))'
_ANGLE = re.compile(
    r'(\\?(?:sin|cos|tan|cot|sec|csc)(?:\s*\^\s*(?:\d|\{\d\}))?)\s*'
    rf'(?:\(\s*([\d.]+){_DEGREES}\s*\)|\{{\s*([\d.]+){_DEGREES}\s*\}}|([\d.]+){_DEGREES})'
)
_BUILT = re.compile(  # {x | -1 < x < 2}
    r'\\?\{\s*([A-Za-z])\s*(?:\\in\s*\\mathbb\{R\}\s*)?[|:]\s*'
    r'(?=.*(?:[<>]|\\(?:le|ge|ne|lt|gt)(?![a-z])))(?=.*\1)([^{}]*(?:\{[^{}]*\}[^{}]*)*)(?<!\\)\\?\}'
)


def clean(raw: object) -> str:
    """One spelling for many: spaces, fractions, roots, signs, Unicode, delimiters of math mode."""
    text = unicodedata.normalize('NFC', str(raw)).strip()
    text = _FRACTION_CHAR.sub(_fraction, _ROOT.sub(r'\\sqrt{\1}', text))
    text = re.sub(f'[{_RAISED[0]}]+', _power, text)
    for char, replacement in _UNICODE.items():
        if char in text:
            text = text.replace(char, replacement)
    text = _COLOR.sub('', _bare(unbox(_unwrap_math(text))))
    text = _INLINE.sub(r'\1', text)
    text = _printed_sets(text)
    text = text.replace('\\\\', '\x00')  # the row separator of matrices
    text = re.sub(r'(?<=\d),\\!\s*(?=\d)|(?<=\d)\\!\s*,\s*(?=\d)|(?<=\d)\{,\}(?=\d)', ',', text)
    text = _SPACES.sub(' ', text).replace('\\displaystyle', ' ')
    text = re.sub(r'\\(?:left|right|bigl?|bigr?|Bigl?|Bigr?)(?=[\s()\[\]|\\.{}])', '', text)
    text = re.sub(r'\\[dtc](frac|binom)(?![a-z])', r'\\\1', text)
    text = re.sub(r'\\(?:leqslant|leq)(?![a-z])', r'\\le ', text)
    text = re.sub(r'\\(?:geqslant|geq)(?![a-z])', r'\\ge ', text)
    text = text.replace('<=', r'\le ').replace('>=', r'\ge ')
    text = re.sub(r'\\(?:varnothing|O)(?![a-z])', r'\\emptyset', text)
    text = text.replace('\\lbrace', '\\{').replace('\\rbrace', '\\}')
    text = re.sub(r'\\(?:lvert|rvert|vert|mid)(?![a-z])', '|', text)
    text = re.sub(r'\\(?:ast|star)(?![a-z])', '*', text).replace('**', '^')
    text = re.sub(r'\\langle(?![a-z])', '(', re.sub(r'\\rangle(?![a-z])', ')', text))
    text = re.sub(r'\\lg(?![a-z])', r'\\log_{10}', re.sub(r'\\colon(?![a-z])', ':', text))
    text = re.sub(r'\\cents?(?![a-z])', r'\\text{cent}', _CHOOSE.sub(r'\\binom{\1}{\2}', text))
    text = _DOTTED.sub(lambda m: rf'{m[1]}\overline{{{re.sub(r"[^0-9]", "", m[2])}}}', text)
    text = re.sub(r'^\s*\\approx(?![a-z])', '', re.sub(r'\\\{\s*\\\}', r'\\emptyset', text))
    text = _ANGLE.sub(lambda m: rf'{m[1]}(\frac{{{m[2] or m[3] or m[4]}\pi}}{{180}})', text)
    text = re.sub(_DEGREES, r' \\text{deg}', text)
    text = re.sub(rf'{_TEXT}\s*\{{([^{{}}]*)\}}', _text, text)
    text = _TEMPERATURE.sub(r'\1 \2}', _LETTERS.sub(_listed, text))
    text = _PER.sub(r'\\text{\1/\2\3}', _UNIT_FRACTION.sub(r'\1/\2', text))
    text = _TIMES.sub(r'\1\\times ', _BASE.sub(_base, text))
    text = re.sub(r'^\\text\{([^{}]*\d[^{}]*)\}$', r'\1', text.strip())
    text = re.sub(r'(?:(?<=[\d)}])\s+|,\s*)(and|or)\s+(?=[-\d\\(a-z])', _joined, text)
    text = _SCALED.sub(lambda match: rf'\times 10^{{{_SCALES[match[2]]}}} {match[1] or ""}', text)
    text = _functions(text.replace('\\text{}', ''))
    text = _GROUPED.sub(lambda match: match[0].replace(',', ''), text) if _scalar(text) else text
    text = _arguments(re.sub(r'\s+', ' ', text).strip())
    text = _SPACED.sub(lambda match: match[0].replace(' ', ''), text)
    if text.endswith('.') and not text.endswith('..'):
        text = text[:-1].strip()
    text = _BUILT.sub(r'\2', text) if _BUILT.fullmatch(text) else text
    text = _REALS.sub(r'\\mathbb{R}', text) if _REALS.fullmatch(text) else text
    if found := _CASES.fullmatch(text):
        text = ', '.join(found[1].split('\x00'))
    text = r'\emptyset' if _NOTHING.fullmatch(text) else _ORDINAL.sub('', text)
    text = _RATIO.sub(r'\1:\2', text) if _RATIO.fullmatch(text) else text
    if (found := _FOR_INTEGERS.search(text)) and found[1] in text[: found.start()]:
        text = text[: found.start()].rstrip(' ,')
    return _spelled(text) or text.replace('\x00', '\\\\').strip()


def _bare(text: str) -> str:
    """The content of `\\mathbf{\\frac{1}{2}}` and its like, where that is the whole text."""
    for _ in range(2):
        match = _WRAPPED.fullmatch(text)
        if match and closing(text, match.start(1) - 1) == len(text) - 1:
            text = match[1]
    return text


def _listed(match: re.Match) -> str:
    return ', '.join(re.findall('[A-J]', match[0]))


def _printed_sets(text: str) -> str:
    """Intervals and unions as they are written, for what sympy prints."""

    def interval(match):
        kind, low, high = match.groups()
        left = '(' if kind in ('open', 'Lopen') or low.endswith('oo') else '['
        return f'{left}{low}, {high}{")" if kind in ("open", "Ropen") or high == "oo" else "]"}'

    def between(match):
        low, left, _, right, high = match.groups()
        return f'{"(" if left == "<" else "["}{low}, {high}{")" if right == "<" else "]"}'

    text = _UNITED.sub(r' \\cup ', _SCALAR.sub(r'\1', text))
    text = match[1] if (match := _ARRAY.fullmatch(text)) else text
    if _NO_COMMAS.fullmatch(text):
        text = re.sub(r'(?<=[\d.\]])\s+(?=[-+.\d\[])', ', ', text)
    found = _BETWEEN.sub(between, _INTERVAL.sub(interval, text))
    union = re.fullmatch(r'Union\((.*)\)', found)
    if union or found != text:
        found = re.sub(
            r'(?<=[)\]}])(?:, | \| )(?=[(\[{])', r' \\cup ', union[1] if union else found
        )
    if _DICT.fullmatch(found):
        return re.sub(r'(\w): ', r'\1 = ', found.strip('[{}]'))
    if found in ('EmptySet', 'set()', '[]', '{}'):
        return r'\emptyset'
    return {'Reals': r'\mathbb{R}'}.get(found, found)


def _fraction(match: re.Match) -> str:
    top, bottom = unicodedata.normalize('NFKD', match[0]).split('⁄')
    return rf'\frac{{{top}}}{{{bottom}}}'


def _power(match: re.Match) -> str:
    return f'^{{{match[0].translate(str.maketrans(*_RAISED))}}}'


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
        return _joined(match)
    if re.fullmatch(r'\\?[$£€%]', inside):
        return inside
    before = match.string[: match.start()].rstrip()
    unit = match[1][:1].isspace() or (inside in 'mgshL' and before[-1:].isdigit())  # 5 \mathrm{~m}
    if re.fullmatch('[A-Za-z]', inside) and not unit and not match[0].startswith(_WORDS):
        return f' {inside} '
    return rf'\text{{{inside}}}' if inside else ' '


def _joined(match: re.Match) -> str:
    """A comma for 'and' and 'or', but between inequalities, of which they make different sets."""
    return rf' \l{match[1].strip().lower()} ' if _SIGN.search(match.string) else ', '


def _base(match: re.Match) -> str:
    """1011_{\\text{two}} as 1011_{2}."""
    base = match[1] or match[2] or match[3]
    base = base if base.isdigit() else _spelled(base)
    return f'_{{{base}}}' if base else match[0]


def _spelled(text: str) -> str:
    """'18' for 'eighteen', '1205' for 'one thousand two hundred and five'; '' for other texts."""
    words = text.removeprefix('\\text{').removesuffix('}').lower().replace('-', ' ').split()
    if words == ['zero']:
        return '0'
    total, part, scale = 0, 0, 15  # part: what is below the scale that comes next
    for index, word in enumerate(words):
        small, rest = word in _SMALL and _SMALL.index(word), part % 100
        if small and (not rest or (small < 10 and rest > 19 and not rest % 10)):
            part += small
        elif word in _TENS and not rest:
            part += 10 * (2 + _TENS.index(word))
        elif word == 'hundred' and 0 < part < 100:
            part *= 100
        elif 2 < _SCALES.get(word, 0) < scale and part:
            scale = _SCALES[word]
            total, part = total + part * 10**scale, 0
        elif word != 'and' or not index or words[index - 1] not in _SCALES or words[-1] == word:
            return ''
    return str(total + part or '')


def _scalar(text: str) -> bool:
    return not re.match(r'[(\[]|\\\{|\\begin', text.strip()) or not re.search(r',', text)


def _functions(text: str) -> str:
    """sqrt(2), pi, 3*x, x^(-2), -1+2j as LaTeX; log is Python's, the natural one."""
    text = _COMPLEX.sub(r'\1i\2', text) if _COMPLEX.fullmatch(text.strip()) else text
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
    text = re.sub(r'\^\s*(-(?:[\d.]*\d|[a-zA-Z]))', r'^{\1}', text)
    ends, chars = _closings(text, '([{', ')]}'), list(text)
    for start in _CALLED.finditer(text):
        found = ends.get(start.end() - 1)
        if found is None:
            break
        first, *others = _CALLS[start[1]]
        if len(others) > 1 and len(found) != len(others):
            continue
        chars[start.start() : start.end()] = [first] + [''] * (len(start[0]) - 1)
        for index, other in zip(found[-len(others) :], others, strict=True):
            chars[index] = other
    return re.sub(r'\s*\*\s*', r'\\cdot ', ''.join(chars))


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


def _closings(text: str, opening: str, closing: str) -> dict[int, list[int]]:
    """Of each bracket that is closed: its commas (not those in others), its end; in one pass."""
    ends, open_ = {}, []
    for index, char in enumerate(text):
        if char in opening:
            open_.append((index, []))
        elif char == ',' and open_:
            open_[-1][1].append(index)
        elif char in closing and open_:
            start, commas = open_.pop()
            ends[start] = [*commas, index]
    return ends


def _arguments(text: str) -> str:
    """Braces around the bare arguments of `\\frac` and `\\sqrt`, and the spaces before them away."""  # noqa: E501
    ends = _closings(text, '{', '}')
    out, index, wanted = [], 0, 0
    inside: list[tuple[int, int]] = []  # of an argument in braces: its end, how many follow it
    while index < len(text):
        char = text[index]
        if wanted and char == ' ':
            index += 1
        elif wanted and char == '{' and index in ends:
            inside.append((ends[index][-1], wanted - 1))
            out.append(char)
            index, wanted = index + 1, 0
            while text[index] == ' ':
                index += 1
        elif wanted and char not in '{)]},\x00':
            atom = _ATOM.match(text, index)[0]
            out.append(f'{{{atom}}}')
            index, wanted = index + len(atom), wanted - 1
        elif inside and index == inside[-1][0]:
            while out[-1] == ' ':
                out.pop()
            out.append(char)
            index, wanted = index + 1, inside.pop()[1]
        elif match := _TAKES.match(text, index, inside[-1][0] if inside else len(text)):
            out.append(re.sub(r'\s', '', match[0]))
            index, wanted = match.end(), 2 if match[0] in ('\\frac', '\\binom') else 1
        else:
            out.append(char)
            index, wanted = index + 1, 0
    return ''.join(out)
