"""Serves a policy as a chat model that answers by search, for any client of OpenAI's interface.

    pip install -e '.[serve]'
    python -m rstar_jax.main --config=experiments/serve.py \\
        --config.policy.path=runs/gsm8k_mini/round1/policy \\
        --config.ppm.path=runs/gsm8k_mini/round1/ppm

    client = openai.OpenAI(base_url='http://127.0.0.1:8000/v1', api_key='-')
    client.chat.completions.create(model='rstar_jax', extra_body={'trajectories': 8},
        messages=[{'role': 'user', 'content': 'What is 17 * 23 - 4?'}])

Hardware: anything that holds the models.
Time: not measured yet; as experiments/solve.py, and requests that come together share the device.
Score: not measured. Searched is less than by experiments/evaluate.py: 4 trees in place of 8, of 8
candidates in place of 32, at temperature 0.7 in place of 1. The answer told is its `best`; without
a PPM, of `unguided`, its `majority`.

The last message of the user is the question; each is solved by itself, without what was said
before. `trajectories` says how many trees are searched, `seed` of what; temperature, max_tokens and
the like of a request are ignored: the settings of the search are those of this config. With
stream=True each tree is told as `reasoning_content` when it ends, then the solution step by step.
"""

from ml_collections import ConfigDict

from rstar_jax import settings


def get_config() -> ConfigDict:
    config = settings.default()
    config.policy.path = ''
    config.serve.port = 8000
    config.search.trees = 4
    config.search.rollouts = 4
    config.search.candidates = 8
    config.search.temperature = 0.7
    return config
