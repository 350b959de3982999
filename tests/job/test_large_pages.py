"""Commands run with large pages."""

import os
import subprocess
import sys

import pytest

from rstar_jax.job import large_pages
from tests.parallel.processes import REPOSITORY

CONFIG = f"""
import os
from rstar_jax import settings as configs

print('pages:', os.environ.get('{large_pages.TUNABLES}'))

def get_config():
    return configs.default()
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='glibc is of Linux')
@pytest.mark.parametrize('own', [None, 'glibc.malloc.hugetlb=0'])
def test_a_command_takes_large_pages_unless_told_otherwise(tmp_path, own):
    path = tmp_path / 'config.py'
    path.write_text(CONFIG)
    environment = {name: x for name, x in os.environ.items() if name != large_pages.TUNABLES}
    done = subprocess.run(
        [sys.executable, '-m', 'rstar_jax.main', f'--config={path}', '--help'],
        cwd=REPOSITORY,
        env=environment | ({large_pages.TUNABLES: own} if own else {}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert f'pages: {own or "glibc.malloc.hugetlb=1"}\n' in done.stdout
    assert '--config.search.rollouts' in done.stdout
