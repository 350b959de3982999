"""Files that are whole or absent, and what is on the disk when something says that it is."""

import errno
import os

import pytest

from rstar_jax import models
from rstar_jax.job import atomic
from rstar_jax.models import tiny


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / 'new' / 'a.json'
    atomic.write_json(path, {'a': 'é'})
    with pytest.raises(ZeroDivisionError), atomic.replacing(path) as temporary:
        temporary.write_text('half')
        raise ZeroDivisionError
    assert path.read_bytes() == b'{"a": "\\u00e9"}\n'
    atomic.write_json(path, {'a': 'é'}, 1, ensure_ascii=False)
    assert path.read_bytes() == '{\n "a": "é"\n}\n'.encode()
    assert list(path.parent.iterdir()) == [path]


def test_file_systems_that_cannot_flush_folders_are_written_to(tmp_path, monkeypatch):
    def failing(number):
        def fsync(descriptor):
            raise OSError(number, os.strerror(number))

        return fsync

    monkeypatch.setattr(os, 'fsync', failing(errno.EINVAL))
    atomic.write_text(tmp_path / 'a', 'text')
    monkeypatch.setattr(os, 'fsync', failing(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        atomic.write_text(tmp_path / 'a', 'other')
    assert (tmp_path / 'a').read_text() == 'text'


def test_a_model_is_on_the_disk_before_its_config_says_so(tmp_path, monkeypatch):
    told, sync = {}, atomic.sync

    def noting(path):
        sync(path)
        told[path.name] = (tmp_path / 'config.json').exists()

    monkeypatch.setattr(atomic, 'sync', noting)
    models.save(tiny.policy(['print(1)\n x'], num_layers=1), tmp_path)
    names = {path.name for path in tmp_path.iterdir()} - {'config.json'}
    assert {'model.safetensors', 'tokenizer.json', 'generation_config.json'} <= names
    assert not any(told[name] for name in names)
