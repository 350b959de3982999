"""Models and data as directories for Hugging Face, with their cards, and the way to the hub.

    huggingface    a training's checkpoint, or a round, -> directories
    model_card     what a run knows of what it made -> README.md in the hub's form
    hub            compared with transformers, and pushed

`python -m rstar_jax.export --help` is its command.
"""

from rstar_jax.export.huggingface import Exported, export, export_data, export_model

__all__ = ['Exported', 'export', 'export_data', 'export_model']
