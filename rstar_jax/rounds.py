"""One round of self-evolution, and the rounds after one another.

    bootstrap   a first policy out of demonstrations, where the run has them   -> round0/policy
    synthesize  new problems, by the policy, where the run asks for them       -> roundK/synthesize
    search      problems -> trees, by the policy and PPM of the round before   -> roundK/search
    curate      trees -> SFT examples, preference pairs, trajectories          -> roundK/curate
    sft         base model (the same each round) + SFT examples -> policy      -> roundK/policy
    ppm         that policy + pairs -> process preference model                -> roundK/ppm
    eval        policy alone, and with search, on benchmarks                   -> roundK/eval
    export      policy and PPM as Hugging Face directories                     -> roundK/export

Round 0 is what the run started from: its eval tells what the rounds have gained, and so does that
of the model that each round trains from, where it is another (base/eval). A complete stage is
skipped, an incomplete one goes on (`ledger`), so killing a run loses at most what was in flight.
"""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from rstar_jax import data, evals, models, parallel, report, search, training
from rstar_jax.data.overlap import Overlap
from rstar_jax.export import huggingface as exporting
from rstar_jax.job import bucket, hosts, ledger
from rstar_jax.job.progress import Events, Line, clock, of_search, of_training
from rstar_jax.report import terminal
from rstar_jax.settings import configs, kinds, table
from rstar_jax.settings.errors import UserError
from rstar_jax.stages import curating, order, preflight, searching, sources, synthesis
from rstar_jax.stages.sources import Round

Figures = dict[str, Any]


def run(config: ConfigDict, workdir: str, names: Sequence[str]) -> None:
    """Runs rounds first_round..last_round of `config`, of each the stages in `names`.

    Raises:
      UserError: what the config names does not exist, or does not fit what the workdir holds.
    """
    place = bucket.Place(workdir) if bucket.is_url(workdir) else None
    root = place.folder if place else pathlib.Path(workdir)
    with contextlib.ExitStack() as stack:
        if hosts.is_first():
            stack.enter_context(ledger.lock(root))
        if place:
            place.begin()
        store = place if hosts.is_first() else None  # for the one process that writes to it
        if store:
            stack.callback(store.end)
        events = Events(root / 'events' if hosts.is_first() else None)
        stack.callback(events.close)
        rows = [
            (Round(configs.for_round(config, number), root, number, events, store), name)
            for number, name in order.rows(config, names)
        ]

        # Where JAX has none of an accelerator it takes the CPU.
        if hosts.is_first() and config.job.leases != searching.RAY:
            print(f'devices: {parallel.devices_in_use()}', flush=True)

        def after(root: pathlib.Path) -> None:
            report.attempt(root)
            if store:
                store.push(must=True)

        run_stages(rows, after)
    if hosts.is_first():
        terminal.show(root)
    hosts.barrier('all is done')  # who ends sooner has JAX end all five minutes later


def run_stages(
    rows: Sequence[tuple[Round, str]], after: Callable[[pathlib.Path], None] = lambda root: None
) -> None:
    """Checks stages against what their workdirs hold, and all that they need; then runs them.

    after: called with the workdir after each stage that was not complete.
    """
    flat = configs.flatten
    _check_alike([(r.number, name, flat(r.config)) for r, name in rows])
    looked = [
        (order.stage_of(r, name), f'round{r.number}', name, flat(r.config)) for r, name in rows
    ]

    def look_further(grown: Collection[pathlib.Path]) -> None:
        stages_ = [stage for stage, *_ in looked]
        todo = [row for row, s in zip(rows, stages_) if s.done is None or s.folder in grown]
        for text in preflight.check(todo):
            if hosts.is_first():
                print(text, flush=True)

    ledger.check(looked, flat(configs.default()), look_further)
    hosts.barrier('all is looked at')
    for round_, name in rows:
        run_stage(round_, name, after)


