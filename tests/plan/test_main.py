"""What fits on this machine: counts of published models, and the table."""

import io

from rstar_jax.job import progress
from rstar_jax.models import published
from rstar_jax.plan import __main__ as fits


def test_bytes_of_a_published_model():
    shape = published.SHAPES['qwen2.5-coder-0.5b']
    half, whole = fits.needs(shape, 'bfloat16'), fits.needs(shape, 'float32')
    parameters = 494_032_768  # Qwen's model card: 0.49B
    assert half['search'] == 2 * parameters and whole['search'] == 4 * parameters
    assert half['training'] == 16 * parameters
    assert half['search with PPM'] == 2 * half['search']
    # Rank 16 beside the dense layers: 8,798,208 numbers. Merged, all is in float32.
    assert whole['LoRA'] == 4 * parameters + 16 * 8_798_208
    assert half['LoRA'] == 4 * (parameters + 8_798_208)


def rows_of(table) -> dict[str, str]:
    stream = io.StringIO()
    progress.show(table, stream=stream)
    lines = [line for line in stream.getvalue().splitlines() if line.strip()]
    return {line.split()[0]: line for line in lines}


def test_what_fits(capsys):
    rows = rows_of(fits.table(15.75e9, 'bfloat16'))
    assert rows['qwen2.5-math-7b'].split()[1::3] == ['no', 'no', 'no', 'no']
    assert rows['qwen2.5-math-1.5b'].split()[1::3] == ['fits', 'fits', 'fits', 'no']
    assert rows['qwen2.5-coder-0.5b'].split()[1::3] == ['fits', 'fits', 'fits', 'fits']
    tight = rows_of(fits.table(16e9, 'float32'))
    assert tight['qwen2.5-math-1.5b'].split()[1::3] == ['fits', 'fits', 'fits', 'no']
    tight = rows_of(fits.table(15e9, 'float32'))
    assert tight['qwen2.5-math-1.5b'].split()[1::3] == ['fits', 'no', 'fits', 'no']
    shared = rows_of(fits.table(15.75e9, 'bfloat16', 8))
    assert shared['qwen2.5-math-1.5b'].split()[1::3] == ['fits', 'fits', 'fits', 'fits']
    few, one = (rows_of(fits.table(15.75e9, 'bfloat16', n)) for n in (7, 1))
    assert few['qwen2.5-math-1.5b'] == one['qwen2.5-math-1.5b']  # its width of 1,536 is not cut
    shared = rows_of(fits.table(15.75e9, 'bfloat16', 12))
    assert shared['qwen2.5-math-7b'].split()[1::3][3] == 'no'  # 3,584 is cut in four
    assert fits.main() == 0 and 'CPU with' in capsys.readouterr().out
