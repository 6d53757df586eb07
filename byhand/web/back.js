// Coming back: after a reload, and to a server that was away. What cannot be had back is told.

import { keep, kept } from './keep.js';
import { recordOf } from './record.js';
import { shown } from './state.js';

export class Back {
  constructor(store, live, controller, chat) {
    Object.assign(this, { store, live, controller, chat, resume: null, saved: kept(), isOpen: false });
  }

  remember() {
    if (this.isOpen) keep(this.store.state, this.resume, this.chat.messages, this.saved);
  }

  /** Show again what was kept in this tab. Runs of the server's stand there as records until it has given them back. */
  restore() {
    this.isOpen = true;
    const { saved, store } = this;
    if (!saved) return;
    for (const name of saved.order) {
      const { source, ...run } = saved.runs[name];
      const whole = saved.documents?.[name];
      const values = { ...run, isOrphan: run.isOrphan || source === 'live' };
      if (whole) this.controller.put(whole.text, { name, count: whole.count, values });
    }
    this.controller.show(store.state.runs[saved.current] ? saved.current : store.state.current);
    store.put({ said: saved.said, speed: saved.speed });
    this.chat.restore(saved.chat ?? []);
  }

  /** The server is there: it is asked for the runs that the last connection left. */
  greeted({ resume }) {
    const { saved, store } = this;
    const token = this.resume ?? saved?.resume;
    Object.assign(this, { saved: null, resume });
    const { order, runs } = saved ?? store.state;
    const names = order.filter((name) => runs[name].source === 'live');
    if (token && names.length) this.controller.attempt(() => this.takeOver(token, names, saved), { isAsked: false });
  }

  /** Take the runs over; those that the server knows no more stay as records. */
  async takeOver(token, names, saved) {
    const { store, live } = this;
    for (const name of names) if (!store.state.runs[name]) store.dispatch({ event: 'known', name, values: saved.runs[name] });
    if (saved) store.put({ order: inOrder(store.state.order, saved.order) });
    const { runs } = await live.send('resume', { token }).catch(() => ({ runs: [] })); // why it has none of them is no matter
    for (const { run } of runs) await live.send('record', { run }).catch(() => null);
    store.dispatch({ event: 'orphaned', recordOf, names: names.filter((name) => !runs.some(({ run }) => run === name)) });
    if (saved) this.showAgain(saved.current);
    if (!runs.length && names.some((name) => store.state.runs[name])) this.controller.say(`${this.whyGone()} What is on screen is kept, and the next step takes it there.`);
    this.tellLost(names);
    this.chat.returned();
    if (store.state.panel === 'tree') this.controller.refreshTree();
    this.remember();
  }

  whyGone() {
    if (this.live.isTakenOver) return 'Another tab has taken these runs over.';
    return `The server has these runs no more: it was started anew, or not heard of for ${this.store.state.limits.resume_seconds} seconds.`;
  }

  /** The run that was looked at, now that it is live; its place stays selected. */
  showAgain(name) {
    const { at, current, runs } = this.store.state;
    if (runs[name]?.source !== 'live' || (current !== name && !shown(this.store.state)?.isStored)) return;
    this.controller.show(name);
    this.controller.leaveStored();
    this.store.put({ at });
  }

  /** Say what was not kept: of all runs that only this page had, or of these. */
  tellLost(names = this.saved?.order.filter((name) => this.saved.runs[name].source === 'record') ?? []) {
    const count = names.filter((name) => !this.store.state.runs[name]).length;
    const lost = [];
    if (count) lost.push(`${count === 1 ? 'One run was' : `${count} runs were`} too long for this tab to keep over the reload. What was saved as a file can be opened again.`);
    if (this.saved?.isCut) lost.push('The chat was too long for this tab to keep over the reload.');
    if (lost.length) this.controller.say(lost.join(' '), 'error');
  }
}

/** These names as they stood before, and after them those that are new. */
function inOrder(names, before) {
  return [...before.filter((name) => names.includes(name)), ...names.filter((name) => !before.includes(name))];
}
