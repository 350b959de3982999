"""What a program may use, what came of it, and how its output is shown."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from rstar_jax.settings.errors import UserError

OUTPUT_CHARS = 1024
_CUT = '...'
_FLOAT = re.compile(r'[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?')


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    Attributes:
      seconds: time of a processor (on Linux), so that a busy machine does not change what comes of
        a program; by the clock five times as much, or 20 more, and no more of it than `seconds` for
        one that sleeps.
      memory_mb: address space in MiB beyond what the warm interpreter already has.
      printed_chars: characters (bytes of UTF-8) printed before the program is ended (the output
        shown is shorter, see `format_output`).
      scratch_mb: MiB of files in the scratch folder.
      open_files: open descriptors.
    """

    seconds: float = 10.0
    memory_mb: int = 1024
    printed_chars: int = 1_000_000
    scratch_mb: int = 8
    open_files: int = 32

    def __post_init__(self) -> None:
        for name, least in (
            ('seconds', 0),
            ('memory_mb', 0),
            ('printed_chars', 0),
            ('scratch_mb', -1),
            ('open_files', 7),
        ):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not value > least:
                raise UserError(name, value, f'needs a number above {least}')


@dataclass(frozen=True)
class Result:
    """What came of one program.

    Attributes:
      ok: every cell ran to its end within the limits.
      output: what the last cell printed, as `format_output` shows it.
      error: '' or one line, `TypeOfError: message`.
      seconds: wall time from the start of the first cell.
    """

    ok: bool
    output: str
    error: str
    seconds: float


def format_output(text: str) -> str:
    """The executor's output as the step language shows it (`<output>` blocks).

    Surrounding white space is stripped; an output that is one float is rounded to 4 decimals where
    that is shorter; over 1,024 characters the middle is cut out.
    """
    text = text.strip()
    if _FLOAT.fullmatch(text) and math.isfinite(float(text)):
        rounded = str(round(float(text), 4))
        if len(rounded) < len(text):
            text = rounded
    if len(text) > OUTPUT_CHARS:
        half = (OUTPUT_CHARS - len(_CUT)) // 2
        text = text[:half] + _CUT + text[-half:]
    return text
