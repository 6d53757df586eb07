// The page: one state, one connection, and the views that follow from them. It opens on a stored run, and becomes live
// at the first hand on the crank.

import { addressOf, readAddress } from './address.js';
import { Back } from './back.js';
import { Cards, doneBefore } from './cards.js';
import { Chat } from './chat.js';
import { Controller } from './controller.js';
import { Cost } from './cost.js';
import { Crank } from './crank.js';
import { byId, el, fill } from './dom.js';
import { Ending, Wire } from './ending.js';
import { store as keepText, stored } from './keep.js';
import { Keys } from './keys.js';
import { Live } from './live.js';
import { Next } from './next.js';
import { unpack } from './record.js';
import { Settings } from './settings.js';
import { modelOf, shown, Store } from './state.js';
import { Strip } from './strip.js';
import { Tree } from './tree.js';

const STORED = '/web/run.json';
const LONGEST_WIRE = 400;
const PANELS = [['settings', 'Settings'], ['tree', 'Tree'], ['cost', 'Cost'], ['ending', 'Ending'], ['wire', 'Wire']];

const store = new Store();
const memory = { key: stored('sessionStorage', 'byhand.key'), link: null, hasArrived: false };
const live = new Live({
  key: () => memory.key,
  onFrame: (frame) => receive(frame),
  onStatus: (status) => lose(status),
  onWire: (way, text) => {
    const line = text.length > LONGEST_WIRE ? `${text.slice(0, LONGEST_WIRE)}… ${text.length} characters` : text;
    store.dispatch({ event: 'wire', line: `${way} ${line}` });
  },
});
const headers = () => (memory.key ? { Authorization: `Bearer ${memory.key}` } : {});
const controller = new Controller(store, live, headers);
const chat = new Chat(store, controller, headers);
const back = new Back(store, live, controller, chat);
const strip = new Strip(store, controller);
const next = new Next(store, controller);
const crank = new Crank(store, controller);
const tree = new Tree(store, controller);
const cards = new Cards(store);
const panels = { settings: new Settings(store, controller), tree, cost: new Cost(), ending: new Ending(), wire: new Wire() };
strip.onEdit = (at) => crank.write(at);
new Keys(store, controller, { crank, next });

// Coming, going, and coming back.

function receive(frame) {
  if (frame.event === 'error' && frame.id !== null && frame.id !== undefined) return; // whoever asked is told
  store.dispatch(frame);
  if (frame.event !== 'hello') return;
  if (store.state.panel === 'cost') controller.askMachine();
  if (store.state.panel === 'tree') controller.refreshTree();
  back.greeted(frame);
  arrived();
}

/** The page is busy from its start until the server has answered, or has not. */
function arrived() {
  if (!memory.hasArrived) controller.busy(-1);
  memory.hasArrived = true;
}

function lose(status) {
  store.put({ connection: status });
  arrived();
  if (status === 'lost' && !store.state.replay) controller.halt(); // a record plays without a server
  for (const name of store.state.order) {
    store.dispatch({ event: 'run', name, values: (run) => (run.status === 'running' ? { status: 'paused' } : {}) });
  }
}

// What is seen.

const TOLD = {
  connecting: ['', 'Connecting to the model …'],
  lost: ['error', 'The server does not answer. What is on screen stays, and records can be played; trying again …'],
};

function bannerNodes(state) {
  const nodes = [];
  if (state.connection === 'refused') nodes.push(askKey());
  else if (TOLD[state.connection]) nodes.push(el('p', { class: TOLD[state.connection][0], text: TOLD[state.connection][1] }));
  if (state.message) nodes.push(messageNode(state.message));
  return nodes;
}

function messageNode({ kind, text, way }) {
  const go = () => { store.put({ view: 'strip' }); openPanel(way); byId('more').scrollIntoView({ block: 'nearest' }); };
  return el('p', { class: kind }, el('span', { text }), el('span', { class: 'row' },
    way ? el('button', { type: 'button', class: 'way', onclick: go, text: `Show the ${way}` }) : null,
    el('button', { type: 'button', 'aria-label': 'dismiss', onclick: () => controller.say(null), text: '×' })));
}

function askKey() {
  const field = el('input', { type: 'password', 'aria-label': 'API key', autocomplete: 'off' });
  const form = el('form', { class: 'row' }, el('label', {}, 'This server asks for a key ', field), el('button', { class: 'strong', text: 'Use it' }));
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    memory.key = field.value;
    keepText('sessionStorage', 'byhand.key', field.value);
    store.put({ connection: 'connecting' });
    live.connect();
  });
  return form;
}

