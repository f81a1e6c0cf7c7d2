import { ask, repeated, Unanswered } from './ask.js';
import { attachmentPage } from './attachment.js';
import { attachmentsTable } from './attachments.js';
import { byId, setText } from './dom.js';
import { eventList } from './events.js';
import { showHosts } from './hosts.js';
import { showLatency } from './latency.js';
import { showNetworks } from './networks.js';

const EVERY_MS = 2_500;

/** Why a question had no answer; said once, and taken away with the next answer. */
async function guard(work) {
  try {
    await work();
    byId('alarm').hidden = true;
  } catch (error) {
    if (!(error instanceof Unanswered)) throw error;
    setText(byId('alarm'), error.message);
    byId('alarm').hidden = false;
  }
}

const table = attachmentsTable(guard);
const page = attachmentPage(guard);
const events = eventList();
const fleet = repeated(
  () =>
    guard(async () => {
      const [hosts, networks] = await Promise.all([ask('api/hosts'), ask('api/networks')]);
      showHosts(hosts);
      showNetworks(networks);
    }),
  EVERY_MS,
);

follow();
route();
addEventListener('hashchange', route);
fleet.now();

/**
 * What happens, as the server tells it; the browser connects again by itself. A page that nobody looks at does not follow:
 * a browser has six connections to a server, and a seventh page would get none.
 */
function follow() {
  let source = null;
  const connect = () => {
    source?.close();
    source = document.hidden ? null : opened();
  };
  const opened = () => {
    const stream = new EventSource('api/events');
    const on = (type, take) => stream.addEventListener(type, ({ data }) => take(JSON.parse(data)));
    on('state', showState);
    on('latency', showLatency);
    on('events', showEvents);
    stream.addEventListener('error', () => {
      showLink('away', 'Not connected');
      // Refused for good, as by a server with another token: the browser has given up.
      if (stream.readyState === EventSource.CLOSED) {
        setTimeout(() => {
          if (stream === source) connect();
        }, 5_000);
      }
      fleet.soon();
    });
    return stream;
  };
  document.addEventListener('visibilitychange', connect);
  connect();
}

function showEvents(told) {
  const fresh = events.add(told);
  if (fresh.length === 0) return;
  page.heard(fresh);
  table.soon();
  fleet.soon();
  // The list of the fleet may know of it a moment later.
  setTimeout(() => table.soon(), 1_500);
}

let wasUp = true;
function showState({ isUp, problem, version, traces }) {
  setText(byId('version'), version);
  page.setTraces(traces);
  if (!isUp) showLink('away', 'NATS is away');
  else showLink('live', 'Live');
  const why = problem === null ? '' : `Only from now on: ${problem.code}: ${problem.message}`;
  setText(byId('events-note'), why);
  if (isUp !== wasUp) {
    table.soon(0);
    fleet.soon(0);
  }
  wasUp = isUp;
}

function showLink(state, text) {
  byId('link').dataset.state = state;
  setText(byId('link'), text);
}

/** `#/` is the overview, `#/?network=…` with a filter, `#/attachment/HOST/NETWORK/ID` one attachment. */
function route() {
  const [path, query = ''] = location.hash.slice(1).split('?');
  const [, name, ...rest] = path.split('/');
  if (name === 'attachment' && rest.length === 3) {
    const [host, network, id] = rest.map(decoded);
    show('attachment', id);
    void page.open({ host, network, id });
    byId('attachment-title').focus();
    return;
  }
  const cameFrom = byId('attachment').hidden ? null : lastOpened;
  show('overview', null);
  page.close();
  if (path.startsWith('/') || path === '') {
    table.filter(new URLSearchParams(query));
    if (cameFrom !== null) document.querySelector(`a[href="${CSS.escape(cameFrom)}"]`)?.focus();
    else if (query !== '') reveal('attachments');
  } else {
    table.soon(0);
    reveal(path);
  }
}

let lastOpened = null;
function show(view, id) {
  if (view === 'attachment') lastOpened = location.hash;
  byId('overview').hidden = view !== 'overview';
  byId('attachment').hidden = view !== 'attachment';
  document.title = id === null ? 'Volt network' : `${id} · Volt network`;
  if (view === 'attachment') scrollTo(0, 0);
}

function reveal(section) {
  const place = byId(section);
  if (place === null) return;
  place.scrollIntoView();
  place.focus({ preventScroll: true });
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}
