// Everything that is on screen follows from this state, and the state from events: a pure function, no page in it.

export const initial = {
  connection: 'connecting', // "connecting", "live", "lost" or "refused"
  model: null, limits: null,
  runs: {}, order: [], current: null, // runs by name, in the order in which they came
  renamed: {}, // records that became live runs, under names of the engine's
  at: null, // the selected place: tokens before it are read, the token there comes next; null follows the end
  hover: null,
  settings: {}, said: {}, isWhatIf: false, // the sliders; what this reader set; whether they reshape what was
  view: 'strip', panel: 'settings', showsIds: false,
  speed: 'full', until: {}, replay: null,
  tree: null, machine: null, compare: null, message: null, wire: [], done: {},
};

const KEPT_LOGITS = 8;

/** The run that is shown. */
export const shown = (state) => state.runs[state.current] ?? null;

/** The run of this name, or the one that it became. */
export const runNamed = ({ runs, renamed }, name) => runs[name] ?? runs[renamed[name]] ?? null;

/** The served model, where a run is its own: what is known of it says nothing of another model's run. */
export function modelOf({ model }, run) {
  return model && run?.identity?.digest === model.digest ? model : null;
}

/** Whether a step was timed where its record was made, perhaps on another machine. */
export function isOfRecord(run, step) {
  if (run.source === 'record' && !run.isOrphan) return true;
  return run.loadedSeconds?.[step.index] === step.seconds;
}

/** The place that panels speak of: pointed at, else selected, else after the last token that came. */
export function place(state) {
  const run = shown(state);
  if (!run) return 0;
  const wanted = state.hover ?? state.at ?? run.tokens.length - (run.isFresh ? 1 : 0);
  return Math.max(1, Math.min(wanted, run.tokens.length));
}

/** The step that chose the token at a place: one of the run's, or one that was taken back from just there. */
export function stepAt(run, at) {
  return run.steps[at - run.promptLength] ?? (at === run.tokens.length ? run.ghost : null) ?? null;
}

/** A letter, then two: how a branch is called. */
function labelOf(count) {
  return (count >= 26 ? labelOf(Math.floor(count / 26) - 1) : '') + String.fromCharCode(65 + (count % 26));
}

/** The first letter that no run bears. */
function freeLabel(state) {
  const borne = new Set(state.order.map((name) => state.runs[name].label));
  let count = 0;
  while (borne.has(labelOf(count))) count += 1;
  return labelOf(count);
}

function newRun(state, name, values) {
  return {
    name, label: state.runs[name]?.label ?? freeLabel(state), parent: null, at: null,
    tokens: [], promptLength: 0, steps: [], readings: {}, params: {}, settings: [], said: {}, status: 'paused', why: null,
    finish: null, prefill: null, ghost: null, note: null, logits: [], source: 'live', identity: null, made: null,
    isFresh: false, needsRecord: false, isChat: false, isOrphan: false, record: null,
    loadedSeconds: null, // of the steps that came with a record: in a live run, they tell which those are
    ...values,
  };
}

function withRun(state, name, change) {
  const run = state.runs[name];
  if (!run) return state;
  return { ...state, runs: { ...state.runs, [name]: { ...run, ...(typeof change === 'function' ? change(run) : change) } } };
}

function addRun(state, run) {
  const order = state.order.includes(run.name) ? state.order : [...state.order, run.name];
  return { ...state, runs: { ...state.runs, [run.name]: run }, order };
}

function identityOf(model) {
  return model && { name: model.name, model_type: model.type, digest: model.digest, dtype: model.dtype };
}

const byPosition = (readings) => Object.fromEntries(readings.map((reading) => [reading.position, reading]));

function hello(state, { model, limits }) {
  const settings = state.current ? state.settings : { ...model.suggested, ...state.said };
  const message = state.message?.code === 'offline' ? null : state.message;
  const machine = state.model?.digest === model.digest ? state.machine : null;
  return { ...state, model, limits, connection: 'live', settings, message, machine, tree: null };
}

function started(state, frame) {
  const steps = frame.steps ?? [];
  const ended = frame.finish_reason ? { finish_reason: frame.finish_reason, stop_reason: frame.stop_reason } : null;
  const run = newRun(state, frame.run, {
    tokens: frame.tokens, steps, promptLength: frame.prompt_length ?? frame.tokens.length, params: frame.params,
    settings: [{ from: 0, params: frame.params }], status: 'running', identity: identityOf(state.model), finish: ended,
    said: { ...state.said },
  });
  return addRun(state, run);
}

function stepped(state, frame) {
  const { step } = frame;
  return withRun(state, frame.run, (run) => ({
    tokens: [...(run.tokens.length > step.position ? run.tokens.slice(0, step.position) : run.tokens), step.token],
    steps: [...(run.steps.length > step.index ? run.steps.slice(0, step.index) : run.steps), step],
    ghost: null, finish: null, isFresh: true,
  }));
}

