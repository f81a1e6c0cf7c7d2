import { parentPort, workerData } from 'node:worker_threads';
import { setTimeout as sleep } from 'node:timers/promises';
import { connect, headers } from 'nats';
import { VoltNetworkClient } from '#protocol/client.ts';

// A thread that asks for one attachment again and again, with a connection of its own: what it waits for is the agent
// and not the event loop of the bench. Each message to it is answered with the times since the last one.

const PAUSE_MS = 2;

interface Order {
  readonly url: string;
  readonly host: string;
  readonly id: string;
}

const { url, host, id } = workerData as Order;
const connection = await connect({ servers: url });
const client = new VoltNetworkClient({ connection, headers });
let times: number[] = [];
let isEnding = false;

parentPort?.on('message', (word: 'times' | 'end') => {
  parentPort?.postMessage(times, []);
  times = [];
  isEnding = word === 'end';
});

while (!isEnding) {
  const started = performance.now();
  await client.get(host, { id });
  times.push(performance.now() - started);
  await sleep(PAUSE_MS);
}
await connection.close();
parentPort?.close();
