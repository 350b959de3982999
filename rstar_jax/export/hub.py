"""What was exported, onto the Hugging Face hub: first compared with transformers, then pushed."""

import importlib.util
import json
from collections.abc import Iterator, Sequence
from typing import Any

import huggingface_hub
import jax
import numpy as np
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from rstar_jax import models, steps
from rstar_jax.export import model_card
from rstar_jax.export.huggingface import SUFFIXES, Exported, mesh_for
from rstar_jax.job import atomic
from rstar_jax.models import heads
from rstar_jax.settings.errors import UserError, one_line

PROBE = 'Ann has 12 apples. Then Ann finds 7. How many apples are there?'
TOLERANCE = 1e-3  # of the largest logit: float32 through many layers, in another order


def repositories(made: Sequence[Exported], name: str) -> list[str]:
    """The name of each directory's repository.

    Raises:
      UserError: the hub has no such names.
    """
    alone = len(made) == 1 and made[0].kind != 'data'  # a model
    names = [name + ('' if alone else SUFFIXES[exported.kind]) for exported in made]
    for repository in names:
        try:
            validate_repo_id(repository)
        except HFValidationError as error:
            raise UserError('name', name, one_line(error, None), 'expected you/name') from None
    return names


def check(made: Sequence[Exported], *, whole: bool = True) -> Iterator[str]:
    """Checks what is to be pushed; yields a line for each thing checked.

    Args:
      whole: whether it is an error that torch, which transformers needs, is not installed.

    Raises:
      UserError: a card is not valid, or transformers gives other logits than we do.
    """
    for exported in made:
        model_card.check(exported.folder / 'README.md', exported.repository)
        yield f'{exported.folder}: card valid'
        if exported.kind == 'data':
            continue
        difference = largest_difference(exported)
        if difference is None:
            if whole:
                raise UserError(
                    str(exported.folder),
                    expected='not pushed: needs torch, to be compared with transformers',
                    remedy='pip install torch; hf upload pushes a folder unseen',
                )
            yield f'{exported.folder}: not compared with transformers, torch is not installed'
        elif not difference <= TOLERANCE:
            other = f'transformers gives other outputs, by {difference:.1e} of the largest'
            raise UserError(str(exported.folder), expected=f'{other}: nothing was pushed')
        else:
            yield f'{exported.folder}: transformers gives the same within {difference:.1e}'


def largest_difference(exported: Exported) -> float | None:
    """How far transformers' outputs are from ours, as a share of the largest of them.

    Of a policy the logits of a short text, of a PPM its score; in float32, one model after the
    other in memory. None where torch is not installed.
    """
    if importlib.util.find_spec('torch') is None:
        return None
    load = models.load if exported.kind == 'policy' else models.load_ppm
    theirs, tokens = _by_transformers(exported, steps.prompt(PROBE))
    with jax.default_matmul_precision('highest'):
        model = load(exported.folder, 'float32', mesh=mesh_for(exported.folder))
        lengths = np.array([tokens.shape[1]], np.int32)
        run = model.logits if exported.kind == 'policy' else model.scores
        ours = np.asarray(run(tokens, lengths), np.float32)
    # A model may have more rows than transformers' tokenizer has tokens, never other ones.
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def _by_transformers(exported: Exported, text: str) -> tuple[Any, Any]:
    """(what transformers computes, f32[1, T, V] or f32[1]; the tokens i32[1, T])."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    folder = str(exported.folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(text, return_tensors='pt')['input_ids']
    makers = {'policy': transformers.AutoModelForCausalLM, 'ppm': transformers.AutoModel}
    model = makers[exported.kind].from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        if exported.kind == 'policy':
            found = model(tokens).logits
        else:
            head = torch.load(exported.folder / 'value_head.bin', weights_only=True)
            hidden = model(tokens).last_hidden_state[:, -1]
            value = hidden @ head['v_head.summary.weight'].T + head['v_head.summary.bias']
            config = json.loads((exported.folder / 'config.json').read_text(encoding='utf-8'))
            found = torch.tensor(
                np.array(heads.squash(config['ppm_squash'], value[:, 0].numpy()), np.float32)
            )
    return found.numpy(), tokens.numpy().astype(np.int32)


def push(made: Sequence[Exported], name: str, *, private: bool = False) -> Iterator[str]:
    """Pushes what `huggingface.export` wrote; yields the address of each repository.

    Raises:
      UserError: the hub refused it, or cannot be reached.
    """
    interface = huggingface_hub.HfApi()
    for exported, repository in zip(made, repositories(made, name)):
        kind = exported.repository
        try:
            card = huggingface_hub.ModelCard if kind == 'model' else huggingface_hub.DatasetCard
            card.load(exported.folder / 'README.md').validate()
            interface.create_repo(repository, repo_type=kind, private=private, exist_ok=True)
            url = interface.upload_folder(
                repo_id=repository,
                folder_path=exported.folder,
                repo_type=kind,
                commit_message='Export of rstar_jax',
                # An earlier push's: readers would take its weights for these.
                delete_patterns='*',
                ignore_patterns=f'*{atomic.TEMPORARY}*',  # of an export that was killed
            )
        except Exception as error:  # network, authorisation, what the hub will not have
            raise UserError(
                'name',
                name,
                f'{repository} was not pushed ({one_line(error)})',
                'is HF_TOKEN set, or have you logged in with `hf auth login`?',
            ) from None
        yield str(url)


def listing(made: Sequence[Exported], name: str) -> Iterator[str]:
    """What a push would put where: repositories, files, sizes."""
    targets = repositories(made, name) if name else [str(exported.folder) for exported in made]
    for exported, target in zip(made, targets):
        files = sorted(path for path in exported.folder.rglob('*') if path.is_file())
        total = sum(path.stat().st_size for path in files)
        yield f'{exported.repository} {target}: {len(files)} files, {_size(total)}'
        for path in files:
            yield f'  {path.relative_to(exported.folder)}  {_size(path.stat().st_size)}'


def _size(count: float) -> str:
    for unit in ('bytes', 'kB', 'MB'):
        if count < 1000:
            return f'{count:.0f} {unit}'
        count /= 1000
    return f'{count:.1f} GB'
