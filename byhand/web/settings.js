// The settings: sliders that reshape at once what is on screen, and where each value came from.

import { SLIDERS } from './chain.js';
import { el, made } from './dom.js';
import { place, shown, stepAt } from './state.js';

/** Who said so: this reader, the checkpoint's generation config, a record, or nobody. */
export function sourceOf(state, name) {
  const run = shown(state);
  if (name in (run ?? state).said) return 'you';
  if (run?.source === 'record' || run?.loadedSeconds) return 'the record';
  if (state.model && name in state.model.suggested) return 'the checkpoint';
  return 'default';
}

export class Settings {
  constructor(store, controller) {
    Object.assign(this, { store, controller, node: null });
  }

  row({ name, low, high, step, off, says }) {
    const input = el('input', { type: 'range', id: `set-${name}`, min: low, max: high, step, title: says, 'aria-describedby': `from-${name}` });
    const value = el('output', { for: `set-${name}` });
    const from = el('small', { class: 'from', id: `from-${name}` });
    input.addEventListener('input', () => this.turn(name, Number(input.value)));
    input.addEventListener('change', () => this.controller.set(name, Number(input.value)));
    this.rows.set(name, { input, value, from, off });
    return el('div', { class: 'setting' }, el('label', { for: `set-${name}`, title: says, text: name.replaceAll('_', ' ') }), input, value, from);
  }

  /** While a slider moves: the stored distribution is reshaped, and the model does not run. */
  turn(name, value) {
    const { state } = this.store;
    const run = shown(state);
    this.store.put({ settings: { ...state.settings, [name]: value }, isWhatIf: Boolean(run && stepAt(run, place(state))) });
    if (run) this.controller.peek(run.name, place(state));
    this.controller.did('slide');
  }

  build() {
    this.rows = new Map();
    this.others = el('p', { class: 'figures' });
    const greedy = el('button', { type: 'button', id: 'greedy', text: 'Greedy: always the best' });
    greedy.addEventListener('click', () => { this.turn('temperature', 0); this.controller.set('temperature', 0); });
    return el('div', { class: 'settings' }, el('div', { class: 'sliders' }, ...SLIDERS.map((slider) => this.row(slider))),
      this.others, el('p', {}, greedy), el('p', { class: 'figures' }, el('span', { text: 'They hold for the tokens to come, and show at once what they would have made of this one.' }), made('derived', 'sampling/stages.py', 'top_p')));
  }

  render(state) {
    this.node ??= this.build();
    for (const [name, { input, value, from, off }] of this.rows) {
      const now = state.settings[name] ?? off;
      if (Number(input.value) !== now && document.activeElement !== input) input.value = String(now);
      value.textContent = now === off && name !== 'temperature' ? 'off' : String(now);
      from.textContent = `from ${sourceOf(state, name)}`;
    }
    const run = shown(state);
    const { seed, max_tokens: most } = run?.params ?? {};
    this.others.replaceChildren(el('span', {}, 'seed ', el('b', { text: seed ?? '–' })), el('span', {}, 'at most ', el('b', { text: most ?? 'the context’s end' })),
      el('span', { text: 'The draw at a place follows from seed and place alone: rewind, step, and it falls the same.' }));
    return this.node;
  }
}
