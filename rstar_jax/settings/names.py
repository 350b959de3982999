"""Names that people write, of settings, stages, strategies, and those that they may have meant."""

import difflib
from collections.abc import Sequence

from rstar_jax.settings.errors import UserError
from rstar_jax.settings.former import MOVED
from rstar_jax.settings.table import ABLATIONS, STAGES, STRATEGIES


def nearest(key: str, known: Sequence[str]) -> str | None:
    """The known key most like `key`; a wrong section counts less than a wrong name."""
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if close:
        return close[0]
    by_name = {name.rpartition('.')[2]: name for name in known}
    close = difflib.get_close_matches(key.rpartition('.')[2], list(by_name), n=1, cutoff=0.7)
    return by_name[close[0]] if close else None


def unknown(key: str, known: Sequence[str], shown: str) -> UserError:
    """The error of a setting that there is not; shown: what it is called there."""
    prefix = '--config.' if shown.startswith('--') else 'config.'
    if key in MOVED:
        remedy = f'it is {prefix}{MOVED[key]} now'
        return UserError(shown, expected='no such setting', remedy=remedy)
    found = nearest(key, known)
    remedy = f'did you mean {prefix}{found}?' if found else 'see --help for all'
    return UserError(shown, expected='no such setting', remedy=remedy)


def stages_of(text: str, flag: str = '--stages') -> tuple[str, ...]:
    """'search,curate' -> ('search', 'curate'), in the order in which they run."""
    asked = _names(text, STAGES, flag, 'stage')
    return tuple(name for name in STAGES if name in asked)


def groups_of(text: str) -> tuple[str, ...]:
    """The groups of the ablations; empty: all."""
    flag = 'ablations.groups'
    return _names(text, ABLATIONS, flag, 'group') if text else ABLATIONS


def strategies_of(text: str) -> tuple[str, ...]:
    """The strategies of an evaluation, in the order in which they are given."""
    return _names(text, STRATEGIES, 'eval.strategies', 'strategy')


def _names(text: str, known: Sequence[str], flag: str, what: str) -> tuple[str, ...]:
    asked = tuple(name.strip() for name in text.split(',') if name.strip())
    for name in asked:
        if name not in known:
            close = nearest(name, known)
            remedy = f'did you mean {close}?' if close else f'there are {", ".join(known)}'
            raise UserError(flag, text, f'no {what} {name}', remedy)
    if not asked:
        raise UserError(flag, text, f'needs at least one of {", ".join(known)}')
    return asked
