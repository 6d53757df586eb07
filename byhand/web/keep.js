// What a reload must not lose: the token that gives the runs back, the readings that no record holds, and the view.

import { recordOf } from './record.js';
import { shown } from './state.js';

const KEY = 'byhand.session';
const LONGEST = 3_000_000;

/** What was kept in this tab, or nothing. */
export function kept() {
  try {
    return JSON.parse(sessionStorage.getItem(KEY) ?? 'null');
  } catch {
    return null; // damaged or forbidden: the page opens as on a first visit
  }
}

function plain(run) {
  const { label, readings, parent, at, settings, said, isFresh } = run;
  return { label, readings, parent, at, settings, said, isFresh };
}

/** Keep the state of this tab. Only what the server cannot tell again is written down, and the shown run in case it dies. */
export function keep(state, resume, chat) {
  const run = shown(state);
  if (!run) return;
  const runs = Object.fromEntries(state.order.filter((name) => state.runs[name].source === 'live').map((name) => [name, plain(state.runs[name])]));
  const values = {
    resume, runs, order: state.order.filter((name) => runs[name]), current: state.current, said: state.said, speed: state.speed, chat,
    record: { record: recordOf(run), readings: Object.values(run.readings) }, label: run.label,
    wasLive: run.source === 'live' || Boolean(run.isOrphan), isStored: Boolean(run.isStored),
  };
  try {
    const text = JSON.stringify(values);
    sessionStorage.setItem(KEY, text.length > LONGEST ? JSON.stringify({ ...values, record: null }) : text);
  } catch {
    sessionStorage.removeItem(KEY); // too large for the browser: the next visit opens afresh
  }
}
