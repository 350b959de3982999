"""The bench of curation."""

from rstar_jax.bench import curate


def test_curate_measures_in_a_process_of_its_own():
    figures = curate.run(curate.Settings(trees=6, nodes=30))
    assert set(figures) == {'trees_per_second', 'peak_memory_mb'}
    assert figures['trees_per_second'] > 1
    assert 50 < figures['peak_memory_mb'] < 1000
