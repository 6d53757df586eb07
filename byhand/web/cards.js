// Short cards beside live numbers, one at a time. Each is done when the reader does the thing, and never comes back.

import { byId, el, fill } from './dom.js';
import { shown } from './state.js';

const CARDS = [
  { what: 'read', title: 'Point at a prediction', text: (run) => `Under each of the ${run.promptLength} prompt tokens stands what the model predicts after it. Joined they are gibberish. Point at one: everything before it lights up, and the line below reads it out.`, needs: (run) => Object.keys(run.readings).length > 0 },
  { what: 'ids', title: 'What is a token id?', text: (run) => `The model reads no letters. This text is ${run.tokens.length} numbers to it. Press I to see them under the tokens.` },
  { what: 'step', title: 'Turn the crank', text: () => 'One pass gives one prediction for the end. It is appended, and everything starts again from there. Press → and watch the cache grow by one position.' },
  { what: 'choose', title: 'Choose otherwise', text: () => 'The model proposes, someone chooses. Click a candidate, or press its digit: a branch goes on with your token, and the old one stays.', needs: (run) => run.steps.length > 0 },
  { what: 'slide', title: 'Why not always the best?', text: () => 'Move the temperature below. The bars change at once, and the model does not run: sampling is what happens after it.', needs: (run) => run.steps.length > 0 },
  { what: 'rewind', title: 'Take it back', text: () => 'Press ←. What was computed stays in the cache, so only what you change is computed again; the line above the tokens tells how much.', needs: (run) => run.steps.length > 1 },
  { what: 'end', title: 'When does it stop?', text: () => 'Open “Ending”: the end is a token like the others, and its probability is there at every step.', needs: (run) => run.steps.length > 1 },
  { what: 'wire', title: 'How does it reach you?', text: () => 'Open “Wire”: each token is one small frame, sent the moment it is chosen. That is all that streaming is.', needs: (run) => run.source === 'live' },
];
const KEY = 'byhand.cards';

/** Which cards were done on an earlier visit. */
export function doneBefore() {
  try {
    return JSON.parse(localStorage.getItem(KEY) ?? '{}');
  } catch {
    return {}; // a browser that keeps nothing shows the cards again
  }
}

export class Cards {
  constructor(store) {
    this.store = store;
    this.node = byId('card');
  }

  render(state) {
    const run = shown(state);
    const card = run && CARDS.find((one) => !state.done[one.what] && (one.needs?.(run) ?? true));
    if (this.saved !== state.done) this.save(state.done);
    this.node.hidden = !card || Boolean(state.done.all);
    if (!card) return;
    const text = card.text(run);
    const count = CARDS.filter((one) => state.done[one.what]).length;
    fill(this.node, card.what + text, () => [
      el('p', {}, el('b', { text: `${card.title}  ` }), text, el('small', { text: ` ${count + 1} of ${CARDS.length}` })),
      el('div', { class: 'row' }, el('button', { type: 'button', onclick: () => this.done(card.what), text: 'Next' }),
        el('button', { type: 'button', onclick: () => this.done('all'), text: 'No more cards' })),
    ]);
  }

  done(what) {
    this.store.dispatch({ event: 'done', what });
  }

  save(done) {
    this.saved = done;
    try {
      localStorage.setItem(KEY, JSON.stringify(done));
    } catch {
      this.saved = done; // nothing is kept; nothing else depends on it
    }
  }
}
