import { appendFileSync } from 'node:fs';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { isMainThread } from 'node:worker_threads';

// Preloaded into an agent (`--import`): measures for how long its event loop was held. At SIGUSR2 it appends what it
// has measured since to the file that VOLT_BENCH_PROBE names, and begins anew. Without VOLT_BENCH_LOOK it tells of memory
// alone, after a full collection, and takes no processor time of an agent at rest.

const file = process.env['VOLT_BENCH_PROBE'];

/** A turn of the loop that is longer than the pause between two looks is seen as that much longer a pause. */
const LOOK_MS = 1;

if (isMainThread && file !== undefined) {
  let wall = performance.now();
  let cpu = process.threadCpuUsage();
  let most = { heldMs: 0, cpuMs: 0 };
  const look = (): void => {
    const now = performance.now();
    const used = process.threadCpuUsage(cpu);
    const cpuMs = (used.user + used.system) / 1_000;
    most = {
      heldMs: Math.max(most.heldMs, now - wall - LOOK_MS),
      cpuMs: Math.max(most.cpuMs, cpuMs),
    };
    wall = now;
    cpu = process.threadCpuUsage();
  };
  const isLooking = process.env['VOLT_BENCH_LOOK'] === '1';
  if (isLooking) setInterval(look, LOOK_MS).unref();
  process.on('SIGUSR2', () => {
    const rssMiB = process.memoryUsage.rss() / 2 ** 20;
    // A full collection throws away compiled code, too, which the next requests would miss.
    if (!isLooking) collect();
    const { heapUsed, external } = process.memoryUsage();
    const keptMiB = (heapUsed + external) / 2 ** 20;
    appendFileSync(file, `${JSON.stringify({ ...most, rssMiB, keptMiB })}\n`);
    most = { heldMs: 0, cpuMs: 0 };
    wall = performance.now();
    cpu = process.threadCpuUsage();
  });
}

function collect(): void {
  setFlagsFromString('--expose-gc');
  const gc: unknown = runInNewContext('gc');
  if (typeof gc === 'function') gc();
}
