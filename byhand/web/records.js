// What the page does by itself, with or without a server: it says what went wrong, and saves, shares, opens and plays records.

import { addressOf } from './address.js';
import { cut, download, pack, parseRecord } from './record.js';
import { shown } from './state.js';

const REPLAY = { slow: 1200, easy: 400, brisk: 120, full: 0 };
const REPLAYED_PER_FRAME = 10;
const LONGEST_LINK = 60_000;

/** Readings without what the frames around them said. */
function plain(readings) {
  return Object.values(readings).map(({ run, id, event, ...reading }) => reading);
}

export class Records {
  constructor(store, live, headers = () => ({})) {
    Object.assign(this, { store, live, headers, timer: null, undone: [], names: 0 });
  }

  get run() {
    return shown(this.store.state);
  }

  /** Do something; what the server says against it is told to the reader, whole. What was told of the last thing that was
   * `asked` for is over by then. */
  async attempt(action, { isAsked = true } = {}) {
    if (isAsked && this.store.state.message?.kind === 'error') this.say(null);
    this.busy(1);
    try {
      return await action();
    } catch (error) {
      if (error.run) this.store.dispatch({ event: 'run', name: error.run, values: (run) => (run.status === 'running' ? { status: 'paused' } : {}) });
      this.say(error instanceof Error ? error.message : String(error), 'error', { code: error.code, way: error.way });
      return null;
    } finally {
      this.busy(-1);
    }
  }

  /** What is under way shows in the page: for the pointer, and for whoever waits for it. */
  busy(by) {
    this.underWay = (this.underWay ?? 0) + by;
    document.body.dataset.busy = String(this.underWay > 0);
  }

  /** Tell the reader; `way` is the panel where something can be done about it. */
  say(text, kind = 'note', { code = null, way = null } = {}) {
    this.store.put({ message: text ? { kind, text, code, way } : null });
  }

  did(what) {
    this.store.dispatch({ event: 'done', what });
  }

  // Records.

  /** The current run as a document: the server's own words where it has them. */
  async record() {
    const { run } = this;
    if (!run) throw new Error('there is no run to save yet');
    if (run.source === 'record') return cut(run.record, run.steps.length);
    return (await this.live.send('record', { run: run.name })).record;
  }

  save() {
    return this.attempt(async () => {
      const record = await this.record();
      download({ record, readings: plain(this.run.readings) });
    });
  }

  share() {
    return this.attempt(async () => {
      if (!navigator.clipboard) throw new Error('browsers give a page the clipboard only over https or on the same machine: save the run as a file instead');
      const [record, readings] = [await this.record(), plain(this.run.readings)];
      let packed = await pack({ record, readings });
      if (packed.length > LONGEST_LINK) packed = await pack({ record, readings: [] });
      if (packed.length > LONGEST_LINK) throw new Error('this run is too long for a link: save it as a file instead');
      const link = new URL(`/${addressOf(this.store.state, packed)}`, location.href);
      await navigator.clipboard.writeText(link.href);
      this.say('A link that holds the whole run is in the clipboard. It opens in any byhand page, with or without the model.');
    });
  }

  /** Show a record that the reader brings. */
  open(text) {
    return this.attempt(() => {
      this.put(text);
      this.say(null);
    });
  }

  /** Show a record: all of it or its first `count` steps, under a name of its own, with what else is known of it. */
  put(text, { name = this.freeName(), count = null, values = {} } = {}) {
    const { record, readings } = parseRecord(text);
    this.halt();
    this.store.dispatch({ event: 'opened', name, record, readings, count: count ?? record.steps.length, values });
    return name;
  }

  freeName() {
    do this.names += 1; while (this.store.state.runs[`record-${this.names}`]);
    return `record-${this.names}`;
  }

  /** Play a record from its first step, with no model. */
  replay() {
    const { run } = this;
    if (run?.source !== 'record') return;
    this.halt();
    this.follow();
    this.store.put({ replay: run.name });
    this.store.dispatch({ event: 'revealed', name: run.name, count: 0 });
    this.playOn();
  }

  playOn() {
    const { replay, runs, speed } = this.store.state;
    const run = runs[replay];
    if (!run || run.steps.length >= run.record.steps.length) return this.halt();
    const wait = REPLAY[speed];
    this.store.dispatch({ event: 'revealed', name: replay, count: run.steps.length + (wait ? 1 : REPLAYED_PER_FRAME) });
    if (wait) this.timer = setTimeout(() => this.playOn(), wait);
    else this.frame = requestAnimationFrame(() => this.playOn());
  }
}
