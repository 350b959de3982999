"""Benches of execution and grading: the figures that others read are there and are meant."""

import pytest

from rstar_jax.bench import execution, grading
from rstar_jax.settings.errors import UserError


def test_figures_of_execution():
    figures = execution.run(execution.Settings(programs=4, workers=1, repeats=1))
    names = ('programs_per_second', 'p50_ms', 'p99_ms', 'sympy_per_second')
    assert all(figures[name] > 0 for name in names)
    assert figures['p50_ms'] <= figures['p99_ms']
    others = [
        value
        for name, value in figures.items()
        if name.endswith('_programs_per_second')  # not ours: it has no prefix
    ]
    assert figures['ratio_vs_bare_exec_pool'] == figures['programs_per_second'] / max(others)
    assert figures['branch_step_12_seconds'] > 1


def test_figures_of_grading(tmp_path):
    table = tmp_path / 'pairs.txt'
    table.write_text('# truth | same | other\n1/2 | 0.5 ;; \\sqrt{2} | 2 ;; x+1\n')
    figures = grading.run(grading.Settings(str(table), workers=1, repeats=1))
    assert (figures['pairs'], figures['precision'], figures['recall']) == (4, 1, 0.5)
    assert figures['pairs_per_second'] > 0
    with pytest.raises(UserError) as error:
        grading.run(grading.Settings(str(tmp_path / 'none')))
    assert error.value.argument == str(tmp_path / 'none')
