"""Problems in, finished trees on disk, and training data out of them.

    problem sets --load_problems--> search --> TreeStore --curate_to--> sft, pairs, trajectories

`load_examples` reads what `curate_to` wrote; `curate` gives SFT examples and pairs as a plain
function over lists. Interchange formats: `export_*`, `import_*`.
"""

from rstar_jax.data.curation import curate, curate_to, in_order, join
from rstar_jax.data.examples import Examples, load_examples, store_examples
from rstar_jax.data.files import write_json_items
from rstar_jax.data.interchange import (
    IMPORTS,
    export_trees,
    export_trl_preference,
    export_trl_stepwise,
    import_pairs,
    import_preference,
    import_sft,
    import_trees,
    import_trl_preference,
    store_trees,
)
from rstar_jax.data.pairs import Rules
from rstar_jax.data.problem import Problem
from rstar_jax.data.problems import Selection, load_problems, told
from rstar_jax.data.shards import question_id
from rstar_jax.data.trees import TreeStore

__all__ = [
    'IMPORTS',
    'Examples',
    'Problem',
    'Rules',
    'Selection',
    'TreeStore',
    'curate',
    'curate_to',
    'export_trees',
    'export_trl_preference',
    'export_trl_stepwise',
    'import_pairs',
    'import_preference',
    'import_sft',
    'import_trees',
    'import_trl_preference',
    'in_order',
    'join',
    'load_examples',
    'load_problems',
    'question_id',
    'store_examples',
    'store_trees',
    'told',
    'write_json_items',
]
