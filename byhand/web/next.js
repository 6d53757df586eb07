// The next token: who could come, before and after the chain, who was cut by what, and where the draw fell. Beside it,
// what had been read when that was said.

import { byId, el, fill, made, percent, piece, pieceText } from './dom.js';
import { distribution, NEAR_TIE } from './distribution.js';
import { place, shown } from './state.js';

const READ_ALOUD = 48; // tokens: more of the past is told as a number

function bar(kind, share) {
  const node = el('i', { class: `bar ${kind}` });
  node.style.width = `${Math.min(100, share * 100)}%`;
  return node;
}

function bars(row) {
  return el('span', { class: 'bars', 'aria-hidden': 'true' }, bar('raw', row.raw), bar(row.removedBy ? 'cut' : 'after', row.removedBy ? row.raw : row.after));
}

function verdict(row, found) {
  if (row.removedBy) return `cut by ${row.removedBy.replaceAll('_', ' ')}`;
  if (found.would && row.id === found.would.id && found.kind === 'what-if') return 'would be taken';
  if (!row.isChosen) return '';
  if (found.kind === 'reading') return `really next, #${row.rank}`;
  if (found.isGhost) return 'was taken';
  return found.forced ? `your choice, #${row.rank}` : 'taken';
}

function shares(row, found) {
  const hasChain = found.stages.length > 1 || found.kind === 'what-if';
  const title = `before the chain ${row.raw}, after it ${row.after}`;
  return el('span', { class: 'shares', title }, el('b', { text: percent(hasChain ? row.after : row.raw) }), hasChain ? el('small', { text: percent(row.raw) }) : null);
}

function candidate(row, index, found, take) {
  const says = verdict(row, found);
  const classes = ['candidate', row.removedBy ? 'is-cut' : '', row.isChosen ? 'is-chosen' : ''].join(' ');
  const digit = index < 9 ? el('kbd', { text: String(index + 1) }) : el('kbd', { class: 'none', text: '' });
  const label = `take ${pieceText(row.token)}, ${percent(row.after)}${says ? `, ${says}` : ''}`;
  return el('button', { type: 'button', class: classes, onclick: () => take(row), 'aria-label': label, 'data-id': String(row.id) },
    digit, piece(row.token), bars(row), shares(row, found), el('span', { class: 'verdict', text: says }));
}

function tailRow(found) {
  const { tail } = found;
  if (tail.count !== null && tail.count <= 0) return null;
  const isCut = tail.left === 0;
  const row = { raw: tail.raw, after: tail.after, removedBy: isCut ? 'the chain' : null };
  const says = isCut ? 'all of them cut' : tail.left === null || tail.left === tail.count ? '' : `${tail.left.toLocaleString('en')} left`;
  return el('div', { class: `candidate tail${isCut ? ' is-cut' : ''}` }, el('kbd', { class: 'none', text: '' }),
    el('span', { text: tail.count === null ? 'all others' : `the other ${tail.count.toLocaleString('en')}` }), bars(row), shares(row, found), el('span', { class: 'verdict', text: says }));
}

/** The bar that is thrown at: shares laid one after the other from the best down, and where u fell. */
function drawBar(found) {
  const { draw } = found;
  if (!draw) return null;
  const laid = el('div', { class: 'laid', 'aria-hidden': 'true' });
  let sum = 0;
  const rows = [...found.rows].filter((row) => !row.removedBy && row.after > 0).sort((a, b) => b.after - a.after);
  for (const row of rows) {
    const part = el('i', { class: row.after > 0 && sum <= draw.u && draw.u < sum + row.after ? 'hit' : '' });
    part.style.left = `${sum * 100}%`;
    part.style.width = `${row.after * 100}%`;
    laid.append(part);
    sum += row.after;
  }
  const mark = el('b', { class: 'throw' });
  mark.style.left = `${draw.u * 100}%`;
  laid.append(mark);
  const text = `draw ${draw.u.toFixed(4)} fell between ${draw.low.toFixed(4)} and ${draw.high.toFixed(4)}`;
  return el('div', { class: 'draw' }, laid, el('p', {}, el('span', { text, title: `u ${draw.u}, from ${draw.low} to ${draw.high}` }), ' ', made('measured', 'sampling/dice.py', 'draw')));
}

function chainLine(found) {
  if (found.stages.length < 2) return null;
  const stages = found.stages.map((stage) => el('li', {}, el('b', { text: stage.name.replaceAll('_', ' ') }),
    stage.setting ? ` ${stage.setting}` : '', el('small', { text: ` ${stage.kept.toLocaleString('en')} left` })));
  return el('div', { class: 'chain' }, el('ol', { 'aria-label': 'the sampling chain' }, ...stages), made(found.how, 'sampling/chain.py', 'run_chain'));
}

