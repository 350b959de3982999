'use strict';
// A search tree on a canvas: depth goes across, leaves go down. Zooming scales the distances between
// nodes, never the marks and texts, so that thousands of nodes and three are drawn the same way.
//
//   tree --layout--> which nodes are shown, and their rows --paint--> edges, nodes, labels

const READABLE = 12; // pixels between rows from which on there are texts
const LETTER = 5.9; // pixels, on average

class TreeView {
  // canvas: drawn on; chosen(i): called with a node that the reader picks.
  constructor(canvas, chosen) {
    Object.assign(this, {canvas, chosen, tree: null, node: 0, hover: -1, matches: new Set()});
    this.context = canvas.getContext('2d');
    this.hidden = new Set();
    this.by = 'q';
    this.upTo = null; // the rollout that is replayed
    this.listen();
    new ResizeObserver(() => this.tree && this.resized()).observe(canvas);
    matchMedia('(prefers-color-scheme: dark)').addEventListener(
      'change',
      () => this.tree && this.draw(),
    );
  }

  open(tree) {
    Object.assign(this, {tree, node: 0, hover: -1, matches: new Set(), upTo: null});
    this.hidden.clear();
    this.size();
    this.layout();
    this.fit();
  }

  size() {
    const ratio = devicePixelRatio || 1,
      {clientWidth: w, clientHeight: h} = this.canvas;
    [this.w, this.h, this.ratio] = [w, h, ratio];
    [this.canvas.width, this.canvas.height] = [Math.round(w * ratio), Math.round(h * ratio)];
  }

  resized() {
    const [w, h] = [this.w, this.h];
    this.size();
    this.ox += (this.w - w) / 2;
    this.oy += (this.h - h) / 2;
    this.draw();
  }

  // Which nodes are shown (those of a kind that is not hidden, and all above them), and their rows.
  layout() {
    const {tree, hidden} = this,
      shown = new Uint8Array(tree.n),
      row = new Float32Array(tree.n);
    shown[0] = 1;
    for (let i = tree.n - 1; i > 0; i--) {
      if (tree.kind[i] !== 'inner' && !hidden.has(tree.kind[i])) shown[i] = 1;
      if (shown[i]) shown[tree.parent[i]] = 1;
    }
    const order = [],
      stack = [0];
    while (stack.length) {
      const i = stack.pop();
      order.push(i);
      for (let j = tree.children[i].length - 1; j >= 0; j--) {
        if (shown[tree.children[i][j]]) stack.push(tree.children[i][j]);
      }
    }
    let rows = 0;
    const first = new Float32Array(tree.n).fill(-1),
      last = new Float32Array(tree.n);
    this.shown = shown;
    for (const i of order) if (this.isLeaf(i)) row[i] = first[i] = last[i] = rows++;
    for (let k = order.length - 1; k > 0; k--) {
      const i = order[k],
        above = tree.parent[i];
      row[i] = (first[i] + last[i]) / 2;
      if (first[above] < 0 || row[i] < first[above]) first[above] = row[i];
      last[above] = Math.max(last[above], row[i]);
    }
    row[0] = (first[0] + last[0]) / 2;
    Object.assign(this, {row, order, rows: Math.max(1, rows)});
  }

  fit() {
    const {w, h, rows, tree} = this;
    this.rh = clamp((h - 60) / rows, 0.02, 34);
    // Columns as wide as they can be with the texts beside the last nodes in view.
    const leaves = this.order.filter((i) => i && this.isLeaf(i)),
      text = (i) => (this.rh < READABLE ? 0 : Math.min(this.width(i), 0.3 * w));
    const widest = leaves.map((i) => (w - 60 - text(i)) / tree.depth[i]);
    this.cw = clamp(Math.min(...widest), 22, 210);
    const ends = leaves.map((i) => this.cw * tree.depth[i] + text(i));
    this.ox = clamp((w - Math.max(...ends)) / 2, 24, 160);
    this.least = this.rh;
    this.oy = (h - this.rh * (rows - 1)) / 2;
    this.draw();
  }

  // Whether nothing that is shown is below a node.
  isLeaf(i) {
    return !this.tree.children[i].some((j) => this.shown[j]);
  }

  // Pixels that the text beside a last node takes.
  width(i) {
    return Math.min(170, 20 + LETTER * label(this.tree, i).length);
  }

  zoom(factor, x = this.w / 2, y = this.h / 2) {
    const cw = clamp(this.cw * factor, 18, 260),
      rh = clamp(this.rh * factor, 0.5 * this.least, 44);
    this.ox = x - ((x - this.ox) * cw) / this.cw;
    this.oy = y - ((y - this.oy) * rh) / this.rh;
    [this.cw, this.rh] = [cw, rh];
    this.draw();
  }

  place(i) {
    return [this.ox + this.tree.depth[i] * this.cw, this.oy + this.row[i] * this.rh];
  }

