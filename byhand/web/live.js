// The WebSocket /live: frames out with ids, frames in, and coming back when the connection is lost.

// Which events end an operation. The others (step, reading, prefill) only come on the way.
const STANDING = ['paused', 'finished'];
const ENDS = {
  start: STANDING, load: STANDING, step: STANDING, run: STANDING, force: STANDING, pause: STANDING, stop: ['finished'],
  insert: ['changed'], edit: ['changed'], rewind: ['changed'], undo: ['changed'], fork: ['forked'],
  switch: ['switched'], set: ['set'], logits: ['logits'], tree: ['tree'], record: ['record'], resume: ['resumed'],
  machine: ['machine'],
};
const TAKEN_OVER = 4000; // another connection has asked for this one's runs
const WAITS = [500, 1000, 2000, 4000];

/** What the server answered with an error frame. `run` is the one that stands still because of it. */
export class LiveError extends Error {
  constructor({ message, code }, run = null) {
    super(message);
    Object.assign(this, { code, run });
  }
}

/** A key as a WebSocket can say it: a browser lets us name protocols, and no headers. */
function protocols(key) {
  if (!key) return ['byhand'];
  const bytes = new TextEncoder().encode(key);
  const packed = btoa(String.fromCharCode(...bytes)).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');
  return ['byhand', `byhand.key.${packed}`];
}

export class Live {
  /** `onFrame` gets every frame; `onStatus` gets "live", "lost", or "refused" when the server asks for a key. */
  constructor({ onFrame, onStatus, onWire = () => {}, key = () => null }) {
    Object.assign(this, { onFrame, onStatus, onWire, key, socket: null, pending: new Map(), count: 0, tries: 0 });
  }

  connect() {
    clearTimeout(this.timer);
    const address = new URL('/live', location.href);
    address.protocol = address.protocol === 'https:' ? 'wss:' : 'ws:';
    const socket = new WebSocket(address, protocols(this.key()));
    this.socket = socket;
    socket.addEventListener('message', (message) => this.receive(JSON.parse(message.data), message.data));
    socket.addEventListener('close', ({ code }) => {
      this.isTakenOver = code === TAKEN_OVER;
      this.closed(socket);
    });
  }

  get isOpen() {
    return this.socket?.readyState === WebSocket.OPEN && this.isGreeted === true;
  }

  /** Send an operation; the promise is its answer. `onStarted` is called when a run has a name, long before it stands. */
  send(op, fields = {}, onStarted = () => {}) {
    if (this.socket?.readyState !== WebSocket.OPEN) {
      return Promise.reject(new LiveError({ code: 'offline', message: 'This needs the model, and the server is not connected.' }));
    }
    const id = (this.count += 1);
    const text = JSON.stringify({ op, id, ...fields });
    this.onWire('→', text);
    this.socket.send(text);
    return new Promise((resolve, reject) => {
      this.pending.set(id, { op, run: fields.run, resolve, reject, onStarted });
    });
  }

  receive(frame, text) {
    this.onWire('←', text);
    if (frame.event === 'hello') Object.assign(this, { tries: 0, isGreeted: true });
    const pending = this.pending.get(frame.id);
    if (pending && frame.event === 'started') pending.run = frame.run;
    this.onFrame(frame);
    if (pending && frame.event === 'started') pending.onStarted(frame);
    if (pending && frame.event === 'error') this.settle(frame.id, ({ op, run, reject }) => reject(new LiveError(frame, ENDS[op] === STANDING ? run : null)));
    else if (pending && ENDS[pending.op].includes(frame.event)) this.settle(frame.id, (waiting) => waiting.resolve(frame));
    if (STANDING.includes(frame.event)) this.settleStanding(frame);
  }

  /** A pause answers the run that it paused, too: that one's own answer will not come. */
  settleStanding(frame) {
    for (const [id, waiting] of [...this.pending]) {
      const waits = waiting.run === frame.run && ENDS[waiting.op] === STANDING;
      if (waits) this.settle(id, (one) => one.resolve(frame));
    }
  }

  settle(id, how) {
    const waiting = this.pending.get(id);
    this.pending.delete(id);
    if (waiting) how(waiting);
  }

  async closed(socket) {
    if (socket !== this.socket) return;
    this.isGreeted = false;
    for (const id of [...this.pending.keys()]) {
      this.settle(id, (one) => one.reject(new LiveError({ code: 'offline', message: 'the connection was lost' })));
    }
    const refused = await this.isRefused();
    this.onStatus(refused ? 'refused' : 'lost');
    if (refused) return;
    const wait = WAITS[Math.min(this.tries, WAITS.length - 1)];
    this.tries += 1;
    this.timer = setTimeout(() => this.connect(), wait);
  }

  /** A browser hides why a handshake failed; the same key on a plain route tells. */
  async isRefused() {
    const headers = this.key() ? { Authorization: `Bearer ${this.key()}` } : {};
    const answer = await fetch('/v1/models', { headers }).catch(() => null);
    return answer?.status === 401;
  }
}
