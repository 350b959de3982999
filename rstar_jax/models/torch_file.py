"""Reading and writing small torch files (`value_head.bin`) without torch.

A torch file is a zip archive: `*/data.pkl`, a pickle that names tensors' storages, and one file of
raw bytes per storage. The pickle is read by an unpickler that knows the few names of tensors and
nothing else, so that a file cannot run code.
"""

import collections
import io
import pathlib
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np

from rstar_jax.job import atomic
from rstar_jax.settings.errors import UserError

STORAGES = {
    'FloatStorage': np.dtype(np.float32),
    'DoubleStorage': np.dtype(np.float64),
    'HalfStorage': np.dtype(np.float16),
    'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
}


def load(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a torch file that holds one dict of tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = next(name for name in archive.namelist() if name.endswith('data.pkl'))
            tensors = _Unpickler(archive, pickled).load()
        return {str(name): np.asarray(tensor) for name, tensor in tensors.items()}
    except (
        zipfile.BadZipFile,
        pickle.UnpicklingError,
        StopIteration,
        KeyError,
        ValueError,
        AttributeError,
        EOFError,
        OSError,
        NotImplementedError,  # what zipfile makes of a damaged header
    ) as error:
        expected = f'expected a torch file with a dict of tensors ({error})'
        raise UserError(str(path), expected=expected) from None


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, pickled: str):
        super().__init__(io.BytesIO(archive.read(pickled)))
        self._archive = archive
        self._folder = pickled.removesuffix('data.pkl')

    def find_class(self, module, name):
        if (module, name) == ('collections', 'OrderedDict'):
            return collections.OrderedDict
        if module == 'torch._utils' and name == '_rebuild_tensor_v2':
            return _tensor
        if module == 'torch._utils' and name == '_rebuild_parameter':
            return lambda data, *_: data
        if module == 'torch' and name in STORAGES:
            return STORAGES[name]
        raise pickle.UnpicklingError(f'{module}.{name} is no part of a tensor')

    def persistent_load(self, pid):
        _, dtype, key, _, count = pid
        data = self._archive.read(f'{self._folder}data/{key}')
        return np.frombuffer(data, dtype, count)


def _tensor(storage, offset, size, stride, *_):
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if min((offset, *stride)) < 0 or last >= storage.size:
        raise ValueError('a tensor reaches beyond its storage')
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], tuple(size), strides).copy()


def save(tensors: dict[str, np.ndarray], path: pathlib.Path) -> None:
    """Writes float32 tensors as a torch file, readable by torch.load(weights_only=True)."""
    body = [pickle.PROTO + b'\x02', pickle.EMPTY_DICT, pickle.MARK]
    for key, (name, tensor) in enumerate(tensors.items()):
        strides = [step // tensor.itemsize for step in np.ascontiguousarray(tensor).strides]
        body += [
            _text(name),
            pickle.GLOBAL + b'torch._utils\n_rebuild_tensor_v2\n',
            pickle.MARK,
            *(pickle.MARK, _text('storage'), pickle.GLOBAL + b'torch\nFloatStorage\n'),
            *(_text(str(key)), _text('cpu'), _integer(tensor.size), pickle.TUPLE),
            pickle.BINPERSID,
            _integer(0),
            *(pickle.MARK, *map(_integer, tensor.shape), pickle.TUPLE),
            *(pickle.MARK, *map(_integer, strides), pickle.TUPLE),
            pickle.NEWFALSE,
            pickle.GLOBAL + b'collections\nOrderedDict\n' + pickle.EMPTY_TUPLE + pickle.REDUCE,
            pickle.TUPLE,
            pickle.REDUCE,
        ]
    body += [pickle.SETITEMS, pickle.STOP]
    with atomic.replacing(path) as temporary, zipfile.ZipFile(temporary, 'w') as archive:
        archive.writestr('archive/data.pkl', b''.join(body))
        archive.writestr('archive/byteorder', 'little')
        for key, tensor in enumerate(tensors.values()):
            archive.writestr(f'archive/data/{key}', np.asarray(tensor, '<f4').tobytes())
        archive.writestr('archive/version', '3\n')


def _text(text: str) -> bytes:
    data = text.encode()
    return pickle.BINUNICODE + struct.pack('<I', len(data)) + data


def _integer(value: int) -> bytes:
    return pickle.BININT + struct.pack('<i', value)
