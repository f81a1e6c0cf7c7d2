import { parentPort, threadId } from 'node:worker_threads';
import type { QueuedDryRun } from '#agent/host/networks/dry-runs.ts';

// A thread of dry runs that does what the name of the device says, in place of agent/host/networks/dry-run-thread.ts.

const FOREVER_MS = 1_000_000;

parentPort?.on('message', (order: QueuedDryRun | null) => {
  if (order === null) {
    parentPort?.close();
    return;
  }
  const { deviceName } = order;
  if (deviceName === 'dies') throw new Error('is not well');
  if (deviceName === 'exits') process.exit(3);
  const waiting = new Int32Array(new SharedArrayBuffer(4));
  if (deviceName === 'sleeps') Atomics.wait(waiting, 0, 0, 200);
  if (deviceName === 'is-stuck') Atomics.wait(waiting, 0, 0, FOREVER_MS);
  const operations = [{ operation: 'thread', subject: String(threadId) }];
  parentPort?.postMessage(deviceName === 'answers-nonsense' ? 'nonsense' : { operations }, []);
});
