// The cost: what each pass took, the prompt's as one block and then a tick for each token; pages, and tokens a second beside
// this machine's own limit.

import { el, made, milliseconds, percent, size, svg } from './dom.js';
import { isOfRecord, shown } from './state.js';

const WIDE = 1000;
const HIGH = 60;
const WIDEST = 20; // a tick with its gap, where there are few
const BLOCK = 40; // the prompt's block
const WORDS = 'aria-label';

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted.length ? sorted[Math.floor(sorted.length / 2)] : 0;
}

/** Ticks as one path: 2,000 of them are one thing to draw. A share of null leaves its place free. */
export function ticks(shares, from = 0, wide = WIDE, high = HIGH) {
  const each = Math.min(WIDEST, wide / shares.length);
  const width = (each > 3 ? each - Math.max(1, each / 4) : each).toFixed(1);
  const tick = (share, index) => `M${(from + index * each).toFixed(1)} ${high}h${width}v-${Math.max(1, Math.min(1, share) * high).toFixed(1)}h-${width}z`;
  return shares.map((share, index) => (share === null ? '' : tick(share, index))).join('');
}

/** The passes of a run: the prompt's, if its first step tells of it, and those over one position. What was written or
 * computed again in one pass counts to neither. Times that came with a record are counted only where there are no others:
 * they may be another machine's. */
function passesOf(run) {
  const [first] = run.steps;
  const decoded = run.steps.filter((step) => step.phase === 'decode' && step.positions_computed === 1);
  const own = decoded.filter((step) => !isOfRecord(run, step));
  return { prompt: first?.phase === 'prefill' ? first : null, decoded, counted: own.length ? own : decoded, isRecords: !own.length && decoded.length > 0, others: own.length ? decoded.length - own.length : 0 };
}

/** Why there is no limit to compare with, or nothing to compare. */
function whyNoLimit(state, run, typical) {
  if (run.source === 'record' && !run.isOrphan) return 'These times are a record’s, perhaps another machine’s. Press → to go on from it here, and they can be compared with this machine’s limit.';
  if (!state.machine) return state.connection === 'live' ? 'This machine’s limit is being measured …' : 'This machine’s limit is measured by its server, and no server answers.';
  if (!state.machine.bytes_per_second) return 'This server could not measure how fast its memory is read.';
  return typical ? null : 'One token more, and its pass is compared with this machine’s limit.';
}

/** Each token reads every weight once: no machine makes more of them than its memory can be read for. */
function limitNodes(state, run, typical) {
  const why = whyNoLimit(state, run, typical);
  if (why) return [el('p', { class: 'empty', id: 'limit', text: why })];
  const { bytes_per_second: rate, read_bytes: bytes, device } = state.machine;
  const [limit, own] = [rate / bytes, 1 / typical];
  const full = el('i', { class: 'bar after' });
  full.style.width = `${Math.min(100, (own / limit) * 100)}%`;
  return [
    el('div', { class: 'limit', id: 'limit' }, el('span', { class: 'bars', 'aria-hidden': 'true' }, el('i', { class: 'bar raw whole' }), full),
      el('p', {}, el('b', { text: own > limit ? `${Math.round((own / limit) * 100)} %` : percent(own / limit), title: String(own / limit) }), ' of what this machine’s memory allows')),
    own > limit ? el('p', { class: 'empty', text: 'More than memory can be read for: so small a model stays in the processor’s own caches.' }) : null,
    el('p', { class: 'figures' },
      el('span', { title: String(bytes) }, 'a token reads ', el('b', { text: size(bytes) }), ' of weights ', made('measured', 'bench/wall.py', 'read_bytes')),
      el('span', { title: String(rate) }, `${device === 'cpu' ? 'memory' : device} reads `, el('b', { text: `${(rate / 1e9).toFixed(1)} GB/s` }), ' ', made('measured', 'bench/wall.py', 'read_rate')),
      el('span', { title: String(limit) }, 'so at most ', el('b', { text: `${thousands(limit)} tokens/s` }), ' ', made('derived', 'bench/wall.py', 'wall'))),
  ].filter(Boolean);
}

const thousands = (value) => Math.round(value).toLocaleString('en');

/** What the passes took, in words. */
function figuresOf(run, { prompt, counted, isRecords }, typical) {
  const place = prompt && isOfRecord(run, prompt) && !isRecords ? ' in the record' : '';
  return [
    isRecords ? el('span', { class: 'whose', text: 'As it was recorded, perhaps on another machine:' }) : null,
    prompt ? el('span', {}, 'prompt: ', el('b', { text: `${prompt.positions_computed} positions in ${milliseconds(prompt.seconds)}` }), place) : null,
    counted.length ? el('span', {}, `then ${counted.length} ${counted.length === 1 ? 'pass' : 'passes'} of 1 position, median `, el('b', { text: milliseconds(typical), title: String(typical) })) : null,
    typical ? el('span', { title: String(1 / typical) }, el('b', { text: `${thousands(1 / typical)} tokens/s` })) : null,
    el('span', {}, 'cache pages ', el('b', { text: String(run.steps.at(-1).cache_pages) })), made('measured', 'engine/engine.py', 'Engine'),
  ].filter(Boolean);
}

function figure(run, { prompt, decoded, isRecords }, typical) {
  const scale = Math.max(typical * 3, 1e-9);
  const from = prompt ? BLOCK + 8 : 0;
  const shares = (isPale) => decoded.map((step) => (isOfRecord(run, step) === isPale ? step.seconds / scale : null));
  const path = (kind, isPale) => svg('path', { class: kind, d: ticks(shares(isPale), from, WIDE - BLOCK - 8) });
  return svg('svg', { viewBox: `0 0 ${WIDE} ${HIGH}`, class: 'timeline', role: 'img', preserveAspectRatio: 'none', [WORDS]: `${run.steps.length} passes, median ${milliseconds(typical)}${isRecords ? ' in the record' : ''}` },
    ...(prompt ? [svg('rect', { class: 'prompt-pass', x: 0, y: 0, width: BLOCK, height: HIGH })] : []),
    ...(decoded.length ? [path('ticks bound', true), path('ticks', false)] : []));
}

export class Cost {
  render(state) {
    const run = shown(state);
    if (!run?.steps.length) return el('p', { class: 'empty', text: 'Nothing was computed yet. Step once, and each pass stands here with its time.' });
    const passes = passesOf(run);
    const typical = median(passes.counted.map((step) => step.seconds));
    const pale = passes.others ? ` Pale: ${passes.others} ${passes.others === 1 ? 'pass' : 'passes'} as recorded, perhaps on another machine; not counted here.` : '';
    return el('div', { class: 'cost' }, figure(run, passes, typical), el('p', { class: 'figures' }, ...figuresOf(run, passes, typical)),
      ...limitNodes(state, run, passes.isRecords ? 0 : typical),
      el('p', { class: 'empty', text: `The block is the prompt’s pass. Each tick is one pass over one position; its height is its time, cut at three times the median.${pale}` }));
  }
}
