// The crank: its buttons, speed and breakpoints, and the small window in which text is written into a run.

import { byId, el, pieceText } from './dom.js';
import { place, shown } from './state.js';

const SPEEDS = [['slow', 'slow'], ['easy', 'easy'], ['brisk', 'brisk'], ['full', 'full speed']];
const BREAKS = [
  { name: 'text', label: 'the text holds', type: 'text' },
  { name: 'token', label: 'the next token is', type: 'text' },
  { name: 'entropy', label: 'entropy ≥ (nats)', type: 'number', step: 0.1 },
  { name: 'margin', label: 'margin ≤ (nats)', type: 'number', step: 0.1 },
  { name: 'end_probability', label: 'end ≥ (probability)', type: 'number', step: 0.05 },
];

function button(id, text, title, onclick, kind = '') {
  return el('button', { type: 'button', id, class: kind, title, onclick, text });
}

export class Crank {
  constructor(store, controller) {
    Object.assign(this, { store, controller, node: byId('crank'), editor: byId('editor') });
    this.build();
  }

  build() {
    const { controller: hand, store } = this;
    this.buttons = {
      back: button('back', '← Back', 'take the last token back (←)', () => hand.rewind()),
      step: button('step', 'Step →', 'one token (→)', () => hand.step(), 'strong'),
      run: button('run', '▶ Run', 'run, or pause (Space)', () => hand.toggle(), 'strong'),
      undo: button('undo', '↶ Undo', 'take the last operation back (U)', () => hand.undo()),
      fork: button('fork', 'Fork', 'a second run from here (F)', () => hand.fork()),
      write: button('write', '✎ Write', 'put text at the selected place (E)', () => this.write(place(store.state))),
      rewindTo: button('rewind-to', '⏮ Rewind to here', 'let go of this token and all after it', () => hand.rewindTo(place(store.state))),
      replay: button('replay', '↻ Replay', 'play this record from its first step, with no model', () => hand.replay()),
    };
    const { back, step, run, undo, fork, write, rewindTo, replay } = this.buttons;
    this.node.append(el('div', { class: 'crank-main' }, back, step, run), el('div', { class: 'crank-more' },
      rewindTo, undo, fork, write, replay, this.speed(), this.breaks()));
  }

  speed() {
    const choose = el('select', { id: 'speed', 'aria-label': 'speed', onchange: (event) => this.store.put({ speed: event.target.value }) },
      ...SPEEDS.map(([value, text]) => el('option', { value, text, selected: value === 'full' })));
    return el('label', { class: 'speed' }, 'speed ', choose);
  }

  breaks() {
    const fields = BREAKS.map(({ name, label, type, step }) => el('label', {}, label,
      el('input', { type, step, min: type === 'number' ? 0 : null, id: `break-${name}`, autocomplete: 'off', oninput: () => this.readBreaks() })));
    this.summary = el('summary', { text: 'Break when…' });
    this.details = el('details', { class: 'breaks', id: 'breaks' }, this.summary, el('div', { class: 'breaks-body' }, ...fields,
      el('p', { text: 'A run pauses before the token that meets any of these (text: after it), at any speed.' })));
    return this.details;
  }

  readBreaks() {
    const until = {};
    for (const { name, type } of BREAKS) {
      const { value } = byId(`break-${name}`);
      if (value !== '') until[name] = type === 'number' ? Number(value) : value;
    }
    this.store.put({ until });
  }

  /** Open the small window: what stands at the place is replaced, in a branch; what follows it only if that is wished. */
  write(at) {
    const run = shown(this.store.state);
    if (!run) return;
    const token = run.tokens[at];
    if (at === 0 && token.special) {
      this.controller.say(`${pieceText(token)} is where this text begins: it is put there by the tokenizer, and stays. Write at a token after it, or start another prompt above.`);
      return;
    }
    const field = el('textarea', { id: 'write-text', rows: 2, 'aria-label': 'text to put here', spellcheck: 'false' });
    field.value = token && !token.special ? token.text : '';
    const says = at === 0 ? `This is the first token: what you write here starts a run of its own.` : token ? `In a branch, this takes the place of ${pieceText(token)}, token ${at}, and of what follows it.` : 'This is put at the end, as tokens of yours.';
    const keep = el('input', { type: 'checkbox', id: 'write-keep' });
    const more = token && at + 1 < run.tokens.length ? el('label', { class: 'row' }, keep, `keep the ${run.tokens.length - at - 1} that follow, as tokens of yours`) : '';
    const close = () => this.editor.close();
    const put = () => { close(); this.controller.write(at, field.value, { isTailKept: keep.checked }); };
    field.addEventListener('keydown', (event) => { if (event.key === 'Enter' && !event.shiftKey) { event.preventDefault(); put(); } });
    this.editor.replaceChildren(el('h2', { text: 'Write here' }), el('p', { text: says }), field, more,
      el('div', { class: 'row' }, button('write-put', 'Put it here', '', put, 'strong'), button('write-cancel', 'Cancel', '', close)));
    this.editor.showModal();
    field.select();
  }

  render(state) {
    const run = shown(state);
    const { back, run: runButton, rewindTo, replay, undo, fork, write } = this.buttons;
    const isRunning = run?.status === 'running' || state.replay !== null;
    runButton.textContent = isRunning ? '⏸ Pause' : '▶ Run';
    back.disabled = !run || run.tokens.length < 2;
    rewindTo.hidden = !run || state.at === null || state.at >= run.tokens.length;
    replay.hidden = run?.source !== 'record';
    for (const one of [undo, fork, write]) one.disabled = !run;
    this.node.classList.toggle('is-running', isRunning);
    const count = Object.keys(state.until).length;
    this.summary.textContent = count ? `Break when… (${count})` : 'Break when…';
  }
}