function figures(found) {
  const near = found.margin !== null && found.margin < NEAR_TIE;
  const margin = found.margin === null ? '–' : found.margin.toFixed(2);
  return el('p', { class: 'figures' },
    el('span', { title: String(found.entropy) }, 'entropy ', el('b', { text: `${found.entropy.toFixed(2)} nats` })),
    el('span', { title: String(found.margin) }, 'margin ', el('b', { text: `${margin} nats` })),
    near ? el('span', { class: 'near-tie', text: '~ a near tie' }) : null, made(found.how === 'measured' ? 'measured' : found.how, 'sampling/look.py', 'measure'));
}

function titleOf(found) {
  if (found.kind === 'reading') return 'What it expected here';
  if (found.kind === 'what-if') return 'What your settings make of it';
  if (found.kind === 'next' || found.isGhost) return 'The next token';
  return 'Why this token';
}

function asItWas(found, store) {
  if (found.kind !== 'what-if') return null;
  const note = found.how === 'approximate' ? 'approximate: only the best were kept here' : 'exact, from this step’s own logits';
  return el('p', { class: 'what-if' }, note, ' ', el('button', { type: 'button', onclick: () => store.put({ isWhatIf: false }), text: 'As it was' }));
}

export class Next {
  constructor(store, controller) {
    Object.assign(this, { store, controller, node: byId('next'), readNode: byId('read'), found: null });
  }

  /** Take the candidate in this row. */
  take(row) {
    return this.controller.take(this.found.at, row.id);
  }

  choose(index) {
    const row = this.found?.rows?.[index];
    if (row) this.take(row);
  }

  render(state) {
    const run = shown(state);
    const at = place(state);
    const key = [run?.steps[at - run?.promptLength], run?.readings[at - 1], at, run?.tokens.length, run?.ghost, run?.status,
      state.isWhatIf, state.settings, run?.logits, run?.finish, run?.name];
    if (this.key?.every((value, index) => value === key[index])) return;
    this.key = key;
    this.found = distribution(state);
    this.node.replaceChildren(...(this.found.kind === 'none' ? this.empty() : this.full()));
    this.renderRead(run, at);
  }

  empty() {
    return [el('h2', { text: 'The next token' }), el('p', { class: 'empty', text: this.found.why })];
  }

  full() {
    const { found } = this;
    const rows = found.rows.map((row, index) => candidate(row, index, found, (one) => this.take(one)));
    return [
      el('div', { class: 'paper-head' }, el('h2', { text: titleOf(found) }), figures(found)),
      asItWas(found, this.store), el('div', { class: 'candidates' }, ...rows, tailRow(found)), chainLine(found), drawBar(found),
    ].filter(Boolean);
  }

  renderRead(run, at) {
    if (!run) {
      fill(this.readNode, 'none', () => [el('h2', { text: 'Read so far' }), el('p', { class: 'empty', text: 'Nothing yet.' })]);
      return;
    }
    const { found } = this;
    const best = found.rows?.[0];
    const skipped = Math.max(0, at - READ_ALOUD);
    // Lines break before words, whose spaces are pictures here.
    const past = run.tokens.slice(skipped, at).flatMap((token) => [el('wbr'), piece(token, 'past')].slice(/^\s/.test(token.text) ? 0 : 1));
    const actual = run.tokens[at];
    const row = found.rows?.find((one) => one.isChosen);
    this.readNode.replaceChildren(
      el('div', { class: 'paper-head' }, el('h2', { text: 'Read so far' }), el('p', { class: 'figures' }, el('span', { text: `${at} ${at === 1 ? 'token' : 'tokens'}` }), made('measured', 'engine/engine.py', 'Engine'))),
      el('p', { class: 'aloud' }, skipped ? el('small', { text: `… ${skipped} before ` }) : null, ...past, el('span', { class: 'arrow', text: ' → ' }), best ? piece(best.token, 'said-now') : '?'),
      el('p', { class: 'really' }, ...reallyNext(actual, row, best, found)),
      el('p', { class: 'moral', text: moral(run, at) }),
    );
  }
}

function reallyNext(actual, row, best, found) {
  if (!best) return [];
  if (!actual) return ['The best of all after what stands here. Press → to let the dice or the best decide, or click another.'];
  if (!row) return ['really next: ', piece(actual)];
  const kind = found.isGhost ? 'it had been: ' : found.kind === 'reading' ? 'really next: ' : found.forced ? 'you put: ' : 'what came: ';
  return [kind, piece(actual), ' ', el('b', { text: `rank ${row.rank}` }), ' ', el('b', { text: percent(row.raw), title: String(row.raw) })];
}

function moral(run, at) {
  if (at < run.promptLength) return 'Each prediction continues everything before it, and nothing after. Read in a row they are gibberish; read like this, each makes sense.';
  if (at === run.promptLength) return 'Only this prediction continues the whole prompt. It is the one that is kept.';
  if (at === run.tokens.length) return 'The prediction after the last token: whatever comes is appended, and read in the next pass.';
  if (at === run.tokens.length - 1 && run.finish) return 'The token that came was appended, and the run ended with it: no pass reads it.';
  if (at === run.tokens.length - 1 && run.isFresh) return 'The token that came was appended. The next pass reads it, too: one more position in the cache.';
  return 'The token that came was appended, and the model read it, too: one more position in the cache.';
}
