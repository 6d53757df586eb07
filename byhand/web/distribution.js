// What could come next at a place: from the step that chose there, a prompt's reading, or the logits that stand ready.

import { foreignStages, measure, reshape, shortRow, taken, wholeRow } from './chain.js';
import { modelOf, place, shown, stepAt } from './state.js';

export const ROWS = 10;
export const NEAR_TIE = 0.1; // nats: the best is ahead by less than a tenth, e^0.1 = 1.1 times as likely

function rowOf(candidate, chosen) {
  return {
    id: candidate.id, token: candidate, rank: candidate.rank, raw: Math.exp(candidate.logprob),
    after: candidate.prob, removedBy: candidate.removed_by, isChosen: candidate.id === chosen,
  };
}

const sumOf = (rows, name) => rows.reduce((sum, row) => sum + row[name], 0);

/** All tokens without a row: how many there are (null where nobody knows), how many of them the chain left, and their
 * shares. Where it left none, their share is none, and no remainder of rounding. */
function tailOf(rows, vocabSize, { kept = null, mass = 1 - sumOf(rows, 'raw') } = {}) {
  const count = vocabSize ? vocabSize - rows.length : null;
  const isKept = (row) => !row.removedBy && !row.isUnknown;
  const left = kept === null ? null : Math.max(0, Math.min(kept - rows.filter(isKept).length, count ?? Infinity));
  return { raw: Math.max(0, mass), after: left === 0 ? 0 : Math.max(0, 1 - sumOf(rows, 'after')), count, left };
}

/** A step as it was, with the token it took among the rows even when it is not one of the best. */
function fromStep(step, vocabSize) {
  const rows = step.top.slice(0, ROWS).map((candidate) => rowOf(candidate, step.token.id));
  let mass = step.tail_mass + step.top.slice(ROWS).reduce((sum, candidate) => sum + Math.exp(candidate.logprob), 0);
  if (!rows.some((row) => row.isChosen)) {
    const raw = Math.exp(step.logprob);
    const after = step.draw ? step.draw.high - step.draw.low : 0;
    const removedBy = step.draw || step.forced ? null : 'the chain';
    // Of one that was forced from among the rest, no record says whether the chain had left it.
    rows.push({ id: step.token.id, token: step.token, rank: step.rank, raw, after, removedBy, isChosen: true, isUnknown: step.forced });
    mass -= raw;
  }
  const stages = step.chain.map(({ name, setting, kept }) => ({ name, setting, kept }));
  return {
    kind: 'step', how: 'measured', rows, tail: tailOf(rows, vocabSize, { kept: stages.at(-1).kept, mass }), stages, entropy: step.entropy, margin: step.margin, draw: step.draw,
    forced: step.forced, chosen: step.token,
  };
}

function fromReading(reading, vocabSize) {
  const actual = reading.actual;
  const rows = reading.top.map((candidate) => rowOf(candidate, actual?.id));
  if (actual && !rows.some((row) => row.isChosen)) rows.push(rowOf(actual, actual.id));
  const [first, second] = reading.top;
  return {
    kind: 'reading', how: 'measured', rows, tail: tailOf(rows, vocabSize), stages: [], entropy: reading.entropy,
    margin: second ? first.logprob - second.logprob : null, draw: null, actual,
  };
}

/** The chain, gone through here with these settings: exact where the whole row is here, else marked as approximate. */
function reshaped(row, { tokens, history, promptLength, settings, step, vocabSize }) {
  const shaped = reshape(row, history, promptLength, settings);
  const own = measure(row);
  const named = new Map(tokens.map((token) => [token.id, token]));
  const would = taken(shaped, step?.draw?.u);
  const isNamed = (entry) => entry >= 0 && row.idOf(entry) >= 0;
  const best = own.order.filter(isNamed).slice(0, ROWS);
  const chosen = step ? row.entryOf(step.token.id) : -1;
  const extra = [chosen, step?.draw || !step || shaped.isGreedy ? would.entry : -1];
  for (const entry of extra) if (isNamed(entry) && !best.includes(entry)) best.push(entry);
  const rows = best.map((entry) => {
    const id = row.idOf(entry);
    const token = named.get(id) ?? (step?.token.id === id ? step.token : { id, text: '', bytes: [] });
    return {
      id, token, rank: own.order.indexOf(entry) + 1, raw: own.shares[entry], after: shaped.shares[entry],
      removedBy: shaped.removedBy.get(entry) ?? null, isChosen: step?.token.id === id,
    };
  });
  const tail = tailOf(rows, vocabSize, { kept: shaped.stages.at(-1).kept });
  const draw = step?.draw ? { u: step.draw.u, low: would.low, high: would.high } : null;
  return { rows, tail, stages: shaped.stages, entropy: own.entropy, margin: own.margin, draw, would: rows.find((one) => one.id === row.idOf(would.entry))?.token };
}

function whatIf(run, at, step, settings, vocabSize) {
  const kept = run.logits.find((one) => one.position === at);
  const history = run.tokens.slice(0, at).map((token) => token.id);
  const row = kept ? wholeRow(kept.row) : shortRow(step, vocabSize);
  const tokens = [...(kept?.tokens ?? []), ...(step?.top ?? [])];
  const values = reshaped(row, { tokens, history, promptLength: run.promptLength, settings, step, vocabSize });
  const how = kept && !foreignStages(run.params).length ? 'derived' : 'approximate';
  return { kind: step ? 'what-if' : 'next', how, forced: false, chosen: step?.token ?? null, ...values };
}

/** The distribution at the place that is shown, or one sentence that says why there is none. */
export function distribution(state) {
  const run = shown(state);
  if (!run) return { kind: 'none', why: 'There is no run yet: write a prompt above and start it.' };
  const at = place(state);
  const size = modelOf(state, run)?.vocab_size ?? run.steps[0]?.chain[0]?.kept ?? 0;
  const step = stepAt(run, at);
  const hasLogits = run.logits.some((one) => one.position === at);
  if (step) {
    const found = state.isWhatIf ? whatIf(run, at, step, state.settings, size) : fromStep(step, size);
    return { ...found, at, isGhost: at === run.tokens.length };
  }
  if (at === run.tokens.length && hasLogits) return { ...whatIf(run, at, null, state.settings, size), at };
  const reading = run.readings[at - 1];
  if (reading) return { ...fromReading(reading, size), at };
  return { kind: 'none', at, why: whyNone(run, at) };
}

function whyNone(run, at) {
  if (run.status === 'running') return 'The model is at work; this fills when it pauses.';
  if (run.finish && at === run.tokens.length) return 'The run has ended here. Rewind, or choose another token further up.';
  if (at < run.promptLength) return 'A record keeps no readings of its prompt. Step once to make it live.';
  if (run.source === 'record') return 'The record shows no more here. Press → to let the model go on from this place.';
  return 'These scores were let go of. Press → and the model computes them again.';
}
