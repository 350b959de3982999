'use strict';
// A tree as it is told (by trees.py), and what there is to say of its nodes.
//
//   told --prepare--> tree with children, kinds, rollouts
//   text of a step --paintedStep--> HTML

const KINDS = {
  right: {text: 'right', colour: '--green', sign: '✓'},
  wrong: {text: 'wrong', colour: '--red', sign: '✗'},
  answer: {text: 'answer', colour: '--blue', sign: ''},
  error: {text: 'errors', colour: '--amber', sign: '!'},
  unexpanded: {text: 'not expanded', colour: '--paper', sign: ''},
  inner: {text: '', colour: '--muted', sign: ''},
};
const ENDS = {
  ANSWER: 'It gives an answer.',
  CODE_ERRORS: 'Ended: too many steps in a row whose code failed.',
  TOO_DEEP: 'Ended: the solution has too many steps, or too many tokens.',
  UNPARSABLE: 'Ended: the policy wrote no step, or the same again and again.',
  EXHAUSTED: 'Everything below it has ended.',
};
const MARKS = /(<(?:code|end_of_step|end_of_code|output|end_of_output|answer|end_of_answer)>)/;
const PYTHON = new RegExp(
  [
    /(?<comment>#[^\n]*)/,
    /(?<string>[rbf]*(?:'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*"))/,
    /\b(?<number>\d[\w.]*)/,
    /\b(?<word>and|as|assert|break|class|continue|def|del|elif|else|except|finally|for|from|global|if|import|in|is|lambda|not|or|pass|raise|return|try|while|with|yield|None|True|False)\b/,
    /\b(?<call>[A-Za-z_]\w*)(?=\()/,
  ]
    .map((part) => part.source)
    .join('|'),
  'g',
);

const escaped = (text) => String(text).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
const signed = (x) => (x < 0 ? '−' : '+') + Math.abs(x).toFixed(2);
const clamp = (x, low, high) => Math.min(high, Math.max(low, x));

function paintedCode(code) {
  let html = '',
    at = 0;
  for (const match of code.matchAll(PYTHON)) {
    const kind = Object.keys(match.groups).find((name) => match.groups[name] !== undefined);
    html += escaped(code.slice(at, match.index)) + `<i class="${kind}">${escaped(match[0])}</i>`;
    at = match.index + match[0].length;
  }
  return html + escaped(code.slice(at));
}

// A step as HTML: its code coloured, what the executor wrote and the answer set apart.
function paintedStep(text) {
  let mode = 'code',
    html = '';
  for (const part of text.split(MARKS)) {
    if (MARKS.test(part)) {
      if (part === '<output>') mode = 'output';
      else if (part === '<answer>' || part === '<end_of_code>') mode = 'prose';
      else if (part === '<code>') mode = 'code';
      else if (part === '<end_of_output>') mode = 'prose';
    } else if (part.trim()) {
      const body = part.replace(/^\n+|\s+$/g, '');
      if (mode === 'output') html += `<pre class="output"><b>output</b>${escaped(body)}</pre>`;
      else if (mode === 'prose') html += `<p class="prose">${escaped(body)}</p>`;
      else html += `<pre class="code">${paintedCode(body)}</pre>`;
    }
  }
  return html;
}

function prepare(told) {
  const n = told.parent.length;
  const children = Array.from({length: n}, () => []);
  for (let i = 1; i < n; i++) children[told.parent[i]].push(i);
  const kind = [],
    depth = new Int32Array(n),
    leads = new Uint8Array(n),
    onBest = new Uint8Array(n);
  for (let i = 0; i < n; i++) {
    const status = told.status[i];
    if (i) depth[i] = depth[told.parent[i]] + 1;
    kind[i] =
      status === 'ANSWER'
        ? ['answer', 'wrong', 'right'][told.right[i] + 1]
        : ['CODE_ERRORS', 'TOO_DEEP', 'UNPARSABLE'].includes(status)
          ? 'error'
          : children[i].length || i === 0
            ? 'inner'
            : 'unexpanded';
  }
  for (let i = n - 1; i > 0; i--) {
    if (kind[i] === 'right') leads[i] = 1;
    if (leads[i]) leads[told.parent[i]] = 1;
  }
  for (let i = told.best; i >= 0; i = told.parent[i]) onBest[i] = 1;
  return {...told, n, children, kind, depth, leads, onBest, rollouts: rolloutsOf(told.parent)};
}

// Nodes are numbered as they were made, and a rollout goes on from a child that it has just made.
// One that made nothing (its walk ended at once) leaves no trace.
function rolloutsOf(parent) {
  const found = [];
  for (let i = 1, first = 0; i < parent.length;) {
    let end = i;
    while (end < parent.length && parent[end] === parent[i]) end++;
    const last = found[found.length - 1];
    if (last && parent[i] >= first && parent[i] < i) [last.end, last.from] = [end, parent[i]];
    else found.push({start: i, end, from: parent[i]});
    [first, i] = [i, end];
  }
  return found;
}

// What is written beside a node: how it ended, or what it does.
function label(tree, i) {
  if (i === 0) return 'question';
  const kind = tree.kind[i];
  if (tree.answers[i]) return `${KINDS[kind].sign} ${tree.answers[i]}`.trim();
  return kind === 'error' ? `! ${ending(tree, i)}` : heading(tree, i);
}

const ending = (tree, i) => tree.status[i].toLowerCase().replaceAll('_', ' ');

// The first line that tells something: a step's comment, or its code.
function heading(tree, i) {
  const lines = tree.texts[i]
    .split(MARKS)
    .filter((part) => !MARKS.test(part))
    .join('\n')
    .split('\n');
  const line = lines.find((text) => text.trim()) || '';
  return line.replace(/^\s*#\s*(Step \d+:?\s*)?/i, '').trim() || 'step';
}
