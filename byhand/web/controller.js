// What the reader can do. Every hand on the crank ends here, whichever button, key or candidate it came from.

import { LiveError } from './live.js';
import { cut, recordOf } from './record.js';
import { Records } from './records.js';

const SPEEDS = { slow: 1200, easy: 400, brisk: 120 };

export class Controller extends Records {
  // Runs come and go.

  /** Start a run from text, ids or messages, and show it. */
  async start(fields, { isShown = true, top = 5 } = {}) {
    const { said } = this.store.state;
    this.checkRoom();
    this.say(null);
    this.halt();
    const seen = (frame) => {
      if (!isShown) return;
      this.leaveStored();
      this.show(frame.run);
    };
    const { run } = await this.live.send('start', { ...fields, params: said, top }, seen);
    this.peek(run);
    return run;
  }

  /** Refuse one run more than the server keeps for a page: which of them has to go is the reader's to say. */
  checkRoom() {
    const { limits, order, runs } = this.store.state;
    const live = order.filter((name) => runs[name].source === 'live').length;
    if (!limits || live < limits.live_runs) return;
    const text = `${live} runs are open, the most that this server keeps for one page. Close one in the tree, then try again.`;
    throw Object.assign(new Error(text), { way: 'tree' });
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
    this.say(null);
    this.store.put({ current: name, at: null, hover: null, isWhatIf: false, settings: { ...this.store.state.settings, ...sliders(run.params), ...run.said } });
    if (run.source !== 'live') return;
    this.peek(name);
    if (run.status !== 'running') this.readPrompt(name);
  }

  async close(name) {
    const run = this.store.state.runs[name];
    if (run?.source === 'live') await this.live.send('stop', { run: name });
    this.store.dispatch({ event: 'removed', name });
    await this.refreshTree();
  }

  /** Keep a run's record here, and let the server forget it: the next step loads it again. */
  shelve(name) {
    this.store.dispatch({ event: 'orphaned', recordOf, names: [name] });
    return this.live.send('stop', { run: name });
  }

  /** Make a record live: its steps are loaded into the engine, which goes on from there. Where another model is served,
   * who wants to go `on` from the stored run gets a run of that model's. */
  ensureLive({ isOn = false } = {}) {
    const { run } = this;
    if (!run) return Promise.reject(new Error('there is no run yet: write a prompt and start it'));
    if (run.source === 'live') return Promise.resolve(run.name);
    // Two keys pressed quickly mean one run, not two.
    this.loading ??= this.load(run, isOn).finally(() => { this.loading = null; });
    return this.loading;
  }

  async load(run, isOn) {
    this.halt();
    const { model } = this.store.state;
    if (!this.live.isOpen) throw new LiveError({ code: 'offline', message: 'this needs the model, and the server does not answer; the record can still be played' });
    if (run.identity.digest === model.digest) return this.loadOwn(run);
    if (run.isStored && isOn) return this.start({ prompt: textOfPrompt(run) });
    const way = run.isStored ? `Press → to start one of ${model.name}.` : 'Start its prompt above, and it is answered by the model that is served.';
    throw new Error(`This run was made by ${run.identity.name}, and ${model.name} is served here: it can be played, not continued. ${way}`);
  }

  async loadOwn(run) {
    this.checkRoom();
    const record = cut(run.record, run.steps.length);
    // What the reader set while it was a record holds from here on.
    const settings = [...record.settings, { from: run.steps.length, params: { ...record.settings.at(-1).params, ...run.said } }];
    const frame = await this.live.send('load', { record: { ...record, settings } });
    const loadedSeconds = run.isOrphan ? run.loadedSeconds : run.steps.map((step) => step.seconds);
    this.store.dispatch({ event: 'loaded', name: run.name, by: frame.run, values: { loadedSeconds } });
    this.store.put({ settings: { ...this.store.state.settings, ...sliders(this.store.state.runs[frame.run].params) } });
    this.readPrompt(frame.run);
    return frame.run;
  }

  /** What the model predicts after each token of a prompt, where nobody has asked yet. Not having it is no fault. */
  async readPrompt(name) {
    const run = this.store.state.runs[name];
    if (run?.source !== 'live' || Object.keys(run.readings).length) return;
    const prompt = run.tokens.slice(0, run.promptLength);
    const body = JSON.stringify({ prompt: prompt.map((token) => token.id), top: 5 });
    this.busy(1);
    const answer = await fetch('/read', { method: 'POST', body, headers: { 'Content-Type': 'application/json', ...this.headers() } }).catch(() => null);
    const text = answer?.ok ? await answer.text().catch(() => '') : '';
    this.busy(-1);
    const lines = text.split('\n').filter((line) => line.endsWith('}')).map((line) => JSON.parse(line));
    const readings = lines.filter((one) => one.predicted).map((one) => ({ ...one, token: prompt[one.position] }));
    if (readings.length === prompt.length) this.store.dispatch({ event: 'readings', run: name, readings });
  }

  // The crank.

  step() {
    return this.attempt(async () => {
      const name = await this.ensureLive({ isOn: true });
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
      const name = await this.ensureLive({ isOn: true });
      if (this.isOver(name)) return;
      this.follow();
      const { speed, until } = this.store.state;
      this.store.dispatch({ event: 'run', name, values: { status: 'running' } });
      if (SPEEDS[speed]) return this.walk(name, SPEEDS[speed]);
      this.noted(name);
      const end = await this.live.send('run', { run: name, until });
      this.met(end.why);
      await this.settle(name, 'run');
    });
  }