def _check_alike(rows: Sequence[tuple[int, str, dict[str, Any]]]) -> None:
    """Raises UserError where the processes of a job were not all told to make the same."""
    again = 'start the same command on all of them'
    if not hosts.alike([row[:2] for row in rows]):
        raise UserError(f'the processes of this job have other rounds or stages to run: {again}')
    binds = sorted({'job.leases', *(key for kind in kinds.KINDS.values() for key in kind.binds)})
    bound = [kinds.bound(settings, binds) for *_, settings in rows]
    keys = sorted({key for settings in bound for key in settings})
    if not hosts.alike(keys):
        raise UserError(f'the processes of this job have other versions of rstar_jax: {again}')
    if hosts.alike(bound):
        return
    for key in keys:
        own = [settings.get(key) for settings in bound]
        if not hosts.alike(own):
            shown = ', '.join(dict.fromkeys(map(str, own)))
            raise UserError(f'--config.{key}={shown}: differs among the processes: {again}')


def run_stage(
    round_: Round, name: str, after: Callable[[pathlib.Path], None] = lambda root: None
) -> None:
    """Runs one stage unless it is complete, and keeps its time and figures."""
    stage, label = order.stage_of(round_, name), f'round {round_.number} {name}'
    label = f'{name} eval' if name == kinds.BASE else label
    if hosts.is_first():
        changed = stage.drop_if_stale()
        if changed:
            print(f'{label}: done again, {changed} is new', flush=True)
        if stage.done is None:
            stage.sweep()
    # As the first sees it: a shared disk may tell others late of what it has made or deleted.
    if hosts.gathered(int(hosts.is_first() and stage.done is not None))[0]:
        print(f'{label}: complete', flush=True)
        return
    stage.begin()
    with Line(label) as line:
        figures = STAGES[name](round_, stage, line)
        hosts.barrier(f'{label} ends')
        if hosts.is_first():
            stage.finish(figures)
        hosts.barrier(f'{label} is kept')
        if not hosts.alike_soon(lambda: stage.done):
            raise UserError(
                f'{stage.folder}: the processes still see different files: put --workdir on a disk '
                'that all of them share, and start the same command again'
            )
        parallel.give_memory_back()
        line.say(f'done in {clock(stage.seconds)}')
    if hosts.is_first():
        after(round_.root)


def bootstrap(round_: Round, stage: ledger.Stage, line: Line) -> Figures:
    """Trains the run's first policy on demonstrations."""
    config = round_.config
    dtype = training.start_dtype(config.training.bootstrap)
    mesh = _training_mesh(round_, 'bootstrap', config.policy.path)
    policy = sources.first_policy(config, dtype, mesh)
    examples = sources.world(config).demonstrations
    return _train(round_, stage, line, 'bootstrap', policy, examples, mesh=mesh)


def synthesize(round_: Round, stage: ledger.Stage, line: Line) -> Figures:
    """Has the policy write problems and answer them; keeps those whose answer is certain enough."""
    config = round_.config
    known = sources.problems(round_, known=True)  # a killed run may have written its own
    length = config.data.overlap or synthesis.WHOLE
    others = sources.benchmarks(round_, whole=True) if config.eval.benchmarks else {}
    overlap = Overlap({'training': known, **others}, length)
    policy = sources.searching_model(round_, 'policy')

    def tell(now: dict[str, float]) -> None:
        round_.beat(stage)
        line.show(*of_search(now))

    made, counts = synthesis.synthesize(
        known,
        overlap,
        synthesis.Config(**config.synthesize),
        sources.search_config(config),
        stage.folder,
        functools.partial(search.run, policy=policy, progress=tell),
        round_.number,
        sources.synthesis_seed(round_),
        config.job.leases,
    )
    if not hosts.is_first():
        return {}
    data.write_json_items(map(data.Problem.to_dict, made), stage.folder / synthesis.FILE)
    return {**counts, 'tokens': synthesis.tokens(stage.folder)}


def sft(round_: Round, stage: ledger.Stage, line: Line) -> Figures:
    """Trains the next policy from the base model on the round's trajectories."""
    examples = data.load_examples(round_.folder / 'curate', 'sft')
    if not len(examples):
        raise UserError(
            f'{round_.folder / "curate"}: no trajectory to train on, the search solved no '
            'problem: raise --config.search.rollouts or candidates, or use a stronger policy'
        )
    dtype = training.start_dtype(round_.config.training.sft)
    path = sources.base_path(round_)
    mesh = _training_mesh(round_, 'sft', path)
    policy = sources.load_model(path, 'policy', dtype, mesh)
    return _train(round_, stage, line, 'sft', policy, examples, mesh=mesh)