  // Brings a node into view, where it is not, and large enough to read what is around it.
  reveal(i) {
    if (!this.shown[i]) return;
    if (this.rh < 14) this.rh = 18;
    if (this.cw < 60) this.cw = Math.min(120, Math.max(60, this.w / 4));
    const [x, y] = this.place(i);
    if (x < 30 || x > this.w - Math.min(this.width(i), 0.4 * this.w)) this.ox += 0.4 * this.w - x;
    if (y < 40 || y > this.h - 40) this.oy += 0.5 * this.h - y;
    this.draw();
  }

  select(i, reveal) {
    this.node = i;
    if (reveal) this.reveal(i);
    else this.draw();
    this.chosen(i);
  }

  colours() {
    const style = getComputedStyle(this.canvas),
      found = {};
    for (const name of ['ink', 'muted', 'line', 'paper', 'blue', 'green', 'red', 'amber', 'card']) {
      found['--' + name] = style.getPropertyValue('--' + name).trim();
    }
    return found;
  }

  // A node's colour: that of its kind; what lies on the way, by its value from red over grey to green.
  fill(i, colour) {
    const {tree, by} = this;
    if (tree.kind[i] !== 'inner') return colour[KINDS[tree.kind[i]].colour];
    const value = by === 'score' ? tree.score[i] : tree.visits[i] ? tree.q[i] : null;
    if (value === null || i === 0) return colour['--muted'];
    return `color-mix(in oklab, ${colour[value < 0 ? '--red' : '--green']} ${Math.round(100 * Math.min(1, Math.abs(value)))}%, ${colour['--paper']})`;
  }

