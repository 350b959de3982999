"""Models and data as directories for Hugging Face, with their cards, and the way to the hub.

`python -m rstar_jax.export --help` is its command.
"""

from rstar_jax.export.huggingface import Exported, export, export_data, export_model

__all__ = ['Exported', 'export', 'export_data', 'export_model']
