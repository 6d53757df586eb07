// The strip: every token, painted by surprise, with the prediction under it. Cells are made once and kept: a token that
// comes costs one cell, however long the run is.

import { byId, el, fill, made, milliseconds, percent, piece, pieceNodes, pieceText } from './dom.js';
import { isOfRecord, place, shown } from './state.js';

const BLOCK = 64; // cells a block; blocks out of sight are neither laid out nor painted (content-visibility)
const AT_ONCE = 160; // cells made in one frame: a long run that is opened fills the strip over several
const LONG = 24; // characters of a piece beyond which it may have to be clipped
const ROWS_A_PASS = 512; // the engine's max_rows: a prompt that is longer takes more than one pass
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
  if (token.text.length > LONG || said?.text.length > LONG) cell.classList.add('long');
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
    this.blocks = [];
    this.cells = [];
    this.keys = [];
    this.marked = { at: -1, count: 0 };
    this.listen(controller);
    this.legend();
  }

  legend() {
    const swatches = ['≥70 %', '', '', '', '', '<2 %'].map((text, level) => el('span', { class: 'swatch', 'data-surprise': String(level), text }));
    byId('legend').append(el('span', { text: 'surprise' }), ...swatches, made('measured', 'sampling/look.py', 'measure'));
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
      const run = shown(store.state);
      store.put({ at: Math.max(1, Math.min(at, run.tokens.length)), isWhatIf: false });
      if (at === run.promptLength) controller.did(event.target.closest('.said') ? 'all' : 'comma');
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
    node.addEventListener('pointercancel', () => { this.isDragging = false; store.put({ hover: null }); });
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
    if (said) this.store.dispatch({ event: 'done', what: at === shown(this.store.state)?.promptLength ? 'all' : 'read' });
  }

  render(state) {
    const run = shown(state);
    this.node.classList.toggle('ids', state.showsIds);
    byId('ids').setAttribute('aria-pressed', String(state.showsIds));
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
    // Only the end changes as a run grows; a change further up (readings, another run) shows in the lists themselves.
    const isGrown = this.tokensOf === run.promptLength && this.readings === run.readings && isPrefix(this.steps, run.steps);
    const from = isGrown ? Math.max(0, Math.min(before, run.tokens.length) - 2) : 0;
    const to = Math.min(run.tokens.length, before + AT_ONCE);
    this.shorten(run.tokens.length);
    for (let at = from; at < to; at += 1) this.renderCell(run, at);
    if (to < run.tokens.length) this.store.awaken();
    Object.assign(this, { tokensOf: run.promptLength, readings: run.readings, steps: run.steps });
    return this.cells.length > before;
  }

  /** Let go of the cells past this length, whole blocks first. */
  shorten(length) {
    while (this.blocks.length > Math.ceil(length / BLOCK)) this.blocks.pop().remove();
    for (const cell of this.cells.splice(length)) cell.remove();
    this.keys.length = this.cells.length;
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
    if (at % BLOCK === 0) {
      this.blocks.at(-1)?.classList.add('whole');
      this.blocks.push(el('div', { class: 'block', role: 'group', 'aria-label': `tokens from ${at}`, 'data-from': at ? String(at) : null }));
      this.node.append(this.blocks.at(-1));
    }
    return this.blocks.at(-1);
  }

  renderCaret(run) {
    this.caret ??= el('span', { class: 'caret', 'aria-hidden': 'true', title: 'pull back to rewind' });
    const isWhole = this.cells.length === run.tokens.length;
    const last = this.blocks.at(-1);
    if (!run.finish && isWhole && last && last.lastElementChild !== this.caret) last.append(this.caret);
    if (run.finish || !isWhole) this.caret.remove();
  }

  /** Before the place is lit, after it dimmed. Whole blocks are marked as such: pointing costs the same in any run. */
  light(at, isPointed) {
    this.blocks.forEach((block, index) => {
      const [start, end] = [index * BLOCK, Math.min(this.cells.length, (index + 1) * BLOCK)];
      const isMixed = isPointed && start <= at && at < end;
      block.classList.toggle('lit', isPointed && end <= at);
      block.classList.toggle('unread', isPointed && start > at);
      if (!isMixed && !block.byhandMixed) return;
      block.byhandMixed = isMixed;
      for (let place = start; place < end; place += 1) {
        this.cells[place].classList.toggle('lit', isMixed && place < at);
        this.cells[place].classList.toggle('unread', isMixed && place > at);
      }
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

/** What a pass did, in the run's own figures: positions computed, and those that were in the cache before. */
function passText(phase, computed, reused, passes) {
  const many = passes === 1 ? ' in one pass' : passes ? ` in ${passes} passes` : '';
  const what = computed === 1 ? '1 position' : `${computed} positions${many}`;
  const kept = phase === 'prefill' && reused ? `, ${reused} positions reused` : '';
  return `${phase}: ${what}, cache ${reused} → ${reused + computed}${kept}`;
}

function passNode(run, step, passes) {
  const text = passText(step.phase, step.positions_computed, step.positions_reused, passes);
  return el('span', {}, text, el('small', { text: ` ${milliseconds(step.seconds)}${isOfRecord(run, step) ? ' in the record' : ''}` }));
}

/** How many passes a first step took: counted where they were seen, else known only of what fits in one. */
function passesOf(run, step) {
  return run.prefill?.passes ?? (step.positions_computed <= ROWS_A_PASS ? 1 : null);
}

function phaseNodes(run) {
  const [first, last] = [run.steps[0], run.steps.at(-1)];
  const nodes = [];
  if (first) nodes.push(passNode(run, first, passesOf(run, first)));
  else if (run.prefill) nodes.push(...prefillNodes(run.prefill));
  if (last && last !== first) nodes.push(passNode(run, last, last.positions_computed <= ROWS_A_PASS ? 1 : null));
  if (run.note) nodes.push(el('span', { class: 'note', text: noteText(run.note) }));
  return nodes;
}

function prefillNodes({ done, total, passes, reused }) {
  if (done === total) return [el('span', { text: passText('prefill', total - reused, reused, passes) })];
  return [el('span', { text: `prefill: ${done} of ${total} positions ` }), el('progress', { max: total, value: done, 'aria-label': 'prefill' })];
}

function noteText({ op = 'change', computed, dropped, length }) {
  const left = `${Math.min(computed, length)} of ${length} positions stay in the cache`;
  return `${op}: ${dropped ? `${dropped} let go, ` : ''}${left}`;
}
