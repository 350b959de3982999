"""The page itself: one HTML file with everything in it, in the order in which a person asks."""

import dataclasses
import datetime
import html
import json
import pathlib
import shlex
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rstar_jax.job.progress import clock
from rstar_jax.report import stages, tables
from rstar_jax.report.drawing import Plot
from rstar_jax.report.run import Run
from rstar_jax.report.trees import RIGHT, UNKNOWN, Entry, Sample

HERE = pathlib.Path(__file__).parent
MOST_LISTED = 20_000  # trees in the page's list
MOST_STAGES = 12  # lines of the table of stages that are shown unasked


@dataclasses.dataclass(frozen=True)
class Part:
    """What the page shows of one run.

    Attributes:
      samples: its trees, those of later rounds last.
      cost, found, training, values: plots of those sections.
      ablations: plot of each group.
      beside: path from the page to the run's report folder, '' for its own.
      prefix: begins the names of its trees, where another run's may be the same.
    """

    run: Run
    samples: Sequence[Sample]
    cost: Sequence[Plot]
    found: Sequence[Plot]
    training: Sequence[Plot]
    values: Sequence[Plot]
    ablations: Mapping[str, Plot] = dataclasses.field(default_factory=dict)
    beside: str = ''
    prefix: str = ''


SECTIONS = (
    ('ablations', 'What is each part worth?'),
    ('better', 'Did it get better?'),
    ('cost', 'What did it cost?'),
    ('found', 'What was found?'),
    ('training', 'How did training go?'),
    ('values', 'What are its values worth?'),
    ('trees', 'What does it write?'),
)


def page(parts: Sequence[Part], accuracy: Sequence[Plot]) -> str:
    """The HTML of one run, or of two side by side."""
    title = ' and '.join(part.run.name for part in parts)
    parts = _listed(parts)
    bodies = {
        'ablations': _each(parts, _ablations),
        'better': _better(parts, accuracy),
        'cost': _each(parts, _cost),
        'found': _each(parts, _found),
        'training': _each(parts, lambda part: _plots(part.training, part.beside)),
        'values': _each(parts, lambda part: _plots(part.values, part.beside)),
        'trees': _trees(parts),
    }
    shown = [(name, text) for name, text in SECTIONS if bodies[name]]
    links = ''.join(f'<a href="#{name}">{text}</a>' for name, text in shown)
    sections = '\n'.join(
        f'<section id="{name}"><h2>{text}</h2>\n{bodies[name]}</section>' for name, text in shown
    )
    scripts = [
        f'<script>const SOURCES = {_json(_list(parts))};</script>',
        *(f'<script>{_asset(name)}</script>' for name in ('tree.js', 'viewer.js', 'page.js')),
        *(
            f'<script data-name="{part.prefix}{entry.name}">{script}</script>'
            for part in parts
            for sample in _told(part.samples)
            for entry, _, script in sample.shown
            if script
        ),
        # The address may name a tree of the page itself: it is there only now.
        '<script>showList(); follow();</script>',
    ]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(title)}</title>
