"""Settings of the trainings, and the losses that there are."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from rstar_jax.errors import UserError

# A PPM's losses: what each learns from (data.load_examples), and the encoder.
LOSSES = {
    'pairwise': ('pairs', 'pairs'),
    'orm': ('trajectories', 'outcomes'),
    'pqm': ('trajectories', 'q_values'),
    'prm': ('trajectories', 'step_labels'),
}

HEADS = ('random', 'fitted')
HEAD_MOST = 8192  # pairs or trajectories that a head is fitted to, by chance


def settings(kind: str, given: Mapping[str, Any] | None = None) -> ConfigDict:
    """The settings of one training: its defaults, changed by what is given.

    Args:
      kind: 'sft' or 'bootstrap', as of `default_sft`; 'ppm', as of `default_ppm`.
      given: some of them, or a config's whole section.

    Raises:
      UserError: there is no such setting.
    """
    made = {'bootstrap': default_sft, 'sft': default_sft, 'ppm': default_ppm}[kind]()
    for key in given or ():
        if key not in made:
            raise UserError(f'{key}: no setting of {kind}: expected one of {", ".join(made)}')
    made.update(given or {})
    return made


def default_sft() -> ConfigDict:
    """The paper's SFT.

    marks: 'tokens', the marks of the step language that the policy does not know become tokens of
    its vocabulary (paper), or 'text', they stay text. marks_rate: learning rate of new tokens'
    rows, as a share of the root mean square of their table (embedding, output). held_out: share of
    the problems whose examples are not trained on but measured, fit.HELD_OUT problems at most.
    form: least share of the places where a mark is due in which it has to be the likeliest token
    after the training, for each mark that a policy writes itself.
    """
    return _default(
        epochs=2,
        batch_size=128,
        length=4096,
        micro_batch=1,
        marks='tokens',
        marks_rate=0.05,
        held_out=0.05,
        form=0.5,
    )


def default_ppm() -> ConfigDict:
    """The paper's PPM training.

    loss: pairwise (PPM), orm, pqm or prm; see losses.py. squash: 'tanh' in training and use
    (paper), or 'tanh5', tanh(r / 5) in use and raw in training by pairs (released code). center:
    how strongly a pair's raw values are held around 0, see losses.pairwise. head: the scalar head's
    first weights, 'random' (paper, released code) or 'fitted' to the decoder as it is, see head.py.
    dropout: on what the scalar head reads. held_out: share of the problems whose examples are not
    trained on but measured, fit.PPM_HELD_OUT problems at most.
    """
    return _default(
        epochs=1,
        batch_size=512,
        length=2048,
        micro_batch=2,
        loss='pairwise',
        squash='tanh',
        center=0.0,
        head='random',
        dropout=0.1,
        held_out=0.1,
    )


def _default(**special) -> ConfigDict:
    return ConfigDict(
        {
            'epochs': 1,  # passes over the examples
            'batch_size': 128,  # examples of one optimiser step
            'length': 4096,  # tokens; longer examples are dropped and counted
            'micro_batch': 1,  # rows of `length` run at once per device; shorter rows: more
            'one_size': False,  # all rows as long: fewer shapes to compile, more padding
            'learning_rate': 7e-6,
            'schedule': 'linear',  # or 'cosine'; both from the first step down to 0
            'lora': 0,  # rank of LoRA, see training.lora; 0 = all weights are trained
            'weight_decay': 0.1,
            'moments': 'float32',  # dtype of AdamW's first moment, or 'bfloat16'
            'grad_clip': 1.0,  # greatest norm of the gradients; 0 = no limit
            'seed': 0,  # of order, dropout, the head's first weights, the hold-out
            'dtype': '',  # the network runs in; '' = what the device is fast at, dtypes.fast_dtype
            'attention': 'auto',  # or 'loop', 'cudnn': see training.kernels
            'measure_every': 0,  # steps between measurements of the held-out; 0 = before and after
            'keep': 'last',  # parameters of the last step, or 'best': of least held-out loss
            'log_every': 10.0,  # seconds between log lines
            'checkpoint_minutes': 10.0,  # between states on disk
            **special,
        }
    )