  draw() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      if (this.tree) this.paint();
    });
  }

  paint() {
    const {context: c, tree, w, h, rh} = this,
      colour = this.colours();
    c.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    c.clearRect(0, 0, w, h);
    const rollout = this.upTo === null ? null : tree.rollouts[this.upTo];
    const born = rollout ? rollout.end : tree.n,
      fresh = rollout ? rollout.start : tree.n;
    const onWalk = new Set();
    if (rollout) for (let i = rollout.from; i >= 0; i = tree.parent[i]) onWalk.add(i);
    this.paintEdges(colour, born, fresh, onWalk);
    const visible = [];
    for (const i of this.order) {
      const [x, y] = this.place(i);
      if (x < -20 || x > w + 20 || y < -20 || y > h + 20) continue;
      visible.push(i);
      c.globalAlpha = i < born ? 1 : 0.1;
      this.paintNode(i, x, y, colour);
    }
    c.globalAlpha = 1;
    if (rh >= READABLE) this.paintLabels(visible, colour, born);
  }

  paintEdges(colour, born, fresh, onWalk) {
    const {context: c, tree, w, h, cw} = this,
      groups = new Map();
    const to = (key) => {
      if (!groups.has(key)) groups.set(key, new Path2D());
      return groups.get(key);
    };
    for (const i of this.order) {
      if (i === 0) continue;
      const [x, y] = this.place(i),
        [px, py] = this.place(tree.parent[i]);
      if (px > w || x < 0 || Math.max(y, py) < 0 || Math.min(y, py) > h) continue;
      const key =
        i >= born
          ? 'later'
          : onWalk.has(i)
            ? 'walked'
            : i >= fresh
              ? 'fresh'
              : fresh === tree.n && tree.onBest[i]
                ? 'best'
                : (tree.leads[i] ? 'leads' : 'other') +
                  Math.min(5, Math.floor(Math.log2(1 + tree.visits[i])));
      const path = to(key);
      path.moveTo(px, py);
      path.bezierCurveTo(px + 0.45 * cw, py, x - 0.45 * cw, y, x, y);
    }
    const rank = (key) =>
      ['later', 'other', 'leads', 'fresh', 'walked', 'best'].indexOf(key.replace(/\d/, ''));
    for (const [key, path] of [...groups].sort((a, b) => rank(a[0]) - rank(b[0]))) {
      const often = +key.slice(-1) || 0,
        strong = key === 'best' || key === 'walked';
      c.globalAlpha = key === 'later' ? 0.15 : 1;
      c.lineWidth = strong ? 3 : 0.8 + 0.35 * often;
      c.strokeStyle =
        strong || key === 'fresh'
          ? colour['--blue']
          : key.startsWith('leads')
            ? `color-mix(in oklab, ${colour['--green']} 60%, ${colour['--line']})`
            : `color-mix(in oklab, ${colour['--paper']} 55%, ${colour['--line']})`;
      c.stroke(path);
    }
    c.globalAlpha = 1;
  }

  paintNode(i, x, y, colour) {
    const {context: c, tree, rh} = this,
      kind = tree.kind[i];
    const r = clamp(2.6 + 0.6 * Math.log2(1 + tree.visits[i]), 2.6, 8) * clamp(rh / 9, 0.35, 1);
    c.fillStyle = this.fill(i, colour);
    c.beginPath();
    if (kind === 'error') {
      c.moveTo(x, y - 1.2 * r);
      c.lineTo(x + 1.2 * r, y + r);
      c.lineTo(x - 1.2 * r, y + r);
    } else if (kind === 'wrong') {
      c.rect(x - 0.9 * r, y - 0.9 * r, 1.8 * r, 1.8 * r);
    } else c.arc(x, y, kind === 'right' || i === 0 ? 1.25 * r : r, 0, 2 * Math.PI);
    if (kind === 'unexpanded') {
      c.strokeStyle = c.fillStyle;
      c.fillStyle = colour['--card'];
      c.lineWidth = 1.2;
      c.fill();
      c.stroke();
    } else c.fill();
    const ring =
      i === this.node
        ? colour['--ink']
        : this.matches.has(i)
          ? colour['--amber']
          : i === this.hover
            ? colour['--muted']
            : null;
    if (ring) {
      c.beginPath();
      c.arc(x, y, r + 4, 0, 2 * Math.PI);
      c.strokeStyle = ring;
      c.lineWidth = 2;
      c.stroke();
    }
  }

  paintLabels(visible, colour, born) {
    const {context: c, tree, cw, w} = this;
    c.font = '11.5px system-ui, sans-serif';
    c.lineJoin = 'round';
    c.lineWidth = 3.5;
    c.strokeStyle = colour['--card'];
    for (const i of visible) {
      const [x, y] = this.place(i),
        leaf = this.isLeaf(i);
      const room = leaf ? Math.max(cw - 22, Math.min(260, w - x - 14)) : cw - 22;
      const most = Math.floor(room / LETTER);
      if (most < 6 || i >= born) continue;
      let text = label(tree, i);
      if (text.length > most) text = text.slice(0, most - 1) + '…';
      const [tx, ty] = leaf ? [x + 11, y + 4] : [x + 6, y - 8];
      c.fillStyle = ['right', 'wrong', 'error'].includes(tree.kind[i])
        ? colour[KINDS[tree.kind[i]].colour]
        : colour[tree.onBest[i] || i === this.node ? '--ink' : '--muted'];
      c.strokeText(text, tx, ty);
      c.fillText(text, tx, ty);
    }
  }

  nearest(x, y, within = 16) {
    let found = -1,
      least = within * within;
    for (const i of this.order) {
      const [nx, ny] = this.place(i),
        far = (nx - x) ** 2 + (ny - y) ** 2;
      if (far < least) [found, least] = [i, far];
    }
    return found;
  }

  listen() {
    const {canvas} = this,
      held = new Map();
    let moved = 0,
      spread = 0;
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    canvas.addEventListener('pointerdown', (event) => {
      canvas.setPointerCapture(event.pointerId);
      held.set(event.pointerId, at(event));
      moved = spread = 0;
    });
    canvas.addEventListener('pointermove', (event) => {
      if (!this.tree) return;
      const [x, y] = at(event),
        before = held.get(event.pointerId);
      if (!before) {
        const i = this.nearest(x, y);
        canvas.style.cursor = i < 0 ? 'grab' : 'pointer';
        if (i !== this.hover) {
          this.hover = i;
          this.draw();
        }
        return;
      }
      held.set(event.pointerId, [x, y]);
      moved += Math.abs(x - before[0]) + Math.abs(y - before[1]);
      if (held.size === 2) {
        const [[ax, ay], [bx, by]] = held.values(),
          now = Math.hypot(ax - bx, ay - by);
        if (spread) this.zoom(now / spread, (ax + bx) / 2, (ay + by) / 2);
        spread = now;
      } else if (moved > 4) {
        this.ox += x - before[0];
        this.oy += y - before[1];
        this.draw();
      }
    });
    const up = (event) => {
      const single = held.size === 1 && held.delete(event.pointerId);
      held.delete(event.pointerId);
      if (single && moved <= 4 && event.type === 'pointerup') {
        const i = this.nearest(...at(event));
        if (i >= 0) this.select(i);
      }
    };
    canvas.addEventListener('pointerup', up);
    canvas.addEventListener('pointercancel', up);
    canvas.addEventListener('dblclick', (event) => this.zoom(1.8, ...at(event)));
    canvas.addEventListener(
      'wheel',
      (event) => {
        event.preventDefault();
        const lines = event.deltaMode === 1 ? 16 : 1;
        this.zoom(Math.exp(-event.deltaY * lines * 0.0022), ...at(event));
      },
      {passive: false},
    );
  }

  // Where an arrow key leads to.
  neighbour(key) {
    const {tree, node, shown} = this;
    if (key === 'ArrowLeft') return node ? tree.parent[node] : node;
    if (key === 'ArrowRight') {
      const below = tree.children[node].filter((i) => shown[i]);
      return (
        below.find((i) => tree.onBest[i]) ??
        below.sort((a, b) => tree.visits[b] - tree.visits[a])[0] ??
        node
      );
    }
    const level = this.order.filter((i) => tree.depth[i] === tree.depth[node]);
    return level[level.indexOf(node) + (key === 'ArrowDown' ? 1 : -1)] ?? node;
  }
}
