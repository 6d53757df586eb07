// Chat on the same engine: every answer is a run, streamed here, and one click away from its tokens.

import { byId, el } from './dom.js';

const EXAMPLES = ['Count from one to five.', 'Name a color.', 'Tell me a story about a dog.'];
const MORE_BEFORE_CLOSED = 16; // answers whose runs stay open in the engine; older ones keep their words

function button(text, onclick, label) {
  return el('button', { type: 'button', onclick, text, 'aria-label': label ?? text });
}

/** What a run has written so far. */
function textOf(run) {
  return run.steps.map((step) => step.text).join('');
}

export class Chat {
  constructor(store, controller, headers) {
    Object.assign(this, { store, controller, headers, node: byId('chat-view'), messages: [], asking: null, editing: null });
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
    const fresh = button('New chat', () => this.clear());
    this.node.append(this.empty, this.list, this.template, el('div', { class: 'compose' }, this.field, el('div', { class: 'row' }, this.sendButton, fresh)));
  }

  /** The run of the newest answer. */
  lastRun(state) {
    const name = this.messages.findLast((message) => message.run)?.run;
    return state.runs[name] ?? null;
  }

  clear() {
    this.stop();
    this.messages = [];
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
    const message = { role: 'assistant', content: '', run: null };
    const asked = this.plain();
    this.messages.push(message);
    this.asking = message;
    this.draw();
    await this.controller.attempt(async () => {
      message.run = await this.controller.start({ messages: asked }, { isShown: false, top: 0 });
      if (this.asking !== message) return;
      await this.controller.live.send('run', { run: message.run });
    });
    this.settle(message);
    await this.closeOld();
  }

  settle(message) {
    const run = this.store.state.runs[message.run];
    if (run) message.content = textOf(run);
    if (this.asking === message) this.asking = null;
    if (!message.run) this.messages = this.messages.filter((one) => one !== message);
    this.draw();
  }

  async closeOld() {
    const open = this.messages.filter((message) => message.run && this.store.state.runs[message.run]?.source === 'live');
    for (const message of open.slice(0, -MORE_BEFORE_CLOSED)) {
      if (message.run !== this.store.state.current) await this.controller.close(message.run);
    }
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
    this.messages = this.messages.slice(0, index);
    return this.answer();
  }

  edit(index) {
    this.editing = index;
    this.draw();
    this.list.querySelector('textarea')?.focus();
  }

  async edited(index, content) {
    const { role } = this.messages[index];
    this.messages = [...this.messages.slice(0, index), { role, content }];
    this.editing = null;
    if (role === 'user') await this.answer();
    else this.draw();
  }

  unfold(message) {
    this.controller.show(message.run);
    this.store.put({ view: 'strip' });
    return this.controller.readPrompt(message.run);
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
    this.empty.hidden = this.messages.length > 0;
    this.sendButton.textContent = this.asking ? 'Stop' : 'Send';
    this.list.replaceChildren(...this.messages.map((message, index) => this.item(message, index)));
    this.shown = null;
    this.render(this.store.state);
    this.showTemplate();
  }

  item(message, index) {
    const node = el('li', { class: `message ${message.role}` }, el('h3', { text: message.role === 'user' ? 'You' : 'Model' }));
    if (this.editing === index) return this.editor(node, message, index);
    const tools = el('div', { class: 'row tools' });
    if (message !== this.asking) tools.append(button('Edit', () => this.edit(index), `edit message ${index + 1}`));
    if (message.role === 'assistant' && message !== this.asking) tools.append(button('Regenerate', () => this.regenerate(index), `regenerate message ${index + 1}`));
    if (message.run && this.store.state.runs[message.run]) tools.append(button('Open in the strip', () => this.unfold(message), `open message ${index + 1} in the strip`));
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
    const run = this.asking && state.runs[this.asking.run];
    if (!run || run.steps === this.shown) return;
    this.shown = run.steps;
    this.asking.content = textOf(run);
    const words = this.list.lastElementChild?.querySelector('.words');
    if (words) words.textContent = this.asking.content;
    this.list.lastElementChild?.scrollIntoView({ block: 'nearest' });
  }
}
