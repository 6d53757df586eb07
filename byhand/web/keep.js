// What a reload must not lose: the token that gives the runs back, the runs that no server holds, the chat, and the view.

import { recordOf } from './record.js';
import { runNamed } from './state.js';

const KEY = 'byhand.session.2'; // what an earlier version kept is not read
const LONGEST = 3_000_000; // characters in all: a tab may keep about five million, and in a text within a text quotes take two
const SHORTEST_STEP = 500; // characters: a run that cannot fit is not even written out

/** What a browser keeps under this name, or nothing: some keep nothing, and say so with an exception. */
export function stored(storage, name) {
  try {
    return window[storage].getItem(name);
  } catch {
    return null; // the page is as on a first visit
  }
}

/** Have something kept; whether it is. */
export function store(storage, name, text) {
  try {
    window[storage].setItem(name, text);
    return true;
  } catch {
    return false; // forbidden, or more than the browser keeps
  }
}

/** What was kept in this tab, or nothing. */
export function kept() {
  try {
    return JSON.parse(stored('sessionStorage', KEY) ?? 'null');
  } catch {
    return null; // damaged: the page opens as on a first visit
  }
}

function plain({ label, parent, at, said, isFresh, isChat, isOrphan, source, settings, loadedSeconds }) {
  return { label, parent, at, said, isFresh, isChat, isOrphan, source, settings, loadedSeconds };
}

/** Runs in the order in which their records are needed: the one that is shown, those of which no server knows, the newest. */
function byNeed({ order, runs, current }) {
  const rank = (name) => (name === current ? 0 : runs[name].source === 'record' ? 1 : 2);
  return order.filter((name) => runs[name].tokens.length).reverse().sort((one, other) => rank(one) - rank(other));
}

/** The records that fit, as text. Those of live runs are for the case that the server dies meanwhile. */
function documentsOf({ order, runs, current }, room) {
  const documents = {};
  let left = room;
  for (const name of byNeed({ order, runs, current })) {
    const run = runs[name];
    const record = run.record ?? recordOf(run);
    if (record.steps.length * SHORTEST_STEP > left) continue;
    const text = JSON.stringify({ record, readings: Object.values(run.readings) });
    if (text.length > left) continue;
    left -= text.length;
    documents[name] = { text, count: run.steps.length };
  }
  return documents;
}

const wrote = (values) => store('sessionStorage', KEY, JSON.stringify(values));

/** Keep the state of this tab. `pending` is what was kept before and has not come back yet. */
export function keep(state, resume, chat, pending) {
  const order = state.order.filter((name) => !state.runs[name].isStored);
  const known = Object.fromEntries(order.map((name) => [name, plain(state.runs[name])]));
  const awaited = (pending?.order ?? []).filter((name) => !runNamed(state, name));
  const messages = chat.map((message) => ({ ...message, run: runNamed(state, message.run)?.name ?? message.run }));
  const least = { resume, order: [...awaited, ...order], runs: { ...known, ...pending?.runs }, current: state.current, said: state.said, speed: state.speed };
  const small = { ...least, chat: messages };
  const documents = documentsOf({ ...state, order }, LONGEST - JSON.stringify(small).length);
  if (!wrote({ ...small, documents }) && !wrote(small)) wrote({ ...least, isCut: true });
}