<link rel="icon" href="data:,">
<style>{_asset('page.css')}</style></head>
<body>
<header>{''.join(_head(part, len(parts) > 1) for part in parts)}</header>
<nav aria-label="sections"><div>{links}</div></nav>
<main>
{sections or '<p class="lead">Nothing was done yet.</p>'}
<footer>Written {datetime.datetime.now():%Y-%m-%d %H:%M} by rstar_jax. Each plot is beside this page
as a PNG. To write it anew, also while the run goes on: <code>python -m rstar_jax.report
{_text(shlex.join(str(part.run.root) for part in parts))}</code></footer>
</main>
{_asset('viewer.html')}
{chr(10).join(scripts)}
</body></html>
"""


def _asset(name: str) -> str:
    return (HERE / name).read_text(encoding='utf-8')


def _text(text: str) -> str:
    return html.escape(text)


def _address(path: str) -> str:
    return _text(urllib.parse.quote(path))


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False).replace('<', '\\u003c')


def _head(part: Part, several: bool) -> str:
    run = part.run
    first = next(iter(run.settings.values()), {})
    about = [
        f'{word} <b>{_text(str(settings[key]))}</b>'
        for word, key, settings in (
            ('policy', 'policy.path', first),
            ('base', 'base.path', run.newest),
            ('problems', 'data.problems', run.newest),
        )
        if settings.get(key)
    ]
    status = ''
    if run.complete:
        status = '<span class="status">complete</span>'
    elif run.stages:
        stage = run.current or run.stages[-1]
        so_far = 'done' if stage is not run.current else f'{clock(stage.seconds)} so far'
        status = f'<span class="status going">round {stage.round}, {stage.name}: {so_far}</span>'
    tiles = ''.join(
        f'<div class="tile"><div class="what">{_text(what)}</div><div class="value">{_text(value)}'
        f'</div><div class="more">{_text(more).replace(" %", "&nbsp;%")}</div></div>'
        for what, value, more in stages.headlines(run)
    )
    heading = 'h2' if several else 'h1'
    return (
        f'<{heading}>{_text(run.name)}</{heading}><p class="sub">{status} {" · ".join(about)}</p>'
        f'<div class="tiles">{tiles}</div>'
    )


def _better(parts: Sequence[Part], accuracy: Sequence[Plot]) -> str:
    bodies = [_plots(accuracy)] if accuracy else []
    for part in parts:
        results = part.run.results
        rows = tables.accuracy(results)
        if not rows:
            continue
        if len(parts) > 1:
            bodies.append(f'<h3>{_text(part.run.name)}</h3>')
        bodies.append(_table(rows, text=(0, 2)))
        for further in (tables.strategies(results), tables.judges(results)):
            if further:
                bodies.append(_table(further, text=(0, 1, 2)))
        bodies += [f'<p class="note">{_text(note)}</p>' for note in tables.accuracy_notes(results)]
    if len(parts) > 1:
        notes = tables.side_by_side(*(part.run for part in parts))
        bodies += [f'<p class="note">{_text(note)}</p>' for note in notes]
    if not bodies and all(part.run.ablations or not part.run.stages for part in parts):
        return ''
    return '\n'.join(bodies) or '<p class="lead">Nothing was evaluated yet.</p>'


def _ablations(part: Part) -> str:
    made = part.run.ablations
    if not made:
        return ''
    bodies = []
    for group, title in made['titles'].items():
        rows = tables.ablations(made, group)
        if rows:
            bodies.append(f'<h3>{_text(title)}</h3>')
            bodies += [f'<p class="note">{_text(note)}</p>' for note in made['notes'][group]]
            bodies += [_plots([part.ablations[group]], part.beside), _table(rows, text=(0,))]
    return '\n'.join(bodies)


def _each(parts: Sequence[Part], body) -> str:
    made = [(part.run.name, body(part)) for part in parts]
    if len(made) == 1:
        return made[0][1]
    if not any(text for _, text in made):
        return ''
    columns = ''.join(f'<div><h3>{_text(name)}</h3>{text}</div>' for name, text in made)
    return f'<div class="columns">{columns}</div>'


def _cost(part: Part) -> str:
    if not part.run.stages:
        return ''
    rows = stages.table(part.run)
    table = _table(rows, text=(0, 1, 3), wrap=(3,))
    if len(rows) > MOST_STAGES:
        table = f'<details class="more"><summary>Every stage</summary>{table}</details>'
    return _plots(part.cost, part.beside) + table


def _found(part: Part) -> str:
    rows = stages.found(part.run)
    table = _table(rows, text=(0,)) if rows else ''
    if note := stages.found_note(part.run):
        table += f'<p class="note">{_text(note)}</p>'
    return _plots(part.found, part.beside) + table


def _plots(plots: Iterable[Plot], beside: str = '') -> str:
    figures = ''.join(
        f'<figure><figcaption><span>{_text(plot.title)}</span>'
        f'<a href="{_address(f"{beside}{plot.name}.png")}" download>PNG</a></figcaption>{plot.svg}'
        + (f'<p class="note">{_text(plot.note)}</p>' if plot.note else '')
        + '</figure>'
        for plot in plots
    )
    return f'<div class="plots">{figures}</div>' if figures else ''


def _table(
    rows: Sequence[Sequence[str]], text: Sequence[int] = (), wrap: Sequence[int] = ()
) -> str:
    """text: columns aligned left; wrap: those that may take several lines."""
    lines = []
    for number, row in enumerate(rows):
        tag = 'td' if number else 'th'
        cells = []
        for i, cell in enumerate(row):
            kinds = ' '.join(name for name, of in (('text', text), ('wrap', wrap)) if i in of)
            cells.append(f'<{tag} class="{kinds}">{_text(cell)}</{tag}>')
        lines.append(f'<tr>{"".join(cells)}</tr>')
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


# --- trees ---


def _told(samples: Sequence[Sample]) -> Sequence[Sample]:
    """The one source whose trees are on the page itself: the newest search, else what there is."""
    graded = [sample for sample in samples if sample.source.graded]
    return graded[-1:] or list(samples)[:1]


def _trees(parts: Sequence[Part]) -> str:
    samples = [(part, sample) for part in parts for sample in part.samples if sample.entries]
    if not samples:
        return ''
    cards = [
        _card(part, sample, entry, content)
        for part in parts
        for sample in _told(part.samples)
        for entry, content, _ in sample.shown
    ]
    options = ''.join(
        f'<option value="{_text(part.prefix + sample.source.name)}">'
        f'{_text(_source_label(part, sample, len(parts) > 1))}: {_counted(sample)}</option>'
        for part, sample in samples
    )
    note = ''
    if any(len(one.entries) < one.total for _, one in samples):
        note = (
            '<p class="note">Of each search some trees are listed, evenly spaced. To list others, '
            'write the page anew with <code>--trees=NUMBER</code> (or <code>all</code>), or with '
            '<code>--problems=INDEX,INDEX</code> for all trees of these problems. '
            f'A page lists {MOST_LISTED:,} trees at most.</p>'
        )
    return f"""<div class="cards">{''.join(cards)}</div>
