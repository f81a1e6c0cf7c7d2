import { ask } from './ask.js';
import { byId, el, setText } from './dom.js';
import { badge, outcome } from './events.js';
import { duration, whole } from './format.js';
import { bars } from './waterfall.js';

const REFRESH_MS = 400;

/** The page of one attachment: what it is, and what became of it. */
export function attachmentPage(guard) {
  let shown = null;
  let events = new Map();
  let hasTraces = false;
  let refreshing = 0;

  const isShown = (named) => shown === named;

  async function open(named) {
    if (shown !== null && key(shown) === key(named)) return;
    shown = named;
    events = new Map();
    setText(byId('attachment-title'), named.id);
    setText(byId('attachment-note'), 'Reading…');
    setText(byId('life-note'), '');
    byId('attachment-facts').replaceChildren();
    byId('life-rows').replaceChildren();
    setState('');
    const attachment = await refresh(named);
    await guard(async () => {
      setText(byId('life-note'), 'Reading the stream…');
      const since = attachment?.createdAt ?? '';
      const life = await ask('api/life', { ...named, since });
      if (!isShown(named)) return;
      take(life.events);
      const why = life.problem === null ? '' : `${life.problem.code}: ${life.problem.message}`;
      const cut = life.complete ? '' : 'The stream is long: older events may be missing.';
      setText(byId('life-note'), why || cut);
    });
  }

  async function refresh(named) {
    let attachment = null;
    await guard(async () => {
      const answer = await ask('api/attachment', named);
      if (!isShown(named)) return;
      ({ attachment } = answer);
      const { problem } = answer;
      const isGone = problem?.code === 'NOT_FOUND';
      const why = problem === null || isGone ? '' : `${problem.code}: ${problem.message}`;
      setText(byId('attachment-note'), isGone ? 'It is not attached now.' : why);
      setState(attachment?.state ?? (isGone ? 'detached' : 'unknown'));
      showFacts(named, attachment);
      take(answer.events);
    });
    return attachment;
  }

  function take(more) {
    const before = events.size;
    // The same event has another number in the stream than among those that were heard.
    for (const event of more) events.set(`${event.type} ${event.requestId} ${event.time}`, event);
    if (events.size === before && before > 0) return;
    const sorted = [...events.values()].toSorted((a, b) => a.time.localeCompare(b.time));
    const rows = sorted.map((event) => step(event, hasTraces));
    if (rows.length === 0) rows.push(el('li', { class: 'empty' }, 'No events.'));
    byId('life-rows').replaceChildren(...rows);
  }

  return {
    open,
    close: () => {
      shown = null;
    },
    setTraces: (has) => {
      hasTraces = has;
    },
    /** Something was heard. */
    heard(fresh) {
      const named = shown;
      if (named === null) return;
      const own = fresh.filter(
        ({ subject, host, network }) =>
          subject === named.id && host === named.host && network === named.network,
      );
      if (own.length === 0) return;
      take(own);
      clearTimeout(refreshing);
      refreshing = setTimeout(() => {
        if (isShown(named)) void refresh(named);
      }, REFRESH_MS);
    },
  };
}

const key = ({ host, network, id }) => JSON.stringify([host, network, id]);

function setState(state) {
  const place = byId('attachment-state');
  setText(place, state);
  place.dataset.type = state;
  place.hidden = state === '';
}

