// The address holds the view: what a reload or a link to somebody else must show again. What follows from nobody's hand
// is left out, so that the first visit's address stays bare.

const PANELS = ['settings', 'tree', 'cost', 'ending', 'wire'];

/** The part of an address after the #: the view, its panel, ids, the selected place, and a packed run where one is given. */
export function addressOf({ view, panel, showsIds, at }, packed = null) {
  const said = new URLSearchParams();
  if (view !== 'strip') said.set('view', view);
  if (panel !== 'settings') said.set('panel', panel);
  if (showsIds) said.set('ids', '1');
  if (at !== null) said.set('at', String(at));
  if (packed) said.set('run', packed);
  const text = said.toString();
  return text && `#${text}`;
}

/** What an address says; what it does not, or says wrongly, is not there. */
export function readAddress(hash) {
  const said = new URLSearchParams(hash.slice(1));
  const values = {};
  if (said.get('view') === 'chat') values.view = 'chat';
  if (PANELS.includes(said.get('panel'))) values.panel = said.get('panel');
  if (said.get('ids') === '1') values.showsIds = true;
  if (/^\d{1,7}$/.test(said.get('at') ?? '')) values.at = Number(said.get('at'));
  return { values, packed: said.get('run') };
}
