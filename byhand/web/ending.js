// Endings: how likely the end was at each step, why the run stopped, and the frames as they came over the wire.

import { ticks } from './cost.js';
import { el, made, percent, svg } from './dom.js';
import { modelOf, shown } from './state.js';

const WIDE = 1000;
const HIGH = 80;
const LEAST = 1e-6;
const MARKS = [{ share: 1, text: '100 %' }, { share: 1e-2, text: '1 %' }, { share: 1e-4, text: '0.01 %' }, { share: LEAST, text: '10⁻⁶' }];

/** The raw probability of an end token before each step: known where one is among the best, else at most a bound. */
export function endings(run, eosIds) {
  return run.steps.map((step) => {
    const found = step.top.filter((candidate) => eosIds.includes(candidate.id));
    if (found.length) return { share: found.reduce((sum, one) => sum + Math.exp(one.logprob), 0), isBound: false };
    const own = eosIds.includes(step.token.id) ? Math.exp(step.logprob) : null;
    return { share: own ?? Math.min(step.tail_mass, Math.exp(step.top.at(-1).logprob) * eosIds.length), isBound: own === null };
  });
}

/** One sentence on why a run stands still. */
export function whyEnded(run, eosIds) {
  const { finish } = run;
  if (!finish) return run.status === 'running' ? 'The run is going.' : 'The run stands still and could go on.';
  if (finish.finish_reason === 'length') return 'It ended because it may write no more tokens (length), not because it was done.';
  if (finish.finish_reason !== 'stop') return `It ended: ${finish.finish_reason}.`;
  const last = run.steps.at(-1);
  const isEos = last && (finish.stop_reason === null || typeof finish.stop_reason === 'number' || eosIds.includes(last.token.id));
  if (!isEos) return `It ended because the stop text “${finish.stop_reason}” came.`;
  return `It ended by itself: the end-of-sequence token ${last.token.text} (id ${last.token.id}) was the next token, with ${percent(Math.exp(last.logprob))}.`;
}

/** A share as a height, on a scale on which each step down is a tenth: the end is unlikely nearly always. */
function height(share) {
  return Math.max(0.02, 1 + Math.log10(Math.max(share, LEAST)) / -Math.log10(LEAST));
}

function plot(points, label) {
  const at = (wanted) => points.map((point) => (point.isBound === wanted ? height(point.share) : null));
  const lines = MARKS.map(({ share }) => svg('path', { class: 'mark', d: `M0 ${(HIGH * (1 - height(share)) + 0.5).toFixed(1)}h${WIDE}` }));
  return el('div', { class: 'plot' }, svg('svg', { viewBox: `0 0 ${WIDE} ${HIGH}`, class: 'timeline', role: 'img', preserveAspectRatio: 'none', 'aria-label': label },
    ...lines, svg('path', { class: 'ticks bound', d: ticks(at(true), 0, WIDE, HIGH) }), svg('path', { class: 'ticks', d: ticks(at(false), 0, WIDE, HIGH) })),
  el('div', { class: 'scale', 'aria-hidden': 'true' }, ...MARKS.map(({ text }) => el('small', { text }))));
}

export class Ending {
  render(state) {
    const run = shown(state);
    if (!run) return el('p', { class: 'empty', text: 'There is no run yet.' });
    const eosIds = modelOf(state, run)?.eos_ids ?? run.steps.filter((step) => step.token.special).map((step) => step.token.id);
    const why = el('p', { class: 'why', id: 'why', text: whyEnded(run, eosIds) });
    if (!run.steps.length || !eosIds.length) {
      const text = run.steps.length ? 'Which tokens end a run is the model’s to say, and this record’s model is not served.' : 'Step, and the probability of the end is drawn here.';
      return el('div', {}, why, el('p', { class: 'empty', text }));
    }
    const points = endings(run, eosIds);
    const now = points.at(-1);
    const said = `${now.isBound ? 'at most ' : ''}${percent(now.share)}`;
    const bounds = points.filter((point) => point.isBound).length;
    return el('div', { class: 'ending' }, why, plot(points, `probability of the end, step by step; at the last step ${said}`),
      el('p', { class: 'figures' }, el('span', {}, 'the end’s probability before the last token: ', el('b', { text: said, title: String(now.share) })), made(now.isBound ? 'approximate' : 'measured', 'engine/breakpoint.py', 'end_probability')),
      bounds ? el('p', { class: 'figures' }, el('span', { text: `Pale: in ${bounds} of ${points.length} steps it was not among the best that are kept, so only a bound is known.` }), made('approximate', 'engine/breakpoint.py', 'end_probability')) : '');
  }
}

/** How it streams: one frame of text a token, as it came. */
export class Wire {
  render(state) {
    if (!state.wire.length) return el('p', { class: 'empty', text: 'No frame was sent yet. Step, and read here what went over the wire.' });
    return el('div', { class: 'wire' }, el('p', { class: 'figures' }, el('span', { text: 'Each token arrives as one frame of the WebSocket /live, as soon as it is chosen.' }), made('measured', 'server/live/session.py', 'Session')),
      el('pre', { tabindex: '0', 'aria-label': 'the last frames' }, el('code', { text: state.wire.join('\n') })));
  }
}
