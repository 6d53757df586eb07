// Elements, numbers and visible text. Text only ever becomes text: nothing here reads markup.

const SVG = 'http://www.w3.org/2000/svg';

/** Set one property of an element: a class, text, a listener (`onclick`), or an attribute. */
function put(node, name, value) {
  if (value === null || value === undefined || value === false) return;
  if (name === 'text') node.textContent = value;
  else if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
  else node.setAttribute(name, value === true ? '' : value);
}

/** An element with properties and children (nodes or text). */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) put(node, name, value);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** The same for a picture's parts. */
export function svg(tag, props = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(props)) put(node, name, value);
  node.append(...children);
  return node;
}

/** The element of this id, which must be there. */
export function byId(id) {
  const node = document.getElementById(id);
  if (!node) throw new Error(`the page has no #${id}`);
  return node;
}

// White space, line ends and marks that have no picture of their own, or that turn the text around them.
const GLYPHS = new Map([[' ', '·'], ['\n', '⏎'], ['\r', '␍'], ['\t', '⇥'], ['\u00a0', '⍽']]);
const HIDDEN = /[ \n\r\t\u00a0\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/u;

function glyph(character) {
  return GLYPHS.get(character) ?? `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, '0')}`;
}

/** A token's piece, all of it visible: white space as quiet glyphs, unfinished characters as their bytes. */
export function pieceNodes(token) {
  if (token.text === '') return [el('i', { class: 'quiet', text: `#${token.id}` })];
  if (token.text.includes('\ufffd') && token.bytes?.length) {
    const hex = token.bytes.map((byte) => byte.toString(16).padStart(2, '0')).join(' ');
    return [el('i', { class: 'quiet', text: `⟨${hex}⟩` })];
  }
  if (token.special) return [el('i', { class: 'special', text: token.text })];
  const nodes = [];
  for (const character of token.text) {
    if (HIDDEN.test(character)) nodes.push(el('i', { class: 'quiet', text: glyph(character) }));
    else if (typeof nodes.at(-1) === 'string') nodes.push(nodes.pop() + character);
    else nodes.push(character);
  }
  return nodes;
}

/** The same as one string, for names that are read aloud. */
export function pieceText(token) {
  return pieceNodes(token).map((node) => (typeof node === 'string' ? node : node.textContent)).join('');
}

/** A piece as an element of its own, kept apart from the direction of the text around it. */
export function piece(token, kind = 'piece') {
  return el('bdi', { class: kind, dir: 'ltr' }, ...pieceNodes(token));
}

/** A share as per cent, never rounded to a certainty it is not. */
export function percent(share) {
  if (share === null || share === undefined || Number.isNaN(share)) return '–';
  const value = share * 100;
  if (value === 0) return '0 %';
  if (value < 0.1) return '<0.1 %';
  if (value > 99.9 && value < 100) return '>99.9 %';
  return `${value >= 100 ? '100' : value.toFixed(1)} %`;
}

/** Milliseconds to two digits. */
export function milliseconds(seconds) {
  const value = seconds * 1000;
  return `${value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2)} ms`;
}

/** Bytes in the unit that fits. */
export function size(bytes) {
  if (bytes < 1024) return `${bytes} B`;
  return bytes < 2 ** 20 ? `${(bytes / 1024).toFixed(0)} KiB` : `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}

/** A small mark that says how a number came about, and opens the code that makes it. */
export function made(how, path, name) {
  const title = `${how}: byhand/${path}, ${name}`;
  return el('a', {
    class: `made ${how}`, href: `/source/${path}?at=${encodeURIComponent(name)}#here`, target: '_blank',
    rel: 'noopener', title, text: how, 'aria-label': `${title} (opens the code)`,
  });
}

/** Replace an element's children, unless they say the same as before: `key` stands for what they say. */
export function fill(node, key, make) {
  if (node.byhandKey === key) return false;
  node.byhandKey = key;
  node.replaceChildren(...[make()].flat().filter(Boolean));
  return true;
}
