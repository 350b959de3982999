"""The problem sets of `problem_sets.SETS` as tensorflow-datasets: tfds:rstar_problems/NAME."""
