"""Settings of all tests: eight fake CPU devices, no network, and the data shared by developers."""

import os
import pathlib

os.environ['JAX_PLATFORMS'] = 'cpu'
_FLAG = '--xla_force_host_platform_device_count=8'
if _FLAG not in os.environ.get('XLA_FLAGS', ''):
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {_FLAG}'.strip()
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope='session')
def shared() -> pathlib.Path:
    """Folder with problem sets and models that are not part of the project ($RSTAR_SHARED)."""
    folder = pathlib.Path(os.environ.get('RSTAR_SHARED', REPOSITORY.parent / 'shared'))
    if not folder.is_dir():
        pytest.skip(f'no shared data at {folder} (set RSTAR_SHARED)')
    return folder