<h3>All trees</h3>
<div class="tools"><input type="search" id="find" placeholder="Beginning of a question, answer"
 aria-label="Search the beginnings of questions, and answers">
<select id="source" aria-label="Where from"><option value="">everywhere</option>{options}</select>
<select id="solved" aria-label="Solved or not"><option value="">solved or not</option>
<option value="1">solved</option><option value="0">not solved</option></select>
<span class="facts" id="counted"></span></div>
<div class="list" id="list"></div>{note}"""


def _card(part: Part, sample: Sample, entry: Entry, content: dict[str, Any]) -> str:
    """A question and the solution that the search would give."""
    best, parent = content['best'], content['parent']
    path = []
    node = best
    while node > 0:
        path.append(node)
        node = parent[node]
    steps = ''.join(
        f'<div data-step="{_text(content["texts"][node])}"></div>' for node in reversed(path)
    )
    verdict = '<span class="badge error">no answer found</span>'
    if best >= 0:
        right = content['right'][best]
        kind = {RIGHT: 'right', UNKNOWN: 'answer'}.get(right, 'wrong')
        verdict = f'<span class="badge {kind}">{kind}: {_text(content["answers"][best])}</span>'
    truth = f', right answer {_text(content["truth"])}' if content['truth'] else ''
    return (
        f'<article class="card"><p>{_text(content["question"])}</p>'
        f'<p class="facts">{verdict} {_text(sample.source.label)}, problem {entry.index}{truth}</p>'
        f'<div class="solution">{steps}</div>'
        f'<p><a class="button" href="#tree={_text(part.prefix + entry.name)}">Open the tree: '
        f'{entry.nodes:,} nodes</a></p></article>'
    )


def _counted(sample: Sample) -> str:
    listed, total = len(sample.entries), sample.total
    return f'{listed:,} of {total:,} trees' if listed < total else f'{total:,} trees'


def _source_label(part: Part, sample: Sample, several: bool) -> str:
    return f'{part.run.name}, {sample.source.label}' if several else sample.source.label


def _listed(parts: Sequence[Part]) -> list[Part]:
    """The parts with as many trees as a page can list, the newest searches first."""
    made, room = [], MOST_LISTED
    for part in parts:
        samples = []
        for sample in reversed(part.samples):
            samples.append(dataclasses.replace(sample, entries=sample.entries[:room]))
            room -= len(samples[-1].entries)
        made.append(dataclasses.replace(part, samples=samples[::-1]))
    return made


def _list(parts: Sequence[Part]) -> list[dict[str, object]]:
    """Sources and their trees as the page's script takes them, the newest searches first."""
    return [
        {
            'name': part.prefix + sample.source.name,
            'file': urllib.parse.quote(f'{part.beside}trees/{sample.source.name}'),
            'label': _source_label(part, sample, len(parts) > 1),
            'trees': [
                (e.index, e.tree, e.solved, e.nodes, e.answer[:60], e.question[:120])
                for e in sample.entries
            ],
        }
        for part in parts
        for sample in reversed(part.samples)
    ]
