// The strip: every token, painted by surprise, with the prediction under it. Cells are made once and kept: a token that
// comes costs one cell, however long the run is.

import { byId, el, fill, milliseconds, percent, piece, pieceNodes, pieceText } from './dom.js';
import { place, shown } from './state.js';

const BLOCK = 128; // cells a block; blocks out of sight are not laid out (content-visibility)
const BOUNDS = [0.7, 0.4, 0.2, 0.08, 0.02]; // probability: at or above the first, nothing is painted
export const NEAR = 0.1;

/** How surprised the model was, 0 to 5: nothing at all for what it expected. */
export function surprise(probability) {
  if (probability === null || probability === undefined) return 0;
  const level = BOUNDS.findIndex((bound) => probability >= bound);
  return level < 0 ? BOUNDS.length : level;
}

/** What was known of a token before it came: its step, or the reading before it. */
function knownOf(run, at) {
  const step = run.steps[at - run.promptLength];
  if (step) {
    return { probability: Math.exp(step.logprob), rank: step.rank, forced: step.forced, near: step.margin !== null && step.margin < NEAR, step };
  }
  const actual = run.readings[at - 1]?.actual;
  return actual ? { probability: Math.exp(actual.logprob), rank: actual.rank, forced: false, near: false } : null;
}

function saidAfter(run, at) {
  return run.readings[at]?.predicted ?? run.steps[at + 1 - run.promptLength]?.top[0] ?? null;
}

function titleOf(token, at, known) {
  const own = `token ${at}, id ${token.id}`;
  return known ? `${own}; probability ${known.probability}, rank ${known.rank}` : own;
}

function makeCell(run, at) {
  const token = run.tokens[at];
  const known = knownOf(run, at);
  const cell = el('span', { class: 'cell', role: 'option', id: `token-${at}`, 'data-at': String(at), 'aria-selected': 'false' });
  const phase = at < run.promptLength ? 'prompt' : 'continuation';
  cell.classList.add(phase);
  cell.dataset.surprise = String(surprise(known?.probability));
  if (known?.forced) cell.classList.add('forced');
  if (known?.near) cell.classList.add('near');
  if (at === run.promptLength) cell.classList.add('first');
  cell.title = titleOf(token, at, known);
  cell.setAttribute('aria-label', `${pieceText(token)}, ${phase}${known ? `, ${percent(known.probability)}` : ''}`);
  const said = saidAfter(run, at);
  cell.append(piece(token), el('span', { class: 'id', text: String(token.id) }), saidNode(said, at));
  if (token.text.includes('\n')) cell.classList.add('ends-line');
  return cell;
}

function saidNode(said, at) {
  const node = el('bdi', { class: 'said', 'data-after': String(at + 1), dir: 'ltr' });
  if (said) node.append(...pieceNodes(said));
  return node;
}

/** What a cell shows, as one value: it is made anew only when this changes. */
function keyOf(run, at) {
  const said = saidAfter(run, at);
  return [run.tokens[at], run.steps[at - run.promptLength], run.readings[at - 1], said, at < run.promptLength, at === run.promptLength];
}

const isSame = (one, other) => one?.every((value, index) => value === other[index]);

export class Strip {
  constructor(store, controller) {
    this.store = store;
    this.node = byId('strip');
    this.phase = byId('phase');
    this.cells = [];
    this.keys = [];
    this.marked = { at: -1, count: 0 };
    this.listen(controller);
    this.legend();
  }

  legend() {
    const swatches = ['≥70 %', '', '', '', '', '<2 %'].map((text, level) => el('span', { class: 'swatch', 'data-surprise': String(level), text }));
    byId('legend').append('surprise ', ...swatches);
  }

  listen(controller) {
    const { node, store } = this;
    const placeOf = (event) => {
      const said = event.target.closest('.said');
      const cell = event.target.closest('.cell');
      return said?.childNodes.length ? Number(said.dataset.after) : cell ? Number(cell.dataset.at) : null;
    };
    node.addEventListener('pointermove', (event) => this.point(placeOf(event), event.target.closest('.said')));
    node.addEventListener('pointerleave', () => this.point(null));
    node.addEventListener('click', (event) => {
      const at = placeOf(event);
      if (at === null) return;
      const { length } = shown(store.state).tokens;
      store.put({ at: Math.max(1, Math.min(at, length)), isWhatIf: false });
      controller.peek(store.state.current, at);
    });
    node.addEventListener('dblclick', (event) => {
      const cell = event.target.closest('.cell');
      if (cell) this.onEdit?.(Number(cell.dataset.at));
    });
    this.listenToDrags(controller);
  }

  /** The caret can be taken hold of and pulled back over the tokens: letting go rewinds to there. */
  listenToDrags(controller) {
    const { node, store } = this;
    node.addEventListener('pointerdown', (event) => {
      if (!event.target.closest('.caret')) return;
      event.preventDefault();
      this.isDragging = true;
      node.setPointerCapture(event.pointerId);
    });
    node.addEventListener('pointermove', (event) => {
      if (!this.isDragging) return;
      const cell = document.elementFromPoint(event.clientX, event.clientY)?.closest?.('.cell');
      if (cell) store.put({ hover: Number(cell.dataset.at) });
    });
    node.addEventListener('pointerup', () => {
      if (!this.isDragging) return;
      this.isDragging = false;
      const to = store.state.hover;
      store.put({ hover: null });
      if (to !== null) controller.rewindTo(to);
    });
  }

