"""Measurements: `python -m rstar_jax.bench NAME --json=FILE [--key=value ...]`.

Every module of this room is one bench, named like it. It has a docstring whose first line says what
is measured, and

    Settings                              a frozen dataclass of int, float, str and bool, each with
                                          a default; `--key=value` sets one
    run(settings) -> dict[str, float]     the figures by their names

The command prints the table and writes `{"bench", "device", "settings", "figures"}`. A bench must
be able to finish at its defaults on a laptop; modules whose names begin with `_` are what one of
them compares with.
"""
