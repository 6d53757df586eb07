// Chat on the same engine: every answer is a run, streamed here, and one click away from its tokens.

import { byId, el } from './dom.js';
import { runNamed } from './state.js';

const EXAMPLES = ['Count from one to five.', 'Name a color.', 'Tell me a story about a dog.'];
const GAP = 16; // pixels left free below the newest message

function button(text, onclick, label) {
  return el('button', { type: 'button', onclick, text, 'aria-label': label ?? text });
}

/** What a run has written so far. */
function textOf(run) {
  return run.steps.map((step) => step.text).join('');
}

export class Chat {
  constructor(store, controller, headers) {
    Object.assign(this, { store, controller, headers, node: byId('chat-view'), messages: [], past: [], asking: null, editing: null });
    this.build();
  }

  build() {
    this.list = el('ol', { class: 'messages', 'aria-live': 'off' });
    const examples = EXAMPLES.map((text) => button(text, () => { this.field.value = text; this.send(); }));
    this.empty = el('div', { class: 'welcome' }, el('p', { class: 'empty', text: 'Write something below, or begin with one of these. Every answer can be opened in the strip, token by token.' }), el('div', { class: 'row' }, ...examples));
    this.field = el('textarea', { id: 'chat-text', rows: 2, placeholder: 'Count from one to five.', 'aria-label': 'message', spellcheck: 'false' });
    this.field.addEventListener('keydown', (event) => { if (event.key === 'Enter' && !event.shiftKey) { event.preventDefault(); this.send(); } });
    this.sendButton = el('button', { type: 'button', class: 'strong', id: 'chat-send', onclick: () => (this.asking ? this.stop() : this.send()), text: 'Send' });
    this.template = el('details', { class: 'template', id: 'template' }, el('summary', { text: 'The prompt that the model reads' }), el('pre', { tabindex: '0', 'aria-label': 'rendered template' }));
    this.template.addEventListener('toggle', () => this.showTemplate());
    this.undoButton = el('button', { type: 'button', id: 'chat-undo', onclick: () => this.undo(), text: '↶ Undo', title: 'the chat as it was before messages were left out' });
    const fresh = button('New chat', () => this.clear());
    this.compose = el('div', { class: 'compose' }, this.field, el('div', { class: 'row' }, this.sendButton, fresh, this.undoButton));
    this.node.append(this.empty, this.list, this.template, this.compose);
  }

  /** The run of the newest answer. */
  lastRun(state) {
    return this.runOf(this.messages.findLast((message) => message.run), state);
  }

  /** The run that wrote a message, while there is one. */
  runOf(message, state = this.store.state) {
    return message?.run ? runNamed(state, message.run) : null;
  }

  /** Messages that were kept over a reload. An answer that had not begun is none. */
  restore(messages) {
    this.messages = messages.filter((message) => message.run || message.content);
    this.draw();
  }

  /** The runs are there again: an answer that was being written has the words that came meanwhile. */
  returned() {
    const last = this.messages.at(-1);
    if (last?.isUnderWay && this.runOf(last)) this.settle(last);
    else this.draw();
  }

  clear() {
    this.stop();
    this.cut(0);
    this.draw();
  }

  /** Leave out the messages from here on. They can be had back. */
  cut(length) {
    if (length < this.messages.length) this.past.push(this.messages);
    this.messages = this.messages.slice(0, length);
  }

  undo() {
    this.messages = this.past.pop() ?? this.messages;
    this.editing = null;
    this.draw();
  }

  /** Messages as the API knows them. */
  plain(count = this.messages.length) {
    return this.messages.slice(0, count).map(({ role, content }) => ({ role, content }));
  }

  send() {
    const content = this.field.value.trim();
    if (!content || this.asking) return null;
    this.field.value = '';
    this.messages.push({ role: 'user', content });
    return this.answer();
  }

  /** Ask for an answer to all that stands there. */
  async answer() {
    const message = { role: 'assistant', content: '', run: null, isUnderWay: true };
    const asked = this.plain();
    this.messages.push(message);
    this.asking = message;
    this.draw();
    this.follow();
    await this.controller.attempt(async () => {
      message.run = await this.controller.start({ messages: asked }, { isShown: false, top: 0 });
      this.store.dispatch({ event: 'run', name: message.run, values: { isChat: true } });
      if (this.asking !== message) return;
      await this.controller.live.send('run', { run: message.run });
    });
    this.settle(message);
    await this.controller.attempt(() => this.shelveOld(), { isAsked: false });
  }

  settle(message) {
    const run = this.runOf(message);
    if (run) message.content = textOf(run);
    message.isUnderWay = false;
    if (this.asking === message) this.asking = null;
    if (!message.run) this.messages = this.messages.filter((one) => one !== message);
    this.draw();
  }

