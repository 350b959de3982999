"""A completions server for tests: completions.py PORT [KEY]. Texts follow from prompt and seed.

Models: `whole` gives stop strings back when asked to, `cut` only names them, as vLLM can both;
`mute` does neither;
`busy` refuses every other request for its rate limit, `full` every one, `torn` fails now and then,
`odd` gives now and then what is no completion, and never counts; `page` never gives any, `long`
says in other words that a text is too long;
`slow` takes 5 seconds, `crowd` waits until 32 are there, `short` has no room for more than CONTEXT
words. /stats tells how many there were at once, and what the last one asked for.
"""

import asyncio
import hashlib
import random
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

MODELS = (
    *('whole', 'cut', 'crowd', 'busy', 'full', 'torn'),
    *('slow', 'short', 'mute', 'odd', 'page', 'long'),
)
CONTEXT = 30
PAGE = Response('<html>please log in</html>', media_type='text/html')
MARKS = ('<end_of_step>', '<end_of_code>', '<end_of_answer>')


def text_of(prompt: str, seed: int) -> str:
    """A step that runs, fails, prints, answers or never ends."""
    digest = hashlib.blake2b(f'{prompt}/{seed}'.encode(), digest_size=8).digest()
    rng = random.Random(digest)
    value = rng.randrange(3)
    return rng.choices(
        [
            f'x = {value}\n<end_of_step>',
            f'fail_{value}\n<end_of_step>',
            f'print({value})\n<end_of_code>',
            f'<answer>\\boxed{{{value}}}<end_of_answer>',
            'and so on and on',
        ],
        [0.5, 0.1, 0.15, 0.2, 0.05],
    )[0]


class Server:
    def __init__(self, key: str):
        self.key, self.seen, self.now, self.most = key, 0, 0, 0
        self.asked = {}
        self.crowded = asyncio.Event()
        routes = [
            Route('/v1/models', self.models),
            Route('/v1/completions', self.complete, methods=['POST']),
            Route('/stats', self.stats),
            Route('/page/models', lambda request: PAGE),
        ]
        self.app = Starlette(routes=routes)

    async def stats(self, request):
        return JSONResponse({'seen': self.seen, 'most': self.most, 'asked': self.asked})

    async def models(self, request):
        if refused := self.refused(request):
            return refused
        return JSONResponse({'object': 'list', 'data': [{'id': name} for name in MODELS]})

    def refused(self, request):
        if self.key and request.headers.get('authorization') != f'Bearer {self.key}':
            return failed(401, 'Incorrect API key')
        return None

    async def complete(self, request):
        if refused := self.refused(request):
            return refused
        self.asked = asked = await request.json()
        self.seen += 1
        if asked['model'] not in MODELS:
            return failed(404, f'The model `{asked["model"]}` does not exist.')
        if asked['model'] == 'full' or (asked['model'] == 'busy' and self.seen % 2):
            return failed(429, 'Rate limit reached', {'Retry-After': '0.05'})
        if asked['model'] == 'torn' and self.seen % 3 == 0:
            return failed(503, 'overloaded')
        if asked['model'] == 'page':
            return PAGE
        if asked['model'] == 'long':
            return JSONResponse({'error': '`inputs` must have less than 9 tokens. Given: 10'}, 422)
        if asked['model'] == 'odd' and self.seen % 2:
            return odd(self.seen // 2, asked)
        words = len(asked['prompt'].split())
        if asked['model'] == 'short' and words + asked['max_tokens'] > CONTEXT:
            message = f"This model's maximum context length is {CONTEXT} tokens; you asked for more"
            return failed(400, message)
        self.now += 1
        self.most = max(self.most, self.now)
        if self.now == 32:
            self.crowded.set()
        if asked['model'] == 'crowd':
            await asyncio.wait_for(self.crowded.wait(), 100)
        await asyncio.sleep(5 if asked['model'] == 'slow' else 0.02)
        self.now -= 1
        return JSONResponse(completion(asked))


def failed(status, message, headers=None):
    return JSONResponse({'error': {'message': message}}, status, headers)


def odd(number, asked):
    """What servers, and proxies before them, answer in place of a completion."""
    broken = completion(asked)
    broken['choices'][0].update(text='print("bro', finish_reason='abort')
    answers = [
        JSONResponse(broken),
        JSONResponse({**broken, 'choices': []}),
        JSONResponse({'error': {'message': 'overloaded'}}),
        JSONResponse([]),
        Response('<html>back soon</html>', media_type='text/html'),
        Response('{"choices": [', media_type='application/json'),
        failed(408, 'timeout'),
    ]
    return answers[number % len(answers)]


def completion(asked):
    text = text_of(asked['prompt'], asked['seed'])
    mark = next((mark for mark in MARKS if text.endswith(mark)), None)
    count = len(text.split())
    returned = asked['model'] not in ('cut', 'mute') and asked.get('include_stop_str_in_output')
    if mark and not returned:
        text = text.removesuffix(mark)
    choice = {
        'index': 0,
        'text': text,
        'finish_reason': 'stop' if mark else 'length',
        'stop_reason': None if asked['model'] == 'mute' else mark,
        'logprobs': {'token_logprobs': [-0.5] * count} if asked['model'] != 'cut' else None,
    }
    total = len(asked['prompt'].split()) + count
    usage = {} if asked['model'] == 'odd' else {'completion_tokens': count, 'total_tokens': total}
    return {
        'id': 'x',
        'object': 'text_completion',
        'created': 0,
        'model': asked['model'],
        'choices': [choice],
        'usage': usage,
    }


if __name__ == '__main__':
    key = sys.argv[2] if len(sys.argv) > 2 else ''
    uvicorn.run(Server(key).app, host='127.0.0.1', port=int(sys.argv[1]), log_level='error')
