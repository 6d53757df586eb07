// The record of a run (docs/record.md): made from what is on screen, checked when one is opened, packed into a link.

const FORMAT = 'byhand.record';

/** The document of a run as it stands here. The server's own is preferred where there is a server. */
export function recordOf(run) {
  const { steps, promptLength, tokens, params } = run;
  return {
    format: FORMAT,
    version: 1,
    byhand: run.made?.byhand ?? 'page',
    created: run.made?.created ?? new Date().toISOString().replace(/\.\d+Z$/, '+00:00'),
    model: run.identity,
    seed: run.made?.seed ?? params.seed ?? 0,
    choice: run.made?.choice ?? 0,
    settings: run.settings.filter((one) => one.from <= steps.length),
    prompt: tokens.slice(0, promptLength),
    ids: tokens.map((token) => token.id),
    text: steps.map((step) => step.text).join(''),
    finish_reason: run.finish?.finish_reason ?? null,
    stop_reason: run.finish?.stop_reason ?? null,
    usage: { prompt_tokens: promptLength, completion_tokens: steps.length, cached_tokens: 0 },
    steps,
  };
}

/** The first `count` steps of a record: what stood there then, which could still go on. */
export function cut(record, count) {
  if (count >= record.steps.length) return record;
  const steps = record.steps.slice(0, count);
  return {
    ...record, steps, ids: record.ids.slice(0, record.prompt.length + count),
    text: steps.map((step) => step.text).join(''), finish_reason: null, stop_reason: null,
    settings: record.settings.filter((one) => one.from <= count),
    usage: { ...record.usage, completion_tokens: count },
  };
}

/** Read a document, or throw one sentence that says what is wrong with it. `readings` may stand beside the record. */
export function parseRecord(text) {
  let document;
  try {
    document = JSON.parse(text);
  } catch (error) {
    throw new Error(`this file is no record: it is not JSON (${error.message})`);
  }
  const record = document?.record ?? document;
  if (record?.format !== FORMAT) throw new Error('this file is no byhand record: its format is another');
  if (record.version !== 1) throw new Error(`this record is of version ${record.version}; this page reads version 1`);
  for (const name of ['prompt', 'steps', 'ids', 'settings']) {
    if (!Array.isArray(record[name])) throw new Error(`this record is damaged: it has no list of ${name}`);
  }
  if (record.ids.length !== record.prompt.length + record.steps.length || !record.prompt.length) {
    throw new Error('this record is damaged: its ids are not its prompt and its steps');
  }
  return { record, readings: document.readings ?? [] };
}

/** A file for the reader to keep. */
export function download(record) {
  const url = URL.createObjectURL(new Blob([JSON.stringify(record)], { type: 'application/json' }));
  const link = Object.assign(document.createElement('a'), { href: url, download: 'run.byhand.json' });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

async function through(bytes, stream) {
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());
}

/** A record as text that fits in an address. */
export async function pack(record) {
  const bytes = await through(new TextEncoder().encode(JSON.stringify(record)), new CompressionStream('deflate-raw'));
  let text = '';
  for (let at = 0; at < bytes.length; at += 8192) text += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return btoa(text).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');
}

/** The text of a packed record. */
export async function unpack(packed) {
  const text = atob(packed.replaceAll('-', '+').replaceAll('_', '/'));
  const bytes = Uint8Array.from(text, (character) => character.charCodeAt(0));
  return new TextDecoder().decode(await through(bytes, new DecompressionStream('deflate-raw')));
}