  /** Half of a page's places in the engine are for the newest answers; older ones are kept here, as records. */
  async shelveOld() {
    const { order, runs, limits } = this.store.state;
    if (!limits) return;
    const open = order.filter((name) => runs[name].isChat && runs[name].source === 'live');
    for (const name of open.slice(0, -Math.ceil(limits.live_runs / 2))) await this.controller.shelve(name);
  }

  stop() {
    const { asking } = this;
    if (!asking) return null;
    this.asking = null;
    this.draw();
    return asking.run ? this.controller.attempt(() => this.controller.live.send('pause', { run: asking.run })) : null;
  }

  /** Leave out this message and all after it, and answer anew. */
  regenerate(index) {
    if (this.asking) return null;
    this.cut(index);
    return this.answer();
  }

  edit(index) {
    this.editing = index;
    this.draw();
    this.list.querySelector('textarea')?.focus();
  }

  async edited(index, content) {
    const { role } = this.messages[index];
    this.cut(index);
    this.messages.push({ role, content });
    this.editing = null;
    if (role === 'user') await this.answer();
    else this.draw();
  }

  unfold(message) {
    const { name } = this.runOf(message);
    this.store.dispatch({ event: 'run', name, values: { isChat: false } }); // from here on it is a run like others
    this.controller.show(name);
    this.store.put({ view: 'strip' });
  }

  async showTemplate() {
    if (!this.template.open) return;
    const place = this.template.querySelector('pre');
    if (!this.messages.length) {
      place.textContent = 'There is no message yet.';
      return;
    }
    const last = this.messages.findLastIndex((message) => message.role === 'user');
    const body = JSON.stringify({ messages: this.plain(last + 1) });
    const answer = await fetch('/apply-template', { method: 'POST', body, headers: { 'Content-Type': 'application/json', ...this.headers() } }).catch(() => null);
    const said = await answer?.json().catch(() => null);
    place.textContent = said?.text ?? said?.error?.message ?? 'The server does not answer.';
  }

  draw() {
    const isFollowed = this.isFollowed();
    this.empty.hidden = this.messages.length > 0;
    this.sendButton.textContent = this.asking ? 'Stop' : 'Send';
    this.undoButton.hidden = !this.past.length || Boolean(this.asking);
    this.list.replaceChildren(...this.messages.map((message, index) => this.item(message, index)));
    this.shown = null;
    this.render(this.store.state);
    if (isFollowed) this.follow();
    this.showTemplate();
  }

  /** How far the newest message reaches below what the place to write leaves of the window. */
  hidden() {
    const last = this.list.lastElementChild;
    return last && !this.node.hidden ? last.getBoundingClientRect().bottom + GAP - this.compose.getBoundingClientRect().top : 0;
  }

  /** Whether the end is what is looked at; who has scrolled up to read is left there. */
  isFollowed() {
    return this.hidden() <= GAP;
  }

  follow() {
    if (this.hidden() > 0) scrollBy(0, this.hidden());
  }

  item(message, index) {
    const node = el('li', { class: `message ${message.role}` }, el('h3', { text: message.role === 'user' ? 'You' : 'Model' }));
    if (this.editing === index) return this.editor(node, message, index);
    const tools = el('div', { class: 'row tools' });
    if (message !== this.asking) tools.append(button('Edit', () => this.edit(index), `edit message ${index + 1}`));
    if (message.role === 'assistant' && message !== this.asking) tools.append(button('Regenerate', () => this.regenerate(index), `regenerate message ${index + 1}`));
    if (this.runOf(message)) tools.append(button('Open in the strip', () => this.unfold(message), `open message ${index + 1} in the strip`));
    else if (message.run && message !== this.asking) tools.append(el('small', { text: 'Its run is gone; regenerate, and there is one to look into.' }));
    node.append(el('p', { class: 'words', dir: 'auto', text: message.content }), tools);
    return node;
  }

  editor(node, message, index) {
    const field = el('textarea', { rows: 3, 'aria-label': `message ${index + 1}` });
    field.value = message.content;
    const put = button(message.role === 'user' ? 'Send again' : 'Keep', () => this.edited(index, field.value));
    node.append(field, el('div', { class: 'row tools' }, put, button('Cancel', () => { this.editing = null; this.draw(); })));
    return node;
  }

  /** The answer that is being written: its words as they come. */
  render(state) {
    const run = this.runOf(this.asking, state);
    if (!run || run.steps === this.shown) return;
    const isFollowed = this.isFollowed();
    this.shown = run.steps;
    this.asking.content = textOf(run);
    const words = this.list.lastElementChild?.querySelector('.words');
    if (words) words.textContent = this.asking.content;
    if (isFollowed) this.follow();
  }
}