function modelNodes(state) {
  const run = state.view === 'chat' ? chat.lastRun(state) : shown(state);
  const { model } = state;
  const what = run?.source === 'record' && !run.isOrphan ? el('span', { class: 'badge', text: whose(run, state) }) : null;
  if (!model) return [el('b', { text: run?.identity?.name ?? '' }), what].filter(Boolean);
  const used = run && !modelOf(state, run) ? 0 : run?.tokens.length ?? 0; // another model's run takes none of this one's context
  const meter = el('meter', { min: 0, max: model.context_length, value: used, 'aria-label': 'context used' });
  return [el('b', { text: model.name }), el('small', { text: model.dtype }), meter, el('small', { title: 'tokens, of the context’s', text: `${used} of ${model.context_length}` }), what].filter(Boolean);
}

/** What a run is that no server holds, and whose, where that is not the served model. */
function whose(run, state) {
  const isForeign = state.model && !modelOf(state, run);
  const what = `${run.isStored ? 'a stored run' : 'a record'}${isForeign ? ` of ${run.identity.name}` : ''}`;
  if (!run.isStored || !state.model) return what;
  return `${what} · press → to ${isForeign ? `start one of ${state.model.name}` : 'go on from it'}`;
}

function renderFrame(state) {
  fill(byId('banner'), JSON.stringify([state.connection, state.message]), () => bannerNodes(state));
  const run = state.view === 'chat' ? chat.lastRun(state) : shown(state);
  fill(byId('model'), JSON.stringify([state.view, state.model?.digest, run?.tokens.length, run?.source, run?.name, run?.isOrphan]), () => modelNodes(state));
  const [isChatNew, isStripNew] = ['chat', 'strip'].map((view) => state.view === view && byId(`${view}-view`).hidden);
  for (const view of ['strip', 'chat']) {
    byId(`${view}-view`).hidden = state.view !== view;
    byId(`view-${view}`).setAttribute('aria-pressed', String(state.view === view));
  }
  if (isChatNew) chat.follow();
  if (isStripNew) scrollTo(0, 0);
  // A chat's answers are saved and shared from the strip, where one of them is open.
  for (const id of ['crank', 'save', 'share']) byId(id).hidden = state.view !== 'strip';
}

function renderPanel(state) {
  for (const [name] of PANELS) {
    byId(`tab-${name}`).setAttribute('aria-selected', String(state.panel === name));
    byId(`tab-${name}`).tabIndex = state.panel === name ? 0 : -1;
  }
  const node = byId('panel');
  node.setAttribute('aria-labelledby', `tab-${state.panel}`);
  const run = shown(state);
  const key = [state.panel, run?.steps, run?.tokens, run?.params, run?.finish, run?.status, run?.source, state.settings, state.said, state.tree, state.compare, state.machine, state.connection,
    state.order, state.model, state.panel === 'wire' ? state.wire : null];
  if (panelKey?.every((value, index) => value === key[index])) return;
  // Pictures of a long run are drawn a few times a second while it is going, and once when it stands.
  const isBusy = run?.status === 'running' || state.replay;
  if (isBusy && performance.now() - drawn < 400 && panelKey[0] === state.panel) {
    clearTimeout(panelTimer);
    panelTimer = setTimeout(() => renderPanel(store.state), 450);
    return;
  }
  [panelKey, drawn] = [key, performance.now()];
  const made = panels[state.panel].render(state);
  if (made !== node.firstElementChild) node.replaceChildren(made);
}
/** While tokens fly past, their candidates are drawn a few times a second: nobody reads faster. */
function renderNext(state) {
  const isBusy = shown(state)?.status === 'running' || state.replay;
  clearTimeout(nextTimer);
  if (isBusy && state.hover === null && performance.now() - nextDrawn < 150) {
    nextTimer = setTimeout(() => renderNext(store.state), 160);
    return;
  }
  nextDrawn = performance.now();
  next.render(state);
}
let nextTimer = null;
let nextDrawn = 0;
let panelKey = null;
let panelTimer = null;
let drawn = 0;

store.listen((state) => {
  if (state.view === 'strip') {
    strip.render(state);
    renderNext(state);
    crank.render(state);
    tree.renderTabs(state);
    cards.render(state);
    renderPanel(state);
  } else {
    chat.render(state);
  }
  renderFrame(state);
  noteAddress();
});

