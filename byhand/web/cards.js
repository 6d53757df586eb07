// Short cards beside live numbers, one at a time. Each is done when the reader does the thing, and never comes back.

import { byId, el, fill, milliseconds, pieceText } from './dom.js';
import { store, stored } from './keep.js';
import { isOfRecord, shown } from './state.js';

const hasReadings = (run) => Object.keys(run.readings).length > 0;
const visible = (token) => `“${pieceText(token)}”`;
const endOfPrompt = (run) => visible(run.tokens[run.promptLength - 1]);

const CARDS = [
  { what: 'ids', title: 'What is a token id?', text: (run) => `The model reads no letters. This text is ${run.tokens.length} numbers to it, one for each piece. Press I (or the # above the tokens) to see them.` },
  { what: 'read', title: 'Point at a prediction', text: (run) => `Under each of the ${run.promptLength} prompt tokens stands what the model predicts after it. Point at one: everything before it lights up, and the line below reads it out.`, needs: hasReadings },
  { what: 'all', title: 'Why can’t I just read all outputs?', text: (run) => `Joined, the small words under the prompt are gibberish: each goes on from its own past, none from the one before. Point at the one under ${endOfPrompt(run)}: it alone has read the whole prompt, so it alone is kept.`, needs: hasReadings },
  { what: 'comma', title: (run) => `Where does ${run.tokens[run.promptLength].text.trim() === ',' ? 'the comma' : visible(run.tokens[run.promptLength])} come from?`, text: (run) => `Nobody typed it. Click ${visible(run.tokens[run.promptLength])}, the first token after the line: below stand all that had been read by then, how likely each token was to come next, and how this one was taken.`, needs: (run) => run.tokens.length > run.promptLength },
  { what: 'step', title: 'Turn the crank', text: () => 'One pass gives one prediction for the end. It is appended, and everything starts again from there. Press → and watch the cache grow by one position.' },
  { what: 'phases', title: 'What are the two phases?', text: (run) => `The prompt went through the model at once: ${run.steps[0].positions_computed} positions in ${milliseconds(run.steps[0].seconds)}${isOfRecord(run, run.steps[0]) ? ' when it was recorded' : ''}. Since then each pass computes one. Open “Cost” and compare the block with the ticks.`, needs: (run) => run.steps.length > 1 && run.steps[0].positions_computed > 1 },
  { what: 'choose', title: 'Choose otherwise', text: () => 'The model proposes, someone chooses. Click a candidate, or press its digit: a branch goes on with your token, and the old one stays.', needs: (run) => run.steps.length > 0 },
  { what: 'slide', title: 'Why not always the best?', text: () => 'Move the temperature below. The bars change at once, and the model does not run: sampling is what happens after it.', needs: (run) => run.steps.length > 0 },
  { what: 'rewind', title: 'Take it back', text: () => 'Press ←. What was computed stays in the cache, so only what you change is computed again; the line above the tokens tells how much.', needs: (run) => run.steps.length > 1 },
  { what: 'end', title: 'When does it stop?', text: () => 'Open “Ending”: the end is a token like the others, and its probability is there at every step.', needs: (run) => run.steps.length > 1 },
  { what: 'wire', title: 'How does it stream?', text: () => 'Open “Wire”: each token is one small frame, sent the moment it is chosen. That is all that streaming is.', needs: (run) => run.source === 'live' },
];
const KEY = 'byhand.cards';

function titleOf({ title }, run) {
  return typeof title === 'function' ? title(run) : title;
}

/** Which cards were done on an earlier visit. */
export function doneBefore() {
  try {
    return JSON.parse(stored('localStorage', KEY) ?? '{}');
  } catch {
    return {}; // damaged: the cards are shown again
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
    this.node.hidden = !card || Boolean(state.done.all_cards);
    if (this.node.hidden) return;
    const [title, text] = [titleOf(card, run), card.text(run)];
    // What the reader has just done is ticked off on the card that follows it.
    if (this.shown && this.shown.what !== card.what) this.ticked = state.done[this.shown.what] && !this.isSkipped ? this.shown.title : null;
    if (this.shown?.what !== card.what) this.isSkipped = false;
    this.shown = { what: card.what, title };
    const count = CARDS.filter((one) => state.done[one.what]).length;
    fill(this.node, [title, text, this.ticked].join(), () => [
      el('p', {}, this.ticked ? el('span', { class: 'ticked', text: `✓ ${this.ticked} ` }) : null, el('b', { text: `${title} ` }), text, el('small', { text: ` ${count + 1} of ${CARDS.length}` })),
      el('div', { class: 'row' }, el('button', { type: 'button', onclick: () => this.skip(card.what), text: 'Next' }),
        el('button', { type: 'button', onclick: () => this.done('all_cards'), text: 'No more cards' })),
    ]);
  }

  skip(what) {
    this.isSkipped = true;
    this.done(what);
  }

  done(what) {
    this.store.dispatch({ event: 'done', what });
  }

  save(done) {
    this.saved = done;
    store('localStorage', KEY, JSON.stringify(done));
  }
}