  /** Whether a run paused at a breakpoint, which is told. */
  met(why) {
    if (!why || ['pause', 'count'].includes(why)) return false;
    this.say(`Paused ${why === 'text' ? 'after these words' : 'before the next token'}: the breakpoint “${why.replace('_', ' ')}” was met.`);
    return true;
  }

  async walk(name, wait) {
    this.isWalking = true;
    while (this.isWalking) {
      this.noted(name);
      const { until } = this.store.state; // as it stands now: it may be changed on the way
      const frame = await this.live.send('step', { run: name, count: 1, until });
      if (frame.event === 'finished' || this.met(frame.why)) this.isWalking = false;
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
    cancelAnimationFrame(this.frame);
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
      const before = this.run.tokens;
      await this.live.send('undo', { run: name });
      this.follow();
      if (isSame(before, this.run.tokens)) await this.resetSettings(name);
      await this.settle(name, 'undo');
    });
  }

  /** Nothing but settings was taken back: they stand in the server's record. */
  async resetSettings(name) {
    await this.live.send('record', { run: name });
    const { said, settings, runs } = this.store.state;
    const { params, said: own } = runs[name];
    const stillSaid = (values) => Object.fromEntries(Object.entries(values).filter(([one, value]) => params[one] === value));
    this.store.dispatch({ event: 'run', name, values: { said: stillSaid(own) } });
    this.store.put({ said: stillSaid(said), settings: { ...settings, ...sliders(params) } });
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
    this.checkRoom();
    const frame = await this.live.send('fork', { run: name });
    this.undone.push({ run: frame.run, parent: name });
    this.show(frame.run);
    return frame.run;
  }

  /** Do something in a new branch; where it cannot be done, there is none. */
  async inBranch(name, change) {
    const branch = await this.branchOf(name);
    try {
      await change(branch);
    } catch (error) {
      this.undone.pop();
      this.show(name);
      await this.close(branch);
      throw error;
    }
    return branch;
  }

  /** Take another token at a place. Where something stands already, a branch takes it: no tail is overwritten. */
  take(at, id) {
    return this.attempt(async () => {
      let name = await this.ensureLive();
      const { run } = this;
      if (run.tokens[at]?.id === id) {
        this.say('This token stands there already. Another candidate makes a branch.');
        return;
      }
      if (at < run.tokens.length || run.finish) {
        name = await this.inBranch(name, (branch) => this.live.send('edit', { run: branch, position: at, token: id }));
      } else {
        this.noted(name);
        await this.live.send('force', { run: name, token: id });
      }
      this.follow();
      this.did('choose');
      await this.settle(name, 'choose');
    });
  }

  /** Put text where a token stands; in a branch. What came after it is let go of, or put back as the reader's own. A
   * text that begins otherwise has nothing in common with this one: it is a run of its own. */
  write(at, text, { isTailKept = false } = {}) {
    return this.attempt(async () => {
      let name = await this.ensureLive();
      const { length } = this.run.tokens;
      const tail = isTailKept ? this.run.tokens.slice(at + 1).map((token) => token.id) : [];
      const put = async (run) => {
        if (at && at < length) await this.live.send('rewind', { run, count: length - at });
        if (at && text) await this.live.send('insert', { run, text });
        if (tail.length) await this.live.send('insert', { run, ids: tail });
      };
      if (at && at < length) name = await this.inBranch(name, put);
      else {
        if (at) this.noted(name);
        else name = await this.start({ prompt: text });
        await put(name);
      }
      this.follow();
      this.did('write');
      await this.settle(name, 'write');
    });
  }

  set(name, value) {
    const { said, settings } = this.store.state;
    this.store.put({ said: { ...said, [name]: value }, settings: { ...settings, [name]: value } });
    const { run } = this;
    if (!run) return null;
    this.store.dispatch({ event: 'run', name: run.name, values: { said: { ...run.said, [name]: value } } });
    if (run.source !== 'live') return null;
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
    if (at === null && run.isFresh) return; // the token that has just come is looked at, not the one to come
    const position = at ?? run.tokens.length;
    if (position < run.promptLength || run.logits.some((one) => one.position === position)) return;
    this.busy(1);
    try {
      await this.live.send('logits', { run: name, index: position - run.promptLength });
    } catch (error) {
      if (!error.code) throw error; // what the server says against it is no news: the panel says what is missing
    } finally {
      this.busy(-1);
    }
  }

  /** This machine's limit: the server measures it once, when somebody looks. */
  async askMachine() {
    if (!this.live.isOpen || this.store.state.machine) return;
    const answer = await this.attempt(() => this.live.send('machine'), { isAsked: false });
    if (!answer && this.live.isOpen) this.store.put({ machine: {} });
  }

  refreshTree() {
    return this.live.isOpen ? this.attempt(() => this.live.send('tree'), { isAsked: false }) : null;
  }
}

/** The prompt as it was typed: what a tokenizer puts around it is its own. */
function textOfPrompt(run) {
  return run.tokens.slice(0, run.promptLength).filter((token) => !token.special).map((token) => token.text).join('');
}

function isSame(one, other) {
  return one.length === other.length && one.every((token, at) => token.id === other[at].id);
}

function sliders(params) {
  const names = ['temperature', 'top_k', 'top_p', 'min_p', 'repetition_penalty', 'presence_penalty', 'frequency_penalty'];
  return Object.fromEntries(names.filter((name) => params[name] !== undefined).map((name) => [name, params[name]]));
}