// What can be done beside the crank.

function openPanel(name) {
  store.put({ panel: name });
  if (name === 'tree') controller.refreshTree();
  if (name === 'cost') controller.askMachine();
  if (name === 'cost') controller.did('phases');
  if (name === 'ending') controller.did('end');
  if (name === 'wire') controller.did('wire');
}

function buildTabs() {
  const tabs = byId('tabs');
  tabs.append(...PANELS.map(([name, text]) => el('button', { type: 'button', role: 'tab', id: `tab-${name}`, 'aria-controls': 'panel', onclick: () => openPanel(name), text })));
  tabs.addEventListener('keydown', (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const at = PANELS.findIndex(([name]) => name === store.state.panel);
    const [to] = PANELS[(at + by + PANELS.length) % PANELS.length];
    openPanel(to);
    byId(`tab-${to}`).focus();
  });
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  keepText('localStorage', 'byhand.theme', theme);
}

function isDark() {
  const { theme } = document.documentElement.dataset;
  return theme ? theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
}

function listen() {
  byId('theme').addEventListener('click', () => setTheme(isDark() ? 'light' : 'dark'));
  byId('save').addEventListener('click', () => controller.save());
  byId('share').addEventListener('click', () => controller.share());
  byId('open').addEventListener('click', () => byId('file').click());
  byId('file').addEventListener('change', async (event) => {
    const [file] = event.target.files;
    if (file) await controller.open(await file.text());
    store.put({ view: 'strip' });
    event.target.value = '';
  });
  for (const view of ['strip', 'chat']) byId(`view-${view}`).addEventListener('click', () => store.put({ view }));
  const start = () => controller.attempt(() => controller.start({ prompt: byId('prompt').value || byId('prompt').placeholder }));
  byId('prompt-form').addEventListener('submit', (event) => { event.preventDefault(); start(); });
  byId('prompt').addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && !event.shiftKey) { event.preventDefault(); byId('prompt').blur(); start(); }
    if (event.key === 'Escape') byId('prompt').blur();
  });
  addEventListener('pagehide', () => back.remember());
  addEventListener('hashchange', followAddress);
}

// The first thing to see.

async function openLink(packed) {
  if (!packed) return false;
  const name = await controller.attempt(async () => controller.put(await unpack(packed)));
  if (name) memory.link = { name, packed };
  return Boolean(name);
}

/** An address that the reader put there. */
async function followAddress() {
  const { values, packed } = readAddress(location.hash);
  if (packed !== memory.link?.packed) await openLink(packed);
  store.put({ view: 'strip', panel: 'settings', showsIds: false, at: null, ...values });
}

/** The address follows the view. It holds a run only while that is the one it came with. */
function noteAddress() {
  if (memory.link && !store.state.runs[memory.link.name]) memory.link = null;
  const packed = memory.link?.name === store.state.current ? memory.link.packed : null;
  const hash = addressOf(store.state, packed);
  if (hash === location.hash) return;
  // Browsers let a page do this about a hundred times in half a minute; who is quicker than that waits for it.
  clearTimeout(addressTimer);
  const wait = (noted.at(-30) ?? -Infinity) + 10_000 - performance.now();
  if (wait > 0) {
    addressTimer = setTimeout(noteAddress, wait);
    return;
  }
  noted = [...noted.slice(-30), performance.now()];
  history.replaceState(null, '', hash || location.pathname);
}
let addressTimer = null;
let noted = [];

/** The stored run, up to its most open choice: the rest is for the reader. */
async function openStored() {
  const answer = await fetch(STORED);
  const text = await answer.text();
  const { steps } = JSON.parse(text).record;
  const doubt = steps.reduce((most, step) => (step.entropy > most.entropy ? step : most), steps[0]);
  controller.put(text, { count: doubt.index + 1, values: { isStored: true } });
}

async function openFirst() {
  store.put({ done: doneBefore() });
  const { values, packed } = readAddress(location.hash);
  back.restore();
  byId('speed').value = store.state.speed;
  if (!(await openLink(packed)) && !shown(store.state)) await openStored();
  back.tellLost();
  store.put(values);
}

if (stored('localStorage', 'byhand.theme')) document.documentElement.dataset.theme = stored('localStorage', 'byhand.theme');
buildTabs();
listen();
controller.busy(1);
await openFirst();
live.connect();
