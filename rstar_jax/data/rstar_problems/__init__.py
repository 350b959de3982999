"""The problem sets of `published.SETS` as tensorflow-datasets: tfds:rstar_problems/NAME."""
