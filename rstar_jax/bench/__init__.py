"""Measurements: `python -m rstar_jax.bench NAME --json=FILE [--key=value ...]`.

Every module of this package is one bench, named like it. A bench module has a docstring whose
first line says what is measured, and a function

    def run(*, key=default, ...) -> dict[str, float]

whose keyword arguments are the bench's settings (int, float, str or bool, typed by their default;
`--key=value` sets one) and whose result maps the names of the figures to numbers. The dispatcher
prints the table and writes `{"bench", "device", "settings", "figures"}`. A bench must be able to
finish at its defaults on a laptop; modules whose name begins with `_` are helpers.
"""
