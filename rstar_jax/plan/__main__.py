"""What fits on this machine: python -m rstar_jax.plan."""

import sys

from rstar_jax.job import command
from rstar_jax.plan import fits

if __name__ == '__main__':
    sys.exit(command.guarded(lambda: fits.main(sys.argv[1:])))