  point(at, said) {
    if (this.isDragging || at === this.store.state.hover) return;
    this.store.put({ hover: at === 0 ? 1 : at });
    if (said) this.store.dispatch({ event: 'done', what: 'read' });
  }

  render(state) {
    const run = shown(state);
    this.node.classList.toggle('ids', state.showsIds);
    if (!run) return;
    const grew = this.renderCells(run);
    this.renderCaret(run);
    this.mark(state, run);
    if (grew && state.at === null && state.hover === null) this.node.scrollTop = this.node.scrollHeight;
    fill(this.phase, phaseKey(run), () => phaseNodes(run));
  }

  /** Bring cells up to date: only those whose token or numbers changed are made. Says whether there are more now. */
  renderCells(run) {
    const before = this.cells.length;
    if (this.runName !== run.name && this.runName !== undefined) this.first = 0;
    this.runName = run.name;
    // Only the end changes as a run grows; a change further up (readings, another run) shows in the lists themselves.
    const isGrown = this.tokensOf === run.promptLength && this.readings === run.readings && isPrefix(this.steps, run.steps);
    const from = isGrown ? Math.max(0, Math.min(before, run.tokens.length) - 2) : 0;
    for (let at = from; at < run.tokens.length; at += 1) this.renderCell(run, at);
    while (this.cells.length > run.tokens.length) this.cells.pop().remove();
    this.keys.length = this.cells.length;
    for (const block of [...this.node.children]) if (!block.childElementCount) block.remove();
    Object.assign(this, { tokensOf: run.promptLength, readings: run.readings, steps: run.steps });
    return this.cells.length > before;
  }

  renderCell(run, at) {
    const key = keyOf(run, at);
    if (isSame(this.keys[at], key)) return;
    const cell = makeCell(run, at);
    if (this.cells[at]) this.cells[at].replaceWith(cell);
    else this.blockFor(at).append(cell);
    this.cells[at] = cell;
    this.keys[at] = key;
    this.marked.count = -1; // a new cell bears no mark yet
  }

  blockFor(at) {
    if (at % BLOCK === 0 || !this.node.lastElementChild) {
      this.node.lastElementChild?.classList.add('whole');
      const label = `tokens from ${at}`;
      this.node.append(el('div', { class: 'block', role: 'group', 'aria-label': label }));
    }
    return this.node.lastElementChild;
  }

  renderCaret(run) {
    this.caret ??= el('span', { class: 'caret', 'aria-hidden': 'true', title: 'pull back to rewind' });
    const canGrow = !run.finish;
    const last = this.node.lastElementChild;
    if (canGrow && last && last.lastElementChild !== this.caret) last.append(this.caret);
    if (!canGrow) this.caret.remove();
  }

  light(at, isPointed) {
    this.cells.forEach((cell, index) => {
      cell.classList.toggle('lit', isPointed && index < at);
      cell.classList.toggle('unread', isPointed && index > at);
    });
  }

  /** Light up what was read; the token at the place comes next, and all after it had not been there yet. */
  mark(state, run) {
    const at = place(state);
    const isPointed = state.hover !== null || state.at !== null;
    if (this.marked.at === at && this.isPointed === isPointed && this.marked.count === this.cells.length) return;
    if (isPointed || this.isPointed) this.light(at, isPointed);
    this.cells[this.marked.at]?.setAttribute('aria-selected', 'false');
    this.cells[at]?.setAttribute('aria-selected', 'true');
    if (this.cells[at]) this.node.setAttribute('aria-activedescendant', `token-${at}`);
    else this.node.removeAttribute('aria-activedescendant');
    this.marked = { at, count: this.cells.length };
    this.isPointed = isPointed;
    if (state.at !== null && state.hover === null && !run.isWalking) this.cells[at]?.scrollIntoView({ block: 'nearest' });
  }
}

/** Whether a list only grew at its end. */
function isPrefix(before, after) {
  return before === after || (before && after.length > before.length && before.at(-1) === after[before.length - 1]);
}

// The phases: the work of the prompt's pass, and how it shrinks.

function phaseKey(run) {
  const last = run.steps.at(-1);
  return JSON.stringify([run.name, run.prefill, run.steps.length, last?.seconds, run.note, run.promptLength]);
}

function passText(step) {
  const { positions_computed: computed, positions_reused: reused, phase } = step;
  const what = computed === 1 ? '1 position' : `${computed} positions in one pass`;
  return `${phase}: ${what}, cache ${reused} → ${reused + computed}`;
}

function passNode(step) {
  return el('span', {}, passText(step), el('small', { text: ` ${milliseconds(step.seconds)}` }));
}

function phaseNodes(run) {
  const [first, last] = [run.steps[0], run.steps.at(-1)];
  const nodes = [];
  if (first && first.phase === 'prefill') nodes.push(passNode(first));
  else if (run.prefill) nodes.push(el('span', { text: prefillText(run.prefill) }));
  if (last && last !== first) nodes.push(passNode(last));
  if (run.note) nodes.push(el('span', { class: 'note', text: noteText(run.note) }));
  return nodes;
}

function prefillText({ done, total, passes }) {
  if (done < total) return `prefill: ${done} of ${total} positions`;
  return `prefill: ${total} positions in ${passes === 1 ? 'one pass' : `${passes} passes`}, cache 0 → ${total}`;
}

function noteText({ op = 'change', computed, dropped, length }) {
  const left = `${Math.min(computed, length)} of ${length} positions stay in the cache`;
  return `${op}: ${dropped ? `${dropped} let go, ` : ''}${left}`;
}
