"""An expander over HTTP: the policy is served elsewhere, by any OpenAI-compatible server.

    expand -> a request a candidate -> `requests` threads -> POST /v1/completions
    answers -> Steps; those that nobody waits for any more are dropped

A request says a step's end marks as stop strings, and its seed is that of the candidate: where the
server honours seeds, a tree is the same whatever else is searched. Servers cut a stop string off
and do not say which it was, unless asked in their own words: vLLM and what is built on it (also
tpu-inference) by `include_stop_str_in_output`, SGLang by `no_stop_trim`. Both also name it in the
answer. A PPM, where there is one, runs on this host's devices and reads the same texts, in the form
that it has learnt: behind the prompt of SFT, and each step up to its mark.
"""

import collections
import contextlib
import dataclasses
import math
import os
import queue
import random
import threading
import time
from typing import Any

from jax.sharding import Mesh

from rstar_jax import models, parallel, steps
from rstar_jax.models import tokenizer
from rstar_jax.search.config import Config
from rstar_jax.search.engine import memory, sampling
from rstar_jax.search.engine.model import Scorer
from rstar_jax.search.expander import Expander
from rstar_jax.search.nodes import HostTree, Step
from rstar_jax.settings.errors import UserError, one_line
from rstar_jax.steps import marks

KEY = 'OPENAI_API_KEY'
MOMENTS = 0.05  # seconds
PATIENCE = 600.0  # seconds for which a server may be away, or refuse for its rate limit
LONGEST_PAUSE = 30.0  # seconds between two tries
TRIED_AGAIN = 408, 409, 429  # and 500 and above: what a server, or a proxy before it, gets over
# How servers say that a path is longer than their context; the second is Text Generation Inference.
TOO_LONG = 'context', '`inputs`'
MARKLESS = 32  # so many answers that lack their marks, and no other before, end a search
REFUSED = 32  # so many questions too long for the server, and no step before, end a search


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A policy that is served elsewhere; stands where a models.Policy would.

    Attributes:
      url: up to /v1.
      model: as the server calls it.
      requests: in flight at once.
      seconds: that one request may take.
    """

    url: str
    model: str
    requests: int = 32
    seconds: float = 600.0

    def client(self) -> Any:
        """An openai.OpenAI; the key is taken from the environment, as it must not be in a config.

        Raises UserError: the package is missing, or no model is named.
        """
        try:
            import openai
        except ImportError:
            needs = 'needs the package openai', 'pip install openai'
            raise UserError('policy.path', self.url, *needs) from None
        if not self.model:
            raise UserError('policy.model', '', f'needs the name of a model at {self.url}')
        key = os.environ.get(KEY, 'none')
        return openai.OpenAI(base_url=self.url, api_key=key, timeout=self.seconds, max_retries=0)

    def check(self) -> None:
        """Raises UserError where no server answers, or it refuses the key or has no such model."""
        client = self.client()
        import openai

        try:
            with client:
                found = client.with_options(timeout=30).get('/models', cast_to=object)
        except (openai.OpenAIError, ValueError) as error:  # ValueError: what is no JSON
            raise self.error(error) from None
        models = found.get('data') if isinstance(found, dict) else None
        if not isinstance(models, list):
            raise self.error(ValueError(found))
        names = [str(model.get('id')) for model in models if isinstance(model, dict)]
        if self.model not in names:
            serves = f'{self.url} serves {", ".join(names[:5]) or "none"}'
            raise UserError('policy.model', self.model, serves)

    def error(self, error: Exception) -> UserError:
        """What is wrong, in a line, with what to do about it."""
        import openai

        said = _said(error)[:200]
        if isinstance(error, openai.NotFoundError):
            return UserError('policy.model', self.model, f'not at {self.url} ({said})')
        if isinstance(error, openai.RateLimitError):
            told = 'too many requests at once (429)', 'lower it'
            return UserError('policy.requests', self.requests, *told)
        if isinstance(error, openai.APITimeoutError):
            told = f'no answer of {self.url} within {self.seconds:g} s', 'lower it'
            return UserError('policy.requests', self.requests, *told)
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            told = f'the server refuses the key ({said})', f'set ${KEY}'
        elif isinstance(error, openai.APIConnectionError):
            told = f'no server answers there ({said})', 'start it, or name another'
        elif isinstance(error, ValueError):
            told = (
                f'does not answer as an OpenAI-compatible server does ({said})',
                'give its address up to /v1',
            )
        else:
            told = (f'the server fails: {said}',)
        return UserError('policy.path', self.url, *told)


@dataclasses.dataclass(frozen=True)
class _Request:
    """A candidate that is wanted while it is one of `waiting`, those of its expansion."""

    row: int
    candidate: int
    prompt: str
    seed: int
    waiting: set[int]

    @property
    def wanted(self) -> bool:
        return self.candidate in self.waiting


class Remote(Expander):
    """Drives an endpoint, and the PPM on this host's devices."""

    room = ' or in the context of the server'

    def __init__(
        self, policy: Endpoint, ppm: models.PPM | None, config: Config, mesh: Mesh, total: int
    ):
        """mesh: local mesh (data, tensor), used for the PPM. total: trees to search in all."""
        self.policy, self.config = policy, config
        self.counters: collections.Counter = collections.Counter()
        self.scores, self.models = None, []
        self.mesh = parallel.local_mesh(devices=mesh.devices.flat[:1]) if ppm is None else mesh
        if ppm is None:
            busy = -(-memory.TREES_FOR_SLOTS * policy.requests // config.candidates)
            self.width = min(config.trees_in_flight or busy, total)
        else:
            scorer = Scorer(mesh, config, ppm)
            self.ppm, self.continuing = ppm, tokenizer.continuing(ppm.tokenizer)
            self.scores, self.models = scorer.scores, [scorer]
            of_each, requests = (-(-n // mesh.shape['data']) for n in (total, policy.requests))
            plan = memory.plan(config, [scorer], mesh, of_each, requests)
            scorer.prepare(plan, self.counters)
            scorer.reserve(config.path_tokens if config.one_size else 0)
            self.width = plan.trees
        self.rows = self.width * self.mesh.shape['data']
        self._stops = steps.stops(config.prompt)
        self.plan = (
            f'{policy.model} at {policy.url}, {policy.requests} requests and {self.rows} trees in '
            'flight'
        )
        # Answers without a mark and questions refused, before any other; -inf after.
        self._markless = self._refused = 0.0
        self._waiting: dict[int, set[int]] = {}  # row -> candidates that have not come
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[_Request, Step | Exception]] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._client = policy.client()
        for _ in range(policy.requests):
            threading.Thread(target=self._serve, name='endpoint', daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        for _ in range(self.policy.requests):
            self._requests.put(None)
        self._client.close()

    def start(self, row: int, tree: HostTree) -> None:
        for model in self.models:
            if self.config.prompt == 'few_shot':
                prompt = steps.prompt(tree.problem.question)
                tree.nodes[0].tokens = self.ppm.tokenizer(prompt)['input_ids']
            model.start(row, tree)

    def encode(self, text: str, before: str = '') -> list[int]:
        if self.models and steps.marks_are_tokens(self.continuing):
            _, text = steps.ended_at_marks([before, text])
        return super().encode(text)

    def expand(self, row: int, tree: HostTree) -> None:
        for model in self.models:
            model.walk(row, tree)
        waiting = self._waiting[row] = set(range(self.config.candidates))
        prompt = tree.prompt + tree.prefix
        for candidate in range(self.config.candidates):
            key = sampling.key_of(*tree.seeds, tree.cursor.tag, candidate)
            seed = int(key[0]) >> 1  # servers take 31 bits at least
            self._requests.put(_Request(row, candidate, prompt, seed, waiting))

    def dispatch(self) -> Any:
        """Brings the PPM's paths up to date; the requests are on their way already."""
        for model in self.models:
            model.reserve(model.needed, model.cells)
            model.copy_steps()
            while model.ledger.segments:
                model.prefill()
                if not model.ledger.segments:
                    model.copy_steps()  # for those whose prompt has just been computed
        return bool(self._waiting) or None

    def collect(self, running: Any) -> list[Step]:
        """What has come; nothing if nothing does within moments, as programs end meanwhile, too."""
        found: list[Step] = []
        if running is None:
            return found
        with contextlib.suppress(queue.Empty):
            found += self._taken(*self._answers.get(timeout=MOMENTS))
            while True:
                found += self._taken(*self._answers.get_nowait())
        return found

    def _taken(self, request: _Request, answer: Step | Exception) -> list[Step]:
        """The steps that an answer makes known: itself, and those that cannot matter any more."""
        if not request.wanted:
            return []
        if isinstance(answer, Exception):
            which = request.row, request.candidate
            answer = Step(*which, '', [], marks.NONE, error=answer)
        self.counters['sampled'] += answer.sampled
        if answer.error is None:
            self._check(request, answer)
        found = [answer]
        if self.config.first_answer_only and answer.kind == marks.ANSWER:
            behind = [other for other in request.waiting if other > request.candidate]
            found += [Step(request.row, other, None, [], marks.NONE) for other in behind]
        request.waiting.difference_update(step.candidate for step in found)
        if not request.waiting:
            del self._waiting[request.row]
        return found

    def _check(self, request: _Request, answer: Step) -> None:
        """Raises UserError when the server finds every question too long, or cuts off the marks.

        The latter where it does not say which it was.
        """
        if answer.text:
            self._refused = -math.inf
        self._refused += answer.refused and not request.candidate
        if self._refused == REFUSED:
            raise UserError(
                'policy.path',
                self.policy.url,
                f'the first {REFUSED} questions are too long for the context of the server',
                'start it with a longer one (vLLM: --max-model-len)',
            )
        if answer.kind in self._stops.values():
            self._markless = -math.inf
        self._markless += answer.kind == marks.EOS and not steps.boxed(answer.text)
        if self._markless == MARKLESS:
            raise UserError(
                'policy.path',
                self.policy.url,
                f'{MARKLESS} steps ended without a mark ({steps.STEP_END} and others)',
                'use a server that gives stop strings back, as vLLM and SGLang do, or a policy '
                'that writes them',
            )

    # --- in the threads ---

    def _serve(self) -> None:
        while (request := self._requests.get()) is not None and not self._closed.is_set():
            if not request.wanted:
                continue
            try:
                self._answers.put((request, self._step(request, self._ask(request))))
            except Exception as error:
                self._answers.put((request, error))

    def _ask(self, request: _Request) -> Any:
        """One completion; tries again for PATIENCE seconds while the server is away or busy, or
        answers with something else.

        None: the path is longer than the server's context; the candidate ends there. Or nobody
        waits for it any more.

        Raises UserError: what else is wrong, or when patience ends.
        """
        import openai

        config = self.config
        extra: dict[str, Any] = {
            'include_stop_str_in_output': True,
            'no_stop_trim': True,
            'skip_special_tokens': False,  # a mark may be one
            'spaces_between_special_tokens': False,
            # What is not said, servers take from the model's generation_config.json.
            'top_k': config.top_k or -1,
            'min_p': config.min_p,
            'repetition_penalty': 1.0,
        }
        started, pause = time.monotonic(), 0.5
        while True:
            try:
                answer = self._client.completions.create(
                    model=self.policy.model,
                    prompt=request.prompt,
                    max_tokens=config.step_tokens,
                    temperature=config.temperature,
                    top_p=config.top_p,
                    seed=request.seed,
                    stop=list(self._stops),
                    logprobs=1,
                    extra_body=extra,
                )
                return _checked(answer)
            except (openai.OpenAIError, ValueError) as error:  # ValueError: what is no JSON, too
                status = getattr(error, 'status_code', 0)
                if status in (400, 413, 422) and any(said in _said(error) for said in TOO_LONG):
                    return None
                if 0 < status < 500 and status not in TRIED_AGAIN:
                    raise self.policy.error(error) from None
                if not request.wanted:
                    return None
                if time.monotonic() - started > PATIENCE or self._closed.is_set():
                    raise self.policy.error(error) from None
                self.counters['retries'] += 1
                self._closed.wait(max(pause * random.uniform(0.75, 1.25), _asked_pause(error)))
                pause = min(2 * pause, LONGEST_PAUSE)

    def _step(self, request: _Request, answer: Any) -> Step:
        """The step that a completion holds, up to its first mark."""
        if answer is None:
            return Step(request.row, request.candidate, '', [], marks.LIMIT)
        choice = answer.choices[0]
        named = [getattr(choice, name, None) for name in ('stop_reason', 'matched_stop')]
        # Half a character, as in a text that was cut, can be neither sent on nor stored.
        text, kind = choice.text.encode('utf-8', 'replace').decode(), marks.EOS
        found = [(text.find(mark), mark) for mark in self._stops if mark in text]
        if found:
            at, mark = min(found)
            text, kind = text[: at + len(mark)], self._stops[mark]
        elif mark := next((x for x in named if isinstance(x, str) and x in self._stops), None):
            text, kind = text + mark, self._stops[mark]
        elif choice.finish_reason == 'length':
            kind = marks.LIMIT
        else:
            for end in marks.ENDS:
                text = text.removesuffix(end)
        if self.config.prompt == 'few_shot' and kind in (marks.STEP, marks.CODE):
            text += '\n'  # as in the examples: a server stops right behind the mark
        logprobs = (choice.logprobs and choice.logprobs.token_logprobs) or []
        counted = getattr(answer.usage, 'completion_tokens', None)
        sampled = len(logprobs) if counted is None else counted
        known = bool(logprobs) and None not in logprobs
        likelihood = float(sum(logprobs)) if known else math.nan
        tokens = self.encode(text, request.prompt)
        context = getattr(answer.usage, 'total_tokens', None) or 0
        which = request.row, request.candidate
        return Step(*which, text, tokens, kind, sampled, likelihood, context)


def _said(error: Exception) -> str:
    """What a server says of an error, in a line: not all say it where OpenAI does."""
    message, body = str(getattr(error, 'message', error)), getattr(error, 'body', None)
    known = isinstance(body, dict) and body.get('message')
    if body and not known and str(body) not in message:
        message += f' - {body}'
    return one_line(ValueError(message), None)


def _checked(answer: Any) -> Any:
    """A completion that has a text, as it is.

    Raises ValueError for anything else: an error, a page of a proxy, a step that was broken off.
    """
    choices = getattr(answer, 'choices', None)
    text = getattr(choices[0], 'text', None) if choices else None
    whole = isinstance(text, str) and choices[0].finish_reason != 'abort'
    if not whole:
        raise ValueError(getattr(answer, 'model_extra', None) or answer)
    return answer


def _asked_pause(error: Exception) -> float:
    """Seconds that the server asks to wait for."""
    headers = getattr(getattr(error, 'response', None), 'headers', None) or {}
    try:
        return min(float(headers.get('retry-after', 0)), LONGEST_PAUSE)
    except ValueError:
        return 0.0
