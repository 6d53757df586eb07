// The sampling chain again, in the browser: the same stages in the same order as byhand/sampling/chain.py, on one row of
// logits. A row of a record holds only the best few; all others stand in it as one entry that counts many times.

/** The settings that the page can turn, with their bounds; `off` does nothing. */
export const SLIDERS = [
  { name: 'temperature', low: 0, high: 2, step: 0.05, off: 1, says: 'divides the logits; 0 takes the best' },
  { name: 'top_k', low: 0, high: 50, step: 1, off: 0, says: 'keeps the k best; 0 keeps all' },
  { name: 'top_p', low: 0.01, high: 1, step: 0.01, off: 1, says: 'keeps the best that reach p together' },
  { name: 'min_p', low: 0, high: 1, step: 0.01, off: 0, says: 'drops what is below this share of the best' },
  { name: 'repetition_penalty', low: 0.5, high: 2, step: 0.01, off: 1, says: 'shrinks what was already read' },
  { name: 'presence_penalty', low: -2, high: 2, step: 0.1, off: 0, says: 'subtracts once from what was written' },
  { name: 'frequency_penalty', low: -2, high: 2, step: 0.1, off: 0, says: 'subtracts for each time it was written' },
];
const NAMES = new Set(SLIDERS.map((slider) => slider.name));
const QUIET = new Set(['seed', 'max_tokens', 'ignore_eos', 'logprobs', 'n', 'stop', 'stop_ids', ...NAMES]);

/** Stages that are on and that this page cannot repeat: then what it shows is approximate. */
export function foreignStages(params) {
  const isOn = (value, name) => !QUIET.has(name) && value !== null && value !== undefined && value !== false
    && value !== 0 && !(name === 'typical_p' && value === 1) && !(typeof value === 'object' && !Object.keys(value).length);
  return Object.entries(params).filter(([name, value]) => isOn(value, name)).map(([name]) => name);
}

/** A row of the whole vocabulary: entry i is token i, once. */
export function wholeRow(logits) {
  return { logits, idOf: (entry) => entry, entryOf: (id) => id, counts: null };
}

/** A row from a record: the best candidates' raw logits, and the rest as equal tokens that share the tail's mass. */
export function shortRow(step, vocabSize) {
  const raw = step.chain[0].logits;
  const others = Math.max(1, vocabSize - raw.length);
  const peak = raw[0];
  // exp(peak - z) is the best one's probability, so the rest's logit follows from the mass that is left.
  const logNormalizer = peak - step.top[0].logprob;
  const rest = Math.log(Math.max(step.tail_mass, 1e-30) / others) + logNormalizer;
  const ids = step.top.map((candidate) => candidate.id);
  return {
    logits: Float32Array.from([...raw, rest]), counts: Float64Array.from([...raw.map(() => 1), others]),
    idOf: (entry) => ids[entry] ?? -1, entryOf: (id) => ids.indexOf(id),
  };
}

function penalize(logits, row, history, promptLength, params) {
  const at = (id) => row.entryOf(id);
  if (params.repetition_penalty !== 1) {
    const by = Math.fround(params.repetition_penalty);
    for (const id of new Set(history)) if (at(id) >= 0) logits[at(id)] = logits[at(id)] < 0 ? logits[at(id)] * by : logits[at(id)] / by;
  }
  const written = new Map();
  for (const id of history.slice(promptLength)) written.set(id, (written.get(id) ?? 0) + 1);
  for (const [id, count] of written) {
    if (at(id) >= 0) logits[at(id)] -= Math.fround(params.frequency_penalty) * count;
    if (at(id) >= 0) logits[at(id)] -= Math.fround(params.presence_penalty);
  }
}

function alive(logits) {
  const entries = [];
  for (let entry = 0; entry < logits.length; entry += 1) if (logits[entry] > -Infinity) entries.push(entry);
  return entries;
}

/** Entries by falling logit, ties by the lower id: the order in which the bar of the draw is laid. */
function ordered(logits) {
  return alive(logits).sort((a, b) => logits[b] - logits[a] || a - b);
}

