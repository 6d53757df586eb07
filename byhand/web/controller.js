// What the reader can do. Every hand on the crank ends here, whichever button, key or candidate it came from.

import { cut, download, pack, parseRecord, recordOf } from './record.js';
import { shown } from './state.js';

const SPEEDS = { slow: 1200, easy: 400, brisk: 120 };
const REPLAY = { slow: 1200, easy: 400, brisk: 120, full: 0 };
const REPLAYED_PER_FRAME = 10;
const LONGEST_LINK = 60_000;

export class Controller {
  constructor(store, live) {
    Object.assign(this, { store, live, timer: null, undone: [], names: 0 });
  }

  get run() {
    return shown(this.store.state);
  }

  /** Do something; what the server says against it is told to the reader, whole. */
  async attempt(action) {
    this.busy(1);
    try {
      return await action();
    } catch (error) {
      this.say(error instanceof Error ? error.message : String(error), 'error');
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

  say(text, kind = 'note') {
    this.store.put({ message: text ? { kind, text } : null });
  }

  did(what) {
    this.store.dispatch({ event: 'done', what });
  }

  // Runs come and go.

  /** Start a run from text, ids or messages, and show it. */
  async start(fields, { isShown = true } = {}) {
    const { said, limits, order, runs } = this.store.state;
    const live = order.filter((name) => runs[name].source === 'live');
    if (limits && live.length >= limits.live_runs) await this.close(live[0]);
    this.halt();
    const frame = await this.live.send('start', { ...fields, params: said, top: 5 });
    if (isShown) this.leaveStored();
    if (isShown) this.show(frame.run);
    this.peek(frame.run);
    return frame.run;
  }

  /** The stored run has done its part: it makes way for the reader's own. */
  leaveStored() {
    const { runs, order } = this.store.state;
    for (const name of order) if (runs[name].isStored) this.store.dispatch({ event: 'removed', name });
    const [first, second] = this.store.state.order;
    if (first && !second) this.store.dispatch({ event: 'run', name: first, values: { label: 'A' } });
  }

  show(name) {
    const run = this.store.state.runs[name];
    if (!run) return;
    this.halt();
    this.store.put({ current: name, at: null, hover: null, isWhatIf: false, settings: { ...this.store.state.settings, ...sliders(run.params) } });
    if (run.source === 'live') this.peek(name);
  }

  async close(name) {
    const run = this.store.state.runs[name];
    if (run?.source === 'live') await this.live.send('stop', { run: name });
    this.store.dispatch({ event: 'removed', name });
    await this.refreshTree();
  }

  /** Make a record live: its steps are loaded into the engine, which goes on from there. */
  ensureLive() {
    const { run } = this;
    if (!run) return Promise.reject(new Error('there is no run yet: write a prompt and start it'));
    if (run.source === 'live') return Promise.resolve(run.name);
    // Two keys pressed quickly mean one run, not two.
    this.loading ??= this.load(run).finally(() => { this.loading = null; });
    return this.loading;
  }

  async load(run) {
    this.halt();
    const { model, at } = this.store.state;
    if (!this.live.isOpen) throw new Error('this needs the model, and the server does not answer; the record can still be played');
    if (run.identity.digest !== model.digest) {
      throw new Error(`this record was made by ${run.identity.name}, and ${model.name} is served here: it can be played, not continued`);
    }
    const frame = await this.live.send('load', { record: cut(recordOf(run), run.steps.length) });
    const { readings, label } = run;
    this.store.dispatch({ event: 'run', name: frame.run, values: { readings, label, isFresh: run.isFresh } });
    this.store.dispatch({ event: 'removed', name: run.name });
    this.store.put({ current: frame.run, at });
    this.did('live');
    return frame.run;
  }

  // The crank.

  step() {
    return this.attempt(async () => {
      const name = await this.ensureLive();
      this.halt();
      if (this.isOver(name)) return;
      this.follow();
      this.noted(name);
      await this.live.send('step', { run: name, count: 1 });
      this.did('step');
      await this.settle(name, 'step');
    });
  }

  /** Remember an operation: undo takes back the last one, or leaves the branch that it made. */
  noted(name) {
    this.undone = [...this.undone.slice(-63), { run: name }];
  }

  isOver(name) {
    const { finish } = this.store.state.runs[name];
    if (finish) this.say(`The run has ended (${finish.finish_reason}). Rewind, or choose another token, and it goes on.`);
    return Boolean(finish);
  }

  /** Run: at full speed until a breakpoint or the end, else one step after another. */
  go() {
    return this.attempt(async () => {
      const name = await this.ensureLive();
      if (this.isOver(name)) return;
      this.follow();
      const { speed, until } = this.store.state;
      this.store.dispatch({ event: 'run', name, values: { status: 'running' } });
      if (SPEEDS[speed] && !Object.keys(until).length) return this.walk(name, SPEEDS[speed]);
      this.noted(name);
      const end = await this.live.send('run', { run: name, until });
      if (end.why && end.why !== 'pause') this.say(`Paused before the next token: the breakpoint “${end.why.replace('_', ' ')}” was met.`);
      await this.settle(name, 'run');
    });
  }

  async walk(name, wait) {
    this.isWalking = true;
    while (this.isWalking) {
      this.noted(name);
      const frame = await this.live.send('step', { run: name, count: 1 });
      if (frame.event === 'finished') this.isWalking = false;
      else if (this.isWalking) this.store.dispatch({ event: 'run', name, values: { status: 'running' } });
      if (this.isWalking) await new Promise((resolve) => { this.timer = setTimeout(resolve, wait); this.wake = resolve; });
    }
    this.store.dispatch({ event: 'run', name, values: (run) => ({ status: run.finish ? 'finished' : 'paused' }) });
    await this.settle(name, 'run');
  }

  pause() {
    const { run } = this;
    const wasWalking = this.isWalking;
    this.halt();
    if (run?.status !== 'running' || run.source !== 'live' || wasWalking) return null;
    return this.attempt(() => this.live.send('pause', { run: run.name }));
  }

  toggle() {
    const { state } = this.store;
    if (state.replay) return this.halt();
    return this.run?.status === 'running' ? this.pause() : this.go();
  }

  /** Stop what this page does by itself: walking, playing a record. */
  halt() {
    this.isWalking = false;
    this.wake?.();
    clearTimeout(this.timer);
    if (this.store.state.replay) this.store.put({ replay: null });
  }

  rewind(count = 1) {
    const { run } = this;
    return this.rewindTo(run ? run.tokens.length - count : 0);
  }

  /** Let go of everything from this place on; undo brings it back. */
  rewindTo(length) {
    return this.attempt(async () => {
      const name = await this.ensureLive();
      const count = this.run.tokens.length - length;
      if (count < 1 || length < 1) return;
      this.noted(name);
      await this.live.send('rewind', { run: name, count });
      this.follow();
      this.did('rewind');
      await this.settle(name, 'rewind');
    });
  }

  undo() {
    return this.attempt(async () => {
      const name = await this.ensureLive();
      const last = this.undone.at(-1)?.run === name ? this.undone.pop() : null;
      if (last?.parent) {
        this.show(last.parent);
        this.say('Back on the branch you came from; the other one stays in the tree.');
        return;
      }
      await this.live.send('undo', { run: name });
      this.follow();
      await this.settle(name, 'undo');
    });
  }

  fork() {
    return this.attempt(async () => {
      const name = await this.ensureLive();
      await this.branchOf(name);
      this.did('fork');
      this.say('A branch: the same tokens on the same pages. What you do now happens to it alone.');
      await this.refreshTree();
    });
  }

  async branchOf(name) {
    const frame = await this.live.send('fork', { run: name });
    this.undone.push({ run: frame.run, parent: name });
    this.show(frame.run);
    return frame.run;
  }

  /** Take another token at a place. Where something stands already, a branch takes it: no tail is overwritten. */
  take(at, id) {
    return this.attempt(async () => {
      let name = await this.ensureLive();
      const { run } = this;
      if (run.tokens[at]?.id === id) return;
      if (at < run.tokens.length || run.finish) {
        name = await this.branchOf(name);
        await this.live.send('edit', { run: name, position: at, token: id });
      } else {
        this.noted(name);
        await this.live.send('force', { run: name, token: id });
      }
      this.follow();
      this.did('choose');
      await this.settle(name, 'choose');
    });
  }

  /** Put text where a token stands, and let go of what came after it; in a branch. */
  write(at, text) {
    return this.attempt(async () => {
      let name = await this.ensureLive();
      const { length } = this.run.tokens;
      if (at < length) {
        name = await this.branchOf(name);
        await this.live.send('rewind', { run: name, count: length - at });
      } else {
        this.noted(name);
      }
      if (text) await this.live.send('insert', { run: name, text });
      this.follow();
      this.did('write');
      await this.settle(name, 'write');
    });
  }

  set(name, value) {
    const { said, settings } = this.store.state;
    this.store.put({ said: { ...said, [name]: value }, settings: { ...settings, [name]: value } });
    const { run } = this;
    if (run?.source !== 'live') return null;
    this.store.dispatch({ event: 'run', name: run.name, values: { said: { ...run.said, [name]: value } } });
    this.noted(run.name);
    return this.attempt(() => this.live.send('set', { run: run.name, params: { [name]: value } }));
  }

  // Looks.

  follow() {
    this.store.put({ at: null, hover: null, isWhatIf: false, message: null });
  }

  /** After an operation: what the page does not know is asked for. */
  async settle(name, op) {
    const run = this.store.state.runs[name];
    if (!run) return;
    if (run.note && op !== 'step' && op !== 'run') this.store.dispatch({ event: 'run', name, values: { note: { ...run.note, op } } });
    else if (run.note) this.store.dispatch({ event: 'run', name, values: { note: null } });
    if (run.needsRecord) await this.live.send('record', { run: name });
    await this.peek(name);
    if (this.store.state.panel === 'tree') await this.refreshTree();
  }

  /** The logits of the token to come, where they stand ready: not having them is no fault. */
  async peek(name, at = null) {
    const run = this.store.state.runs[name];
    if (!run || run.source !== 'live' || run.status === 'running') return;
    const position = at ?? run.tokens.length;
    if (position < run.promptLength || run.logits.some((one) => one.position === position)) return;
    try {
      await this.live.send('logits', { run: name, index: position - run.promptLength });
    } catch (error) {
      if (error.code === 'offline') return;
      this.store.put({ message: null });
    }
  }

  refreshTree() {
    return this.live.isOpen ? this.attempt(() => this.live.send('tree')) : null;
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
      const { readings } = this.run;
      const record = await this.record();
      download({ record, readings: Object.values(readings).map(({ run, id, event, ...reading }) => reading) });
      this.did('save');
    });
  }

  share() {
    return this.attempt(async () => {
      const packed = await pack({ record: await this.record(), readings: [] });
      if (packed.length > LONGEST_LINK) throw new Error('this run is too long for a link: save it as a file instead');
      const link = new URL(`/#run=${packed}`, location.href);
      await navigator.clipboard.writeText(link.href);
      this.say('A link that holds the whole run is in the clipboard. It opens in any byhand page, with or without the model.');
    });
  }

  open(text, { count = null, label = null } = {}) {
    return this.attempt(() => {
      const { record, readings } = parseRecord(text);
      this.halt();
      const name = `record-${(this.names += 1)}`;
      this.store.dispatch({ event: 'opened', name, record, readings, count: count ?? record.steps.length, label });
    });
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
    else requestAnimationFrame(() => this.playOn());
  }
}

function sliders(params) {
  const names = ['temperature', 'top_k', 'top_p', 'min_p', 'repetition_penalty', 'presence_penalty', 'frequency_penalty'];
  return Object.fromEntries(names.filter((name) => params[name] !== undefined).map((name) => [name, params[name]]));
}