/** What the model says after a prompt position. An edited prompt's new end comes as one, too. */
function read(state, frame) {
  return withRun(state, frame.run, (run) => {
    const { position, token } = frame;
    const isSame = run.tokens[position]?.id === token.id;
    return {
      readings: { ...run.readings, [position]: frame },
      tokens: isSame ? run.tokens : [...run.tokens.slice(0, position), token],
    };
  });
}

function only(readings, length) {
  return Object.fromEntries(Object.entries(readings).filter(([position]) => Number(position) < length));
}

/** A list became another: rewound, edited, inserted into, or undone. What cannot be known here is asked for. */
function changed(state, frame) {
  return withRun(state, frame.run, (run) => {
    const length = frame.ids.length;
    const tokens = run.tokens.slice(0, length);
    const isKnown = tokens.length === length && frame.ids.every((id, at) => tokens[at].id === id);
    const hasSteps = run.promptLength === frame.prompt_length || length <= frame.prompt_length;
    const wasRewound = isKnown && run.tokens.length > length && length >= run.promptLength;
    const steps = hasSteps ? run.steps.slice(0, Math.max(0, length - frame.prompt_length)) : [];
    return {
      tokens, steps, promptLength: frame.prompt_length, readings: only(run.readings, length),
      ghost: wasRewound ? run.steps[length - run.promptLength] ?? null : null,
      logits: run.logits.filter((one) => one.position < length),
      finish: frame.finish_reason ? { finish_reason: frame.finish_reason, stop_reason: null } : null,
      status: frame.finish_reason ? 'finished' : 'paused', isFresh: false,
      note: { computed: frame.computed, dropped: frame.dropped, length },
      needsRecord: !isKnown || steps.length !== length - frame.prompt_length,
    };
  });
}

function forked(state, frame) {
  const parent = state.runs[frame.parent];
  const run = newRun(state, frame.run, {
    ...parent, name: frame.run, label: freeLabel(state), parent: frame.parent, at: frame.at, ghost: null,
    params: frame.params, status: frame.finish_reason ? 'finished' : 'paused', logits: [], note: null, source: 'live',
  });
  return addRun(state, run);
}

function resumed(state, frame) {
  return frame.runs.reduce((next, view) => {
    const known = next.runs[view.run] ?? {};
    const ended = view.finish_reason ? { finish_reason: view.finish_reason, stop_reason: view.stop_reason } : null;
    const run = newRun(next, view.run, {
      ...known, tokens: view.tokens, promptLength: view.prompt_length, params: view.params, parent: view.parent,
      at: view.at, finish: ended, status: ended ? 'finished' : 'paused', identity: identityOf(next.model),
      settings: known.settings?.length ? known.settings : [{ from: 0, params: view.params }],
      needsRecord: true, source: 'live', isOrphan: false, record: null, steps: known.steps ?? [],
    });
    return addRun(next, run);
  }, state);
}

/** The server's own record of a run: its steps as they are. */
function recorded(state, { run: name, record }) {
  return withRun(state, name, (run) => ({
    tokens: [...record.prompt, ...record.steps.map((step) => step.token)], steps: record.steps,
    promptLength: record.prompt.length, settings: record.settings, params: record.settings.at(-1).params,
    identity: record.model, needsRecord: false,
    isFresh: run.isFresh && record.steps.length > 0,
  }));
}

/** The settings in force at a step of a record. */
const paramsAt = (record, count) => record.settings.filter((one) => one.from <= count).at(-1)?.params ?? {};

/** A record that was opened: a run without a model, all of it or its first `count` steps shown. */
function opened(state, { name, record, readings, count, values }) {
  const steps = record.steps.slice(0, count);
  const isWhole = count >= record.steps.length;
  const params = paramsAt(record, count);
  const run = newRun(state, name, {
    tokens: [...record.prompt, ...steps.map((step) => step.token)], steps, promptLength: record.prompt.length,
    readings: byPosition(readings), params, settings: record.settings, identity: record.model,
    source: 'record', record, status: 'recorded', isFresh: steps.length > 0,
    made: { seed: record.seed, choice: record.choice, byhand: record.byhand, created: record.created },
    finish: isWhole && record.finish_reason ? { finish_reason: record.finish_reason, stop_reason: record.stop_reason } : null,
    ...values,
  });
  return { ...addRun(state, run), current: name, at: null, hover: null, settings: { ...params, ...run.said }, isWhatIf: false };
}

/** Show the first `count` steps of an opened record. */
function revealed(state, { name, count }) {
  return withRun(state, name, (run) => {
    const { record } = run;
    const more = record.steps.slice(run.steps.length, count);
    const isWhole = count >= record.steps.length;
    const isForward = count >= run.steps.length;
    const steps = isForward ? [...run.steps, ...more] : run.steps.slice(0, count);
    return {
      steps, isFresh: steps.length > 0, params: paramsAt(record, count),
      tokens: isForward ? [...run.tokens, ...more.map((step) => step.token)] : run.tokens.slice(0, run.promptLength + count),
      finish: isWhole && record.finish_reason ? { finish_reason: record.finish_reason, stop_reason: record.stop_reason } : null,
    };
  });
}