def ppm(round_: Round, stage: ledger.Stage, line: Line) -> Figures:
    """Trains the next PPM from the round's policy on the round's pairs or trajectories."""
    folder, loss = round_.folder / 'curate', round_.config.training.ppm.loss
    kind, _ = training.LOSSES[loss]
    examples = data.load_examples(folder, kind)
    if not len(examples):
        raise UserError(
            f'{folder}: no {kind} to train on with loss={loss}: raise --config.search.rollouts or '
            'candidates, or leave the stage out with --stages'
        )
    sources.finished(round_.folder / 'policy', 'policy', stage.folder.name)
    dtype = training.start_dtype(round_.config.training.ppm)
    mesh = _training_mesh(round_, 'ppm', round_.folder / 'policy')
    policy = sources.load_model(round_.folder / 'policy', 'policy', dtype, mesh)
    whole = any(folder.glob('trajectories-*'))  # given pairs come alone
    trajectories = data.load_examples(folder, 'trajectories') if whole else ()
    more = {'trajectories': trajectories, 'mesh': mesh}
    return _train(round_, stage, line, 'ppm', policy, examples, **more)


def _train(
    round_: Round, stage: ledger.Stage, line: Line, name: str, policy, examples, **more: Any
) -> Figures:
    """Trains from `policy` by the settings training.NAME; takes its arrays over."""
    is_ppm = name == 'ppm'
    settings = training.settings(name, round_.config.training[name])
    settings.seed = round_.config.seed

    def tell(now: dict[str, float]) -> None:
        round_.beat(stage)
        line.show(*of_training(now))
        if 'step' in now:
            round_.events.add(f'round{round_.number}/{stage.folder.name}', now, int(now['step']))

    how = {'progress': tell, 'release': True}
    train = training.ppm if is_ppm else training.sft
    _, figures = train(policy, examples, settings, stage.folder, **how, **more)
    return figures


def _training_mesh(round_: Round, name: str, path: str | pathlib.Path) -> jax.sharding.Mesh | None:
    """Of the training NAME of a model at a path; None for one device."""
    if jax.device_count() == 1:
        return None
    model = None if path == table.TINY else models.read_config(path)
    return parallel.training_mesh(round_.config.training[name].batch_size, model)


def evaluate(round_: Round, stage: ledger.Stage, line: Line) -> Figures:
    """Measures the round's policy, alone and with the search, and writes results.json."""

    def tell(now: dict[str, Any]) -> None:
        round_.beat(stage)
        line.show(*of_search(now, f'{now["benchmark"]}, {now["kind"]}: '))

    base = stage.folder.parent.name == kinds.BASE
    policy, judge = searching.evaluated_models(round_, base, line.say)
    config = searching.evaluation_config(round_, base)
    guided = [name for name in config.strategies if name in evals.GUIDED]
    if judge is None and guided:
        line.say(f'{", ".join(guided)}: left out, as there is no PPM (unguided needs none)')
    results = evals.run(
        policy,
        judge,
        sources.benchmarks(round_),
        config,
        round_.config.seed,
        round_number=None if base else round_.number,
        directory=stage.folder,
        progress=tell,
        run_search=searching.evaluating(round_, base, line.say),
        leases=round_.config.job.leases,
        say=line.say,
    )
    benchmarks = results['benchmarks']
    if not base:
        for name, row in benchmarks.items():
            for strategy, figures in row['strategies'].items():
                round_.events.add(f'eval/{name}/{strategy}', figures, round_.number)
    return benchmarks


def export(round_: Round, stage: ledger.Stage, line: Line) -> Figures:
    """Writes what the round trained as Hugging Face directories."""
    made, folder = {}, round_.folder
    sources.finished(folder / 'policy', 'policy', f'round {round_.number} export')
    for part in filter(None, (folder / 'policy', sources.own_ppm(round_, line.say))):
        title = f'{round_.root.absolute().name}-round{round_.number}-{part.name}'
        exporting.export_model(part, stage.folder / part.name, name=title)
        made[part.name] = part.name
        parallel.give_memory_back()
    return made


STAGES: dict[str, Callable[[Round, ledger.Stage, Line], Figures]] = {
    'bootstrap': bootstrap,
    'synthesize': synthesize,
    'search': searching.search_trees,
    'curate': curating.curate,
    'sft': sft,
    'ppm': ppm,
    'eval': evaluate,
    kinds.BASE: evaluate,
    'export': export,
}
