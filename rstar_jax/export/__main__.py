"""The command of `rstar_jax.export`: python -m rstar_jax.export CHECKPOINT DIR."""

from rstar_jax.export.huggingface import main
from rstar_jax.job.interrupts import leave

if __name__ == '__main__':
    if code := main():
        leave(code)
