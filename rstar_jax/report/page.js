'use strict';
// The page around the viewer: the list of trees, loading one when it is asked for, the panel that
// tells about a node, search, filters, the replay, and the keys.

const $ = (selector, within = document) => within.querySelector(selector);
const trees = new Map(),
  waiting = new Map(); // name -> packed; name -> of its script: {promise, resolve}

const LIST = SOURCES.flatMap(({name, file, label, trees}) =>
  trees.map(([index, tree, solved, nodes, answer, question]) => {
    const own = `-${index}-${tree}`;
    const row = {source: name, label, index, tree, solved, nodes, answer, question};
    return {...row, name: name + own, file: `${file}${own}.js`};
  }),
);

// What a tree's script calls. The page may know the tree under a longer name: two runs' are alike.
function tree(name, packed) {
  name = document.currentScript.dataset.name ?? name;
  trees.set(name, packed);
  waiting.get(name)?.resolve();
}

function fetched(name) {
  if (trees.has(name)) return undefined;
  if (!waiting.has(name)) {
    const script = document.createElement('script');
    const file = LIST.find((row) => row.name === name)?.file ?? `trees/${name}.js`;
    script.src = file;
    script.dataset.name = name;
    const asked = {};
    asked.promise = new Promise((resolve, reject) => {
      asked.resolve = resolve;
      script.onerror = () => {
        waiting.delete(name);
        reject(new Error(`${decodeURI(file)} is not beside this page`));
      };
    });
    waiting.set(name, asked);
    document.head.append(script);
  }
  return waiting.get(name).promise;
}