function keptLogits(state, frame) {
  const bytes = Uint8Array.from(atob(frame.data), (character) => character.charCodeAt(0));
  const row = new Float32Array(bytes.buffer);
  return withRun(state, frame.run, (run) => {
    const position = run.promptLength + frame.index;
    const others = run.logits.filter((one) => one.position !== position).slice(-(KEPT_LOGITS - 1));
    return { logits: [...others, { position, row, tokens: frame.tokens }] };
  });
}

/** Runs that only live here now: the server that computed them is gone, or keeps these no more. Of one that is known by
 * name alone, nothing is left. */
function orphaned(state, { recordOf, names = state.order }) {
  const orphan = (run) => ({ ...run, source: 'record', status: 'recorded', record: recordOf(run), isOrphan: true });
  const isGone = (name) => names.includes(name) && state.runs[name].source === 'live';
  const order = state.order.filter((name) => !isGone(name) || state.runs[name].tokens.length);
  const runs = Object.fromEntries(order.map((name) => [name, isGone(name) ? orphan(state.runs[name]) : state.runs[name]]));
  return { ...state, runs, order, current: runs[state.current] ? state.current : order.at(-1) ?? null };
}

/** A record became a live run, which takes its place: in the order, on screen, and for the branches that were made of it. */
function loaded(state, { name, by, values }) {
  const { [name]: old, [by]: run, ...others } = state.runs;
  const runs = Object.fromEntries(Object.entries(others).map(([one, each]) => [one, each.parent === name ? { ...each, parent: by } : each]));
  const order = state.order.filter((one) => one !== by).map((one) => (one === name ? by : one));
  const renamed = Object.fromEntries(Object.entries({ ...state.renamed, [name]: name }).map(([one, now]) => [one, now === name ? by : now]));
  const { label, parent, at, readings, said, isFresh, isChat } = old;
  const taken = { ...run, label, parent, at, readings, said, isFresh, isChat, ...values };
  return { ...state, runs: { ...runs, [by]: taken }, order, renamed, current: state.current === name ? by : state.current };
}

function removed(state, { name }) {
  const { [name]: _, ...runs } = state.runs;
  const order = state.order.filter((one) => one !== name);
  return { ...state, runs, order, current: state.current === name ? order.at(-1) ?? null : state.current, at: null };
}

function finished(state, frame) {
  const finish = { finish_reason: frame.finish_reason, stop_reason: frame.stop_reason };
  return withRun(state, frame.run, (run) => (run.source === 'live' ? { status: 'finished', finish } : {}));
}

const REDUCERS = {
  hello, started, reading: read, step: stepped, changed, forked, resumed, record: recorded, logits: keptLogits, finished,
  opened, revealed, orphaned, loaded, removed,
  prefill: (state, { run: name, done, total, reused }) => withRun(state, name, (run) => (
    { prefill: { done, total, reused, passes: (run.prefill?.passes ?? 0) + 1 } })),
  readings: (state, { run: name, readings }) => withRun(state, name, { readings: byPosition(readings) }),
  machine: (state, { event, id, ...machine }) => ({ ...state, machine }),
  // At a breakpoint the token to come is what is looked at, not the last one.
  paused: (state, { run: name, why }) => withRun(state, name, (run) => (
    { status: 'paused', why, isFresh: run.isFresh && ['count', 'pause', 'prefilled'].includes(why) })),
  set: (state, frame) => withRun(state, frame.run, (run) => (
    { params: frame.params, settings: [...run.settings, { from: run.steps.length, params: frame.params }] })),
  tree: (state, { runs, pages, bytes }) => ({ ...state, tree: { runs, pages, bytes } }),
  error: (state, frame) => ({ ...state, message: { kind: 'error', text: frame.message, code: frame.code } }),
  // The reader's own.
  put: (state, { values }) => ({ ...state, ...values }),
  run: (state, { name, values }) => withRun(state, name, values),
  known: (state, { name, values }) => addRun(state, newRun(state, name, values)),
  wire: (state, { line }) => ({ ...state, wire: [...state.wire.slice(-19), line] }),
  done: (state, { what }) => (state.done[what] ? state : { ...state, done: { ...state.done, [what]: true } }),
};

/** The next state. */
export function reduce(state, event) {
  return REDUCERS[event.event]?.(state, event) ?? state;
}

/** A state that is told of events, and tells who listens, at most once a frame. */
export class Store {
  constructor() {
    this.state = initial;
    this.listeners = [];
    this.isAwaited = false;
  }

  listen(listener) {
    this.listeners.push(listener);
  }

  dispatch(event) {
    const before = this.state;
    this.state = reduce(before, event);
    if (this.state !== before) this.awaken();
  }

  put(values) {
    this.dispatch({ event: 'put', values });
  }

  awaken() {
    if (this.isAwaited) return;
    this.isAwaited = true;
    // A hidden page draws no frames, and must not let events pile up.
    const wait = document.hidden ? (draw) => setTimeout(draw, 50) : requestAnimationFrame;
    wait(() => {
      this.isAwaited = false;
      for (const listener of this.listeners) listener(this.state);
    });
  }
}