function showFacts(named, attachment) {
  const one = attachment ?? {};
  const addresses = (one.addresses ?? []).map(({ address }) => address);
  const gateways = (one.addresses ?? []).map(({ gateway }) => gateway).filter(Boolean);
  const labels = Object.entries(one.labels ?? {}).map(([name, value]) => `${name}=${value}`);
  const ports = (one.ports ?? []).map((port) => `${port.protocol} ${port.hostPort} → ${port.port}`);
  const facts = [
    ['Network', named.network],
    ['Host', named.host],
    ['Workload', one.workload],
    ['Kind', one.kind],
    ['Type', one.type],
    ['Addresses', addresses.join('\n')],
    ['Gateway', gateways.join('\n')],
    ['MAC', one.mac],
    ['Device', one.device?.name],
    ['Bridge', one.device?.bridge],
    ['MTU', one.device?.mtu],
    ['Filter', one.filter],
    ['Namespace', one.netns],
    ['Ports', ports.join('\n')],
    ['Labels', labels.join('\n')],
    ['Generation', one.generation],
    ['Attached', one.createdAt === undefined ? undefined : whole(one.createdAt)],
    ['Expires', one.lease?.expiresAt === undefined ? undefined : whole(one.lease.expiresAt)],
  ];
  byId('attachment-facts').replaceChildren(
    ...facts
      .filter(([, value]) => value !== undefined && value !== null && value !== '')
      .map(([name, value]) => el('div', {}, el('dt', {}, name), el('dd', {}, String(value)))),
  );
}

/** One event of the life: when, what, how long each phase took, and the trace that it is part of. */
function step(event, hasTraces) {
  const { type, time, phases, traceId, requestId } = event;
  const more = outcome(event);
  const whom = [
    requestId === '' ? '' : `request ${requestId}`,
    traceId === '' ? '' : `trace ${traceId}`,
  ];
  const spans = el('div', { class: 'spans' });
  return el(
    'li',
    {},
    el('div', { class: 'what' }, badge(type), el('time', { datetime: time }, whole(time))),
    more === '' ? null : el('p', { class: type === 'failed' ? 'more warning' : 'more' }, more),
    // For that alone nobody has waited.
    phases.every(({ phase }) => phase === 'publish') ? null : phaseBars(phases),
    el('p', { class: 'under code' }, whom.filter((one) => one !== '').join(' · ')),
    traceId === '' || !hasTraces ? null : spansButton(traceId, spans),
    spans,
  );
}

/** The phases follow each other. */
function phaseBars(phases) {
  let startMs = 0;
  const rows = phases.map(({ phase, ms }) => {
    const row = { name: phase, startMs, durationMs: ms, depth: 0, isFaint: phase === 'publish' };
    startMs += ms;
    return row;
  });
  return bars(`Phases, ${duration(startMs)} in all`, rows);
}

function spansButton(traceId, place) {
  const button = el('button', { type: 'button', 'aria-expanded': 'false' }, 'Show spans');
  button.addEventListener('click', async () => {
    const isOpen = button.getAttribute('aria-expanded') === 'true';
    button.setAttribute('aria-expanded', String(!isOpen));
    setText(button, isOpen ? 'Show spans' : 'Hide spans');
    place.replaceChildren(...(isOpen ? [] : [await spansOf(traceId)]));
  });
  return button;
}

async function spansOf(traceId) {
  let answer;
  try {
    answer = await ask('api/trace', { id: traceId });
  } catch (error) {
    return el('p', { class: 'note' }, error.message);
  }
  if (answer.problem !== null) return el('p', { class: 'note' }, answer.problem.message);
  if (answer.spans.length === 0) {
    return el('p', { class: 'note' }, 'The file of traces has no spans of this trace (yet).');
  }
  const depths = depthsOf(answer.spans);
  return bars(
    `Spans of ${duration(Math.max(...answer.spans.map((one) => one.startMs + one.durationMs)))}`,
    answer.spans.map((span) => ({ ...span, depth: depths.get(span.spanId) ?? 0 })),
  );
}

/** How deep each span lies. A trace may lack spans, and a file that somebody made may have circles. */
function depthsOf(spans) {
  const parents = new Map(spans.map(({ spanId, parentId }) => [spanId, parentId]));
  return new Map(
    spans.map(({ spanId }) => {
      let depth = 0;
      let above = parents.get(spanId);
      while (parents.has(above) && depth < 12) {
        depth += 1;
        above = parents.get(above);
      }
      return [spanId, depth];
    }),
  );
}