async function load(name) {
  await fetched(name);
  const bytes = Uint8Array.from(atob(trees.get(name)), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'));
  return prepare(await new Response(stream).json());
}

// --- the list ---

const MOST_LISTED = 100;

function showList() {
  const list = $('#list');
  if (!list) return;
  const words = $('#find').value.toLowerCase(),
    source = $('#source').value,
    solved = $('#solved').value;
  const found = LIST.filter(
    (row) =>
      (!source || row.source === source) &&
      (!solved || String(row.solved) === solved) &&
      (!words || `${row.index} ${row.question} ${row.answer}`.toLowerCase().includes(words)),
  );
  list.innerHTML = found
    .slice(0, MOST_LISTED)
    .map(
      (row) => `<a class="row" href="#tree=${row.name}">
    <span class="mark ${['wrong', 'right'][row.solved] ?? 'open'}">${['✗', '✓'][row.solved] ?? '·'}</span>
    <span class="q">${escaped(row.question)}</span>
    <span class="facts">${escaped(row.label)} · problem ${row.index}${row.tree ? `, tree ${row.tree}` : ''} · ${row.nodes.toLocaleString('en')} nodes</span></a>`,
    )
    .join('');
  $('#counted').textContent =
    `${found.length.toLocaleString('en')} trees` +
    (found.length > MOST_LISTED ? `, the first ${MOST_LISTED} are listed: search for others` : '');
}

// --- the viewer ---

const viewer = $('#viewer'),
  canvas = $('#tree');
const view = new TreeView(canvas, tell);
let matches = [],
  match = -1,
  playing = 0,
  opener = null,
  opened = 0; // how often a tree was asked for: the last one asked for is shown

async function open(name, node) {
  const begun = performance.now(),
    turn = ++opened;
  opener = opener ?? document.activeElement;
  viewer.hidden = false;
  document.body.classList.add('viewing');
  $('#trouble').hidden = true;
  try {
    if (viewer.dataset.name !== name) {
      const loaded = await load(name);
      if (turn !== opened) return;
      stop();
      $('#query').value = '';
      $('#hits').textContent = '';
      view.open(loaded);
      setUp(loaded);
      viewer.dataset.name = name;
      requestAnimationFrame(() => {
        viewer.dataset.drawn = (performance.now() - begun).toFixed(1);
      });
    }
  } catch (error) {
    if (turn !== opened) return;
    viewer.dataset.name = '';
    view.tree = null;
    $('#question').textContent = $('#panel').textContent = $('#kinds').textContent = '';
    $('#trouble').hidden = false;
    $('#trouble').textContent = `This tree cannot be shown: ${error.message}.`;
    return;
  }
  view.select(clamp(node || 0, 0, view.tree.n - 1), node > 0);
  canvas.focus({preventScroll: true});
}

function close() {
  opened++;
  stop();
  viewer.hidden = true;
  document.body.classList.remove('viewing');
  if (location.hash.startsWith('#tree=')) location.hash = 'trees';
  opener?.focus?.({preventScroll: true});
  opener = null;
}

function follow() {
  const [, name, node] = location.hash.match(/^#tree=([^/]+)(?:\/(\d+))?$/) ?? [];
  if (name) open(decodeURIComponent(name), +(node ?? 0));
  else if (!viewer.hidden) close();
}

function setUp(tree) {
  $('#question').textContent = tree.question;
  const counts = {};
  for (let i = 1; i < tree.n; i++) counts[tree.kind[i]] = (counts[tree.kind[i]] ?? 0) + 1;
  $('#kinds').innerHTML = Object.entries(KINDS)
    .filter(([kind]) => kind !== 'inner' && counts[kind])
    .map(
      ([kind, {text}], i) =>
        `<label class="chip ${kind}" title="key ${i + 1}"><input type="checkbox" checked data-kind="${kind}">` +
        `<span>${text} ${counts[kind].toLocaleString('en')}</span></label>`,
    )
    .join('');
  const scored = tree.score.some((x) => x !== null);
  $('#by').hidden = !scored;
  $('#by').value = view.by = 'q';
  const slider = $('#rollout');
  slider.max = tree.rollouts.length;
  slider.value = slider.max;
  $('#replayed').textContent = `${tree.rollouts.length} rollouts`;
}

// --- what is told of a node ---

function facts(tree, i) {
  const said = [
    `<b>${tree.visits[i].toLocaleString('en')}</b> visit${tree.visits[i] === 1 ? '' : 's'}`,
  ];
  if (tree.visits[i]) said.push(`Q <b>${signed(tree.q[i])}</b>`);
  if (tree.score[i] !== null) said.push(`PPM <b>${signed(tree.score[i])}</b>`);
  return said.join(' · ');
}

function badge(tree, i) {
  const kind = tree.kind[i];
  if (kind === 'inner') return '';
  const text = tree.answers[i]
    ? `${KINDS[kind].text}: ${tree.answers[i]}`
    : kind === 'error'
      ? ending(tree, i)
      : KINDS[kind].text;
  return `<span class="badge ${kind}">${escaped(text)}</span>`;
}

function tell(i) {
  const {tree} = view,
    path = [];
  for (let j = i; j > 0; j = tree.parent[j]) path.unshift(j);
  const steps = path.map((j, k) => {
    const failed = tree.failed[j] ? 'error' : 'output';
    const output =
      tree.outputs[j] &&
      `<pre class="output ${failed}"><b>${failed}</b>${escaped(tree.outputs[j])}</pre>`;
    const head = `<span class="count">${k + 1}</span> ${tree.answers[j] ? 'Answer' : escaped(heading(tree, j))}`;
    const body = `<p class="facts">${facts(tree, j)} ${badge(tree, j)}</p>${paintedStep(tree.texts[j])}${output}`;
    return j === i
      ? `<section class="here"><h3>${head}</h3>${body}</section>`
      : `<details><summary data-node="${j}">${head}</summary>${body}</details>`;
  });
  const why =
    i &&
    (ENDS[tree.status[i]] ??
      (tree.kind[i] === 'unexpanded' ? 'The search never expanded it.' : ''));
  const below = tree.children[i].map(
    (j) =>
      `<button class="child" data-node="${j}"><span class="dot ${tree.kind[j]}"></span>` +
      `<span class="q">${escaped(label(tree, j))}</span><span class="facts">${facts(tree, j)}</span></button>`,
  );
  $('#panel').innerHTML =
    (i === 0
      ? `<section class="here"><h3>The problem</h3><p>${escaped(tree.question)}</p><p class="facts">${facts(tree, 0)}</p>
       <p>${tree.truth ? `Right answer: <b>${escaped(tree.truth)}</b><br>` : ''}${
         tree.best < 0
           ? 'The search found no answer.'
           : `Answer of the search: <button class="link" data-node="${tree.best}">${escaped(tree.answers[tree.best])}</button>`
       }</p></section>`
      : steps.join('') +
        (why
          ? `<p class="why">${why}${i === tree.best ? ' It is the answer of the search.' : ''}</p>`
          : '')) +
    (below.length
      ? `<h4>${below.length} next step${below.length > 1 ? 's' : ''}</h4>${below.join('')}`
      : '');
  const here = $('#panel .here');
  $('#panel').scrollTop = here.offsetTop > 90 ? here.offsetTop - 12 : 0;
  $('#said').textContent = `Node ${i} of ${tree.n}, depth ${tree.depth[i]}: ${label(tree, i)}`;
}

$('#panel').addEventListener('click', (event) => {
  const node = event.target.closest('[data-node]:not(summary)')?.dataset.node;
  if (node) view.select(+node, true);
});

// --- search, filters, colours ---

function search() {
  const words = $('#query').value.trim().toLowerCase(),
    {tree} = view;
  matches = [];
  if (words) {
    for (const i of view.order) {
      if (i && `${tree.texts[i]}\n${tree.outputs[i]}`.toLowerCase().includes(words))
        matches.push(i);
    }
  }
  match = -1;
  view.matches = new Set(matches);
  $('#hits').textContent = words ? `${matches.length} found` : '';
  view.draw();
}

function nextMatch(step) {
  if (!matches.length) return;
  match = (match + step + matches.length + (match < 0 && step < 0 ? 1 : 0)) % matches.length;
  $('#hits').textContent = `${match + 1} of ${matches.length}`;
  view.select(matches[match], true);
}

$('#query').addEventListener('input', search);
$('#query').addEventListener('keydown', (event) => {
  if (event.key === 'Enter') nextMatch(event.shiftKey ? -1 : 1);
  else if (event.key === 'Escape') canvas.focus();
  else return;
  event.preventDefault();
  event.stopPropagation();
});
$('#kinds').addEventListener('change', (event) => {
  const {kind} = event.target.dataset;
  if (event.target.checked) view.hidden.delete(kind);
  else view.hidden.add(kind);
  view.layout();
  view.fit();
  search();
});
$('#by').addEventListener('change', (event) => {
  view.by = event.target.value;
  view.draw();
});

// --- replay ---

function replay(count) {
  const {tree} = view,
    all = tree.rollouts.length;
  count = clamp(count, 1, all);
  $('#rollout').value = count;
  const rollout = tree.rollouts[count - 1],
    so = {right: 0, wrong: 0, answer: 0};
  for (let i = 1; i < rollout.end; i++) if (tree.kind[i] in so) so[tree.kind[i]]++;
  view.upTo = count - 1;
  $('#replayed').textContent =
    `rollout ${count} of ${all}: ${rollout.end - rollout.start} new steps; so far ` +
    (so.answer ? `${so.answer} answers` : `${so.right} right, ${so.wrong} wrong`);
  view.draw();
}

function whole() {
  stop();
  view.upTo = null;
  $('#rollout').value = view.tree.rollouts.length;
  $('#replayed').textContent = `${view.tree.rollouts.length} rollouts`;
  view.draw();
}

function stop() {
  clearInterval(playing);
  playing = 0;
  $('#play').textContent = '▶';
}

function play() {
  if (playing) {
    stop();
    return;
  }
  const all = view.tree.rollouts.length;
  if (!all) return;
  let count = view.upTo === null || view.upTo + 1 >= all ? 0 : view.upTo + 1;
  $('#play').textContent = '❚❚';
  const turn = () => {
    replay(++count);
    if (count >= all) stop();
  };
  playing = setInterval(turn, clamp(8000 / all, 120, 900));
  turn();
}

$('#play').addEventListener('click', play);
$('#rollout').addEventListener('input', (event) => {
  stop();
  replay(+event.target.value);
});

// --- keys and buttons ---

const ACTIONS = {
  '+': () => view.zoom(1.4),
  '=': () => view.zoom(1.4),
  '-': () => view.zoom(1 / 1.4),
  f: () => {
    view.fit();
  },
  b: () => view.tree.best >= 0 && view.select(view.tree.best, true),
  n: () => nextMatch(1),
  N: () => nextMatch(-1),
  '/': () => $('#query').focus(),
  p: play,
  ',': () => {
    stop();
    replay(view.upTo ?? view.tree.rollouts.length);
  },
  '.': () => {
    stop();
    replay((view.upTo ?? -1) + 2);
  },
  a: whole,
  '?': () => {
    $('#keys').hidden = !$('#keys').hidden;
  },
  Enter: () => {
    $('#panel').focus();
  },
  Escape: () => {
    if ($('#keys').hidden) close();
    else $('#keys').hidden = true;
  },
};

viewer.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches('input[type=search], input[type=range], select');
  if (typing && event.key !== 'Escape') return;
  if (!view.tree && event.key !== 'Escape') return;
  if (event.key.startsWith('Arrow') && event.target === canvas)
    view.select(view.neighbour(event.key), true);
  else if (event.key === 'Enter' && event.target !== canvas) return;
  else if (/^[1-5]$/.test(event.key)) $('#kinds').children[event.key - 1]?.click();
  else if (ACTIONS[event.key]) ACTIONS[event.key]();
  else return;
  event.preventDefault();
});
viewer.addEventListener('click', (event) => {
  const key = event.target.closest('[data-key]')?.dataset.key;
  if (key && (view.tree || key === 'Escape')) ACTIONS[key]();
});
for (const id of ['find', 'source', 'solved']) $('#' + id)?.addEventListener('input', showList);
for (const step of document.querySelectorAll('[data-step]'))
  step.innerHTML = paintedStep(step.dataset.step);
// In a notebook the page lies in another one, to which its own links would lead.
addEventListener('click', (event) => {
  const link = event.target.closest('a[href^="#"]');
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  location.hash = link.getAttribute('href');
});
addEventListener('hashchange', follow);
addEventListener('popstate', follow);
