/** The server does not answer, or will not. */
export class Unanswered extends Error {}

const TIMEOUT_MS = 20_000;

/** Asks the server that the page came from. Throws Unanswered. */
export async function ask(path, query = {}) {
  const answer = await answerOf(`${path}?${new URLSearchParams(query)}`);
  if (answer.status === 401) {
    throw new Unanswered('Not allowed: open the address that voltnet dashboard has printed.');
  }
  if (!answer.ok) throw new Unanswered(`The dashboard answered ${answer.status}.`);
  return answer.json();
}

async function answerOf(url) {
  try {
    return await fetch(url, { signal: AbortSignal.timeout(TIMEOUT_MS) });
  } catch {
    throw new Unanswered('voltnet dashboard does not answer. Is the command still running?');
  }
}

/**
 * Calls `work` now, every `everyMs`, and `soon()` after; one at a time, and not while nobody looks at the page.
 */
export function repeated(work, everyMs) {
  let timer = 0;
  let running = false;
  let again = false;
  const run = async () => {
    clearTimeout(timer);
    if (document.hidden) return;
    if (running) {
      again = true;
      return;
    }
    running = true;
    again = false;
    try {
      await work();
    } finally {
      running = false;
      clearTimeout(timer);
      timer = setTimeout(() => void run(), again ? 250 : everyMs);
    }
  };
  document.addEventListener('visibilitychange', () => void run());
  let soon = 0;
  return {
    now: () => void run(),
    /** Several calls within that time are one. */
    soon: (ms = 300) => {
      if (soon !== 0) return;
      soon = setTimeout(() => {
        soon = 0;
        void run();
      }, ms);
    },
  };
}