function weights(logits, counts) {
  const peak = logits.reduce((most, one) => Math.max(most, one), -Infinity);
  let total = 0;
  const each = new Float64Array(logits.length);
  for (let entry = 0; entry < logits.length; entry += 1) {
    each[entry] = logits[entry] === -Infinity ? 0 : Math.exp(logits[entry] - peak) * (counts ? counts[entry] : 1);
    total += each[entry];
  }
  for (let entry = 0; entry < each.length; entry += 1) each[entry] /= total;
  return each;
}

const STAGES = {
  temperature: (logits, counts, value) => logits.map((one) => one / Math.fround(value)),
  top_k(logits, counts, value) {
    let left = value;
    const worst = ordered(logits).find((entry) => (left -= counts ? counts[entry] : 1) <= 0);
    return worst === undefined ? logits : logits.map((one) => (one < logits[worst] ? -Infinity : one));
  },
  top_p(logits, counts, value) {
    const shares = weights(logits, counts);
    const kept = new Float32Array(logits.length).fill(-Infinity);
    let sum = 0;
    for (const entry of ordered(logits)) {
      kept[entry] = logits[entry];
      sum += shares[entry];
      if (sum >= value) break;
    }
    return kept;
  },
  min_p(logits, counts, value) {
    const floor = Math.fround(Math.max(...ordered(logits).slice(0, 1).map((entry) => logits[entry])) + Math.log(value));
    return logits.map((one) => (one < floor ? -Infinity : one));
  },
};
const SILENT = { temperature: 1, top_k: 0, top_p: 1, min_p: 0 };

/** What the chain makes of a row: each stage with what it left, shares, who was removed by what, and the order. */
export function reshape(row, history, promptLength, settings) {
  const params = { ...Object.fromEntries(SLIDERS.map((slider) => [slider.name, slider.off])), ...settings };
  const isGreedy = params.temperature === 0;
  const { counts } = row;
  let logits = Float32Array.from(row.logits);
  const removedBy = new Map();
  const stages = [{ name: 'raw', setting: '', kept: countOf(logits, counts) }];
  const penalties = SLIDERS.slice(4).filter((slider) => params[slider.name] !== slider.off);
  if (penalties.length) penalize(logits, row, history, promptLength, params);
  for (const { name } of penalties) stages.push({ name, setting: String(params[name]), kept: stages[0].kept });
  for (const [name, stage] of Object.entries(isGreedy ? {} : STAGES)) {
    if (params[name] === SILENT[name]) continue;
    const after = stage(logits, counts, params[name]);
    for (let entry = 0; entry < after.length; entry += 1) {
      if (after[entry] === -Infinity && logits[entry] > -Infinity) removedBy.set(entry, name);
    }
    logits = after;
    stages.push({ name, setting: String(params[name]), kept: countOf(logits, counts) });
  }
  return { stages, shares: weights(logits, counts), removedBy, logits, isGreedy };
}

function countOf(logits, counts) {
  let kept = 0;
  for (let entry = 0; entry < logits.length; entry += 1) if (logits[entry] > -Infinity) kept += counts ? counts[entry] : 1;
  return kept;
}

/** The entry that a draw takes, and its share of the bar; the best one where nothing is thrown. */
export function taken(shaped, u) {
  const order = ordered(shaped.logits);
  if (shaped.isGreedy || u === null || u === undefined) return { entry: order[0], low: 0, high: shaped.shares[order[0]] };
  let low = 0;
  for (const entry of order) {
    const high = low + shaped.shares[entry];
    if (u < high) return { entry, low, high };
    low = high;
  }
  return { entry: order.at(-1), low, high: 1 };
}

/** The model's own numbers of a row: shares before the chain, entropy and margin in nats. */
export function measure(row) {
  const shares = weights(row.logits, row.counts);
  let entropy = 0;
  for (let entry = 0; entry < shares.length; entry += 1) {
    const each = shares[entry] / (row.counts ? row.counts[entry] : 1);
    if (each > 0) entropy -= shares[entry] * Math.log(each);
  }
  const order = ordered(row.logits);
  return { shares, entropy, margin: row.logits[order[0]] - row.logits[order[1]], order };
}
