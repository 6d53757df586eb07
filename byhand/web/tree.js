// The tree of branches: what each is made of, what it shares with the others, and two of them side by side.

import { byId, el, fill, made, percent, piece, size } from './dom.js';
import { shown } from './state.js';

const COMPARED = 60; // tokens shown after the place where two branches part

/** The first place where two lists differ. */
export function partAt(one, other) {
  const length = Math.min(one.length, other.length);
  for (let at = 0; at < length; at += 1) if (one[at].id !== other[at].id) return at;
  return length;
}

/** Where a branch left the run that it was forked from. A fork that is rewound first has parted earlier. */
function leftAt(runs, run) {
  const parent = runs[run.parent];
  return parent ? partAt(parent.tokens, run.tokens) : null;
}

function depthOf(runs, run) {
  return run.parent && runs[run.parent] ? 1 + depthOf(runs, runs[run.parent]) : 0;
}

/** Branches in the order of the tree: each followed by its own. */
function inOrder(state) {
  const childrenOf = (name) => state.order.filter((one) => (state.runs[state.runs[one].parent] ? state.runs[one].parent : null) === name);
  const walk = (name) => childrenOf(name).flatMap((one) => [one, ...walk(one)]);
  return walk(null).map((name) => state.runs[name]);
}

function cellsOf(run, other, from) {
  return run.tokens.slice(from, from + COMPARED).map((token, index) => {
    const step = run.steps[from + index - run.promptLength];
    const isSame = other.tokens[from + index]?.id === token.id;
    return el('li', { class: isSame ? 'same' : '' }, piece(token), el('small', { text: step ? percent(Math.exp(step.logprob)) : '' }));
  });
}

export class Tree {
  constructor(store, controller) {
    Object.assign(this, { store, controller, tabs: byId('branches') });
  }

  /** The branches above the strip: there as soon as there are two. */
  renderTabs(state) {
    // A chat's answers stand in the chat, until one is opened here.
    const shownHere = inOrder(state).filter((run) => !run.isChat || run.name === state.current);
    const key = JSON.stringify([state.current, shownHere.map((run) => [run.name, run.label, leftAt(state.runs, run)])]);
    fill(this.tabs, key, () => (shownHere.length < 2 ? [] : shownHere.map((run) => el('button', {
      type: 'button', 'aria-pressed': String(run.name === state.current), onclick: () => this.controller.show(run.name),
      text: `${run.label}${state.runs[run.parent] ? ` from ${leftAt(state.runs, run)}` : ''}`, title: `run ${run.label}`, 'aria-label': `run ${run.label}`,
    }))));
  }

  render(state) {
    const rows = inOrder(state).map((run) => this.row(state, run));
    const head = el('tr', {}, ...['run', 'parted at', 'tokens', 'computed', 'pages', 'shared', ''].map((text) => el('th', { scope: 'col', text })));
    const { tree } = state;
    const total = tree ? `${tree.pages.held} pages held, ${tree.pages.shared} of them by more than one run: ${size(tree.bytes)} of memory. ` : 'The pages are told when the server is there. ';
    return el('div', { class: 'tree' }, el('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': 'branches' }, el('table', {}, el('thead', {}, head), el('tbody', {}, ...rows))),
      el('p', { class: 'figures' }, el('span', { text: total }), made('measured', 'server/live/views.py', 'pages_view')), this.comparison(state));
  }

  row(state, run) {
    const held = state.tree?.runs.find((one) => one.run === run.name);
    const isCurrent = run.name === state.current;
    const name = el('td', {}, el('button', { type: 'button', 'aria-pressed': String(isCurrent), onclick: () => this.controller.show(run.name), text: run.label }),
      el('small', { text: ` ${run.source === 'record' ? 'a record' : run.finish ? 'ended' : run.status}` }));
    name.style.paddingInlineStart = `${depthOf(state.runs, run) * 20 + 4}px`;
    const numbers = [leftAt(state.runs, run) ?? '–', run.tokens.length, held?.computed ?? '–', held?.pages ?? '–', held?.shared ?? '–'];
    const compare = el('button', { type: 'button', disabled: isCurrent, 'aria-label': `compare with ${run.label}`, onclick: () => this.store.put({ compare: run.name }), text: 'Compare' });
    const close = el('button', { type: 'button', disabled: state.order.length < 2, 'aria-label': `close run ${run.label}`, onclick: () => this.controller.close(run.name), text: 'Close' });
    return el('tr', { class: isCurrent ? 'current' : '' }, name, ...numbers.map((value) => el('td', { text: String(value) })), el('td', {}, compare, ' ', close));
  }

  comparison(state) {
    const [one, other] = [shown(state), state.runs[state.compare]];
    if (!one || !other || one === other) return el('p', { class: 'empty', text: 'Fork, or take another candidate; then compare two branches here.' });
    const from = partAt(one.tokens, other.tokens);
    return el('div', { class: 'compare' }, el('h3', { text: `${one.label} and ${other.label} are the same for ${from} ${from === 1 ? 'token' : 'tokens'}, and part there` }),
      el('div', { class: 'columns' }, ...[[one, other], [other, one]].map(([a, b]) => el('div', {}, el('h4', { text: a.label }), el('ol', {}, ...cellsOf(a, b, from))))));
  }
}
