// The cost: what each pass took, the prompt's as one block and then a tick for each token; pages, and tokens a second.

import { el, made, milliseconds, svg } from './dom.js';
import { shown } from './state.js';

const WIDE = 1000;
const HIGH = 60;
const BLOCK = 40; // the prompt's block
const WORDS = 'aria-label';

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted.length ? sorted[Math.floor(sorted.length / 2)] : 0;
}

/** Ticks as one path: 2,000 of them are one thing to draw. */
function ticks(steps, from, width, scale) {
  const each = width / steps.length;
  const gap = each > 3 ? 1 : 0;
  return steps.map((step, index) => {
    const high = Math.max(1, Math.min(HIGH, (step.seconds / scale) * HIGH));
    return `M${(from + index * each).toFixed(1)} ${HIGH}h${Math.max(0.5, Math.min(each - gap, 12)).toFixed(1)}v-${high.toFixed(1)}h-${Math.max(0.5, Math.min(each - gap, 12)).toFixed(1)}z`;
  }).join('');
}

/** The passes of a run: the prompt's first, if its first step tells of it, and the decoding ones after it. */
export function passesOf(run) {
  const [first, ...rest] = run.steps;
  return first?.phase === 'prefill' ? { prompt: first, decoded: rest } : { prompt: null, decoded: run.steps };
}

export class Cost {
  render(state) {
    const run = shown(state);
    if (!run?.steps.length) return el('p', { class: 'empty', text: 'Nothing was computed yet. Step once, and each pass stands here with its time.' });
    const { prompt, decoded } = passesOf(run);
    const times = decoded.map((step) => step.seconds);
    const typical = median(times);
    const scale = Math.max(typical * 3, 1e-9);
    const last = run.steps.at(-1);
    const parts = [
      prompt ? el('span', {}, 'prompt: ', el('b', { text: `${prompt.positions_computed} positions in ${milliseconds(prompt.seconds)}` })) : null,
      times.length ? el('span', {}, `then ${decoded.length} of ${decoded.at(-1).positions_computed} position, median `, el('b', { text: milliseconds(typical) })) : null,
      typical ? el('span', { title: String(1 / typical) }, el('b', { text: `${(1 / typical).toFixed(0)} tokens/s` })) : null,
      el('span', {}, 'cache pages ', el('b', { text: String(last.cache_pages) })), made('measured', 'engine/engine.py', 'Engine'),
    ];
    const figure = svg('svg', { viewBox: `0 0 ${WIDE} ${HIGH}`, class: 'timeline', role: 'img', preserveAspectRatio: 'none', [WORDS]: `${run.steps.length} passes, median ${milliseconds(typical)}` },
      ...(prompt ? [svg('rect', { class: 'prompt-pass', x: 0, y: 0, width: BLOCK, height: HIGH })] : []),
      svg('path', { class: 'ticks', d: ticks(decoded, prompt ? BLOCK + 6 : 0, WIDE - BLOCK - 6, scale) }));
    return el('div', { class: 'cost' }, figure, el('p', { class: 'figures' }, ...parts.filter(Boolean)),
      el('p', { class: 'empty', text: 'A tick is one pass over one position; its height is its time, cut at three times the median. What this machine could do at best, `byhand bench` measures.' }));
  }
}
