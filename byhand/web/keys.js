// The keys. They are not taken from who is writing in a field, and not together with Control, Alt or Command.

import { byId, el } from './dom.js';
import { place, shown } from './state.js';

const KEYS = [
  ['Space', 'run, or pause'], ['→', 'one token'], ['←', 'take the last token back'], ['1 – 9', 'take this candidate instead'],
  ['Shift ← →', 'select the token before, after; in the strip ← alone, and → back'], ['Esc', 'back to the end'], ['Backspace', 'rewind to the selected place'],
  ['F', 'fork'], ['U', 'undo'], ['E', 'write at the selected place'], ['B', 'breakpoints'], ['I', 'ids'], ['/', 'the prompt'],
  ['S', 'save'], ['?', 'these keys'],
];
// Who is in a list moves in it: there no arrow takes tokens back, and whoever went to the left with one comes back with the
// other. Else that one is the crank's there, too.
const IN_LISTS = {
  ArrowLeft: (keys, isStrip) => (isStrip ? keys.select(-1) : null),
  ArrowRight: (keys, isStrip) => (isStrip && keys.isOnTheWay() ? keys.select(1) : keys.controller.step()),
  Home: (keys, isStrip) => (isStrip ? keys.select(-keys.end()) : null),
  End: (keys) => keys.leave(),
};

export class Keys {
  constructor(store, controller, { crank, next }) {
    Object.assign(this, { store, controller, crank, next, dialog: byId('keys') });
    this.dialog.append(el('h2', { text: 'All keys' }), el('dl', {}, ...KEYS.flatMap(([key, does]) => [el('dt', {}, el('kbd', { text: key })), el('dd', { text: does })])),
      el('button', { type: 'button', class: 'strong', onclick: () => this.dialog.close(), text: 'Close' }));
    document.addEventListener('keydown', (event) => this.press(event));
    // Whoever clicked with a mouse goes on with the crank's keys: the button, tab or slider does not keep them.
    document.addEventListener('click', (event) => { if (event.detail) event.target.closest('button, summary, input[type=range]')?.blur(); });
    byId('help').addEventListener('click', () => this.dialog.showModal());
    byId('ids').addEventListener('click', () => this.ids());
  }

  isTaken(event) {
    const { target } = event;
    if (event.ctrlKey || event.altKey || event.metaKey || this.store.state.view !== 'strip') return true;
    if (document.querySelector('dialog[open]')) return true;
    // A slider wants the arrows, and a row of tabs, too; all other keys stay the crank's.
    if (target.closest('input[type=range], [role=tablist]') && /^(Arrow|Home|End|Page)/.test(event.key)) return true;
    if (target.closest('textarea, select, input:not([type=range])')) return true;
    return target.closest('button, a, summary') !== null && [' ', 'Enter'].includes(event.key);
  }

  press(event) {
    if (this.isTaken(event)) return;
    const act = this.actionOf(event);
    if (!act) return;
    event.preventDefault();
    act();
  }

  actionOf(event) {
    const { controller: hand, store } = this;
    if (event.target.closest('#strip, #next') && !event.shiftKey && event.key in IN_LISTS) {
      return () => IN_LISTS[event.key](this, event.target.closest('#strip') !== null);
    }
    if (/^[1-9]$/.test(event.key)) return () => this.next.choose(Number(event.key) - 1);
    if (event.shiftKey && event.key === 'ArrowLeft') return () => this.select(-1);
    if (event.shiftKey && event.key === 'ArrowRight') return () => this.select(1);
    return {
      ' ': () => hand.toggle(), ArrowRight: () => hand.step(), ArrowLeft: () => hand.rewind(), Escape: () => this.leave(),
      Backspace: () => hand.rewindTo(store.state.at ?? this.end() - 1), f: () => hand.fork(), u: () => hand.undo(),
      e: () => this.crank.write(place(store.state)), b: () => this.breaks(), i: () => this.ids(), s: () => hand.save(),
      '/': () => byId('prompt').focus(), '?': () => this.dialog.showModal(),
    }[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  }

  /** How many tokens stand there: the place after the last one. */
  end() {
    return shown(this.store.state)?.tokens.length ?? 0;
  }

  /** Whether the selection is where arrows took it, and not yet at the end again. */
  isOnTheWay() {
    const { at } = this.store.state;
    return at !== null && at === this.walked && at < this.end();
  }

  select(by) {
    const run = shown(this.store.state);
    if (!run) return;
    const at = Math.max(1, Math.min(run.tokens.length, place({ ...this.store.state, hover: null }) + by));
    this.walked = at;
    this.store.put({ at, hover: null, isWhatIf: false });
    this.store.dispatch({ event: 'done', what: at !== run.promptLength ? 'read' : this.store.state.done.all ? 'comma' : 'all' });
    this.controller.peek(run.name, at);
  }

  /** Back to the end, and from a slider back to the crank. */
  leave() {
    if (document.activeElement?.matches('input[type=range]')) document.activeElement.blur();
    this.store.put({ at: null, hover: null });
  }

  ids() {
    this.store.put({ showsIds: !this.store.state.showsIds });
    this.controller.did('ids');
  }

  breaks() {
    const { details } = this.crank;
    details.open = !details.open;
    if (details.open) byId('break-text').focus();
  }
}
