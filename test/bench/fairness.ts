import { setTimeout as sleep } from 'node:timers/promises';
import { connect, headers, type NatsConnection } from 'nats';
import { VoltNetworkClient } from '#protocol/client.ts';
import { subjects } from '#protocol/subjects.ts';
import { Flood } from '../support/flood.ts';
import { startHost } from './host.ts';
import { timed } from './figures.ts';
import { held, PROBED } from './loop.ts';
import { attachMany, networksFor } from './many.ts';
import type { Sizes } from './sizes.ts';

const ATTACHES = 150;
const INBOXES = 500;
const ROUNDS = 5;
/** What a request may hold the loop. */
const BOUND_MS = 20;

/**
 * What expensive reads of one caller cost another on a host with very many attachments: how long the agent's event loop
 * is held by each of them alone, and how long an attach takes beside hundreds of them.
 */
export async function benchFairness({ attachments }: Sizes): Promise<void> {
  const networks = networksFor(attachments + ATTACHES * 6);
  await using stack = await startHost({ networks, env: PROBED });
  const { agent, client, host } = stack;
  const ms = await timed(() => attachMany(stack, networks, attachments));
  process.stdout.write(`${attachments} attachments made in ${(ms / 1_000).toFixed(1)} s\n`);
  const at = subjects('volt.net.v1');
  const ask = (n: number) =>
    ({ id: `dry${n}`, workload: `dry${n}`, kind: 'vm', network: 'n0', dryRun: true }) as const;
  const reads: Readonly<Record<string, () => Promise<unknown>>> = {
    'nothing, 2 s': () => sleep(2_000),
    list: () => client.list(host, {}),
    'list, last page': () => client.list(host, { cursor: 'b9' }),
    'list, none matches': () => client.list(host, { workload: 'nobody' }),
    check: () => client.check(host, {}, { timeoutMs: 60_000 }),
    'check of one': () => client.check(host, { id: 'b1' }),
    'dry run': () => client.dryRun(host, ask(0)),
    'ledger.check': () => client.checkLedger({}, { timeoutMs: 60_000 }),
    'ledger.leases': () => client.ledgerLeases({}),
  };
  process.stdout.write(`\n${' '.repeat(24)}  took ms   loop held ms   CPU of that   RSS MiB\n`);
  await held(agent.pid);
  for (const [name, read] of Object.entries(reads)) {
    const worst = { tookMs: 0, heldMs: 0, cpuMs: 0, rssMiB: 0 };
    for (let round = 0; round < ROUNDS; round += 1) {
      await sleep(100);
      await held(agent.pid);
      const tookMs = await timed(() => read().catch((error: unknown) => note(name, error)));
      const seen = await held(agent.pid);
      worst.tookMs = Math.max(worst.tookMs, tookMs);
      worst.heldMs = Math.max(worst.heldMs, seen.heldMs);
      worst.cpuMs = Math.max(worst.cpuMs, seen.cpuMs);
      worst.rssMiB = seen.rssMiB;
    }
    const figures = [worst.tookMs, worst.heldMs, worst.cpuMs, worst.rssMiB];
    const row = figures.map((figure) => figure.toFixed(1).padStart(12)).join('');
    const verdict = worst.cpuMs <= BOUND_MS ? 'met' : 'MISSED';
    process.stdout.write(`  ${name.padEnd(20)}${row}   <= ${BOUND_MS} ${verdict}\n`);
  }
  await beside(stack, {
    idle: null,
    list: { subject: at.host(host, 'list'), body: () => ({}) },
    check: { subject: at.host(host, 'check'), body: () => ({}) },
    'dry run': { subject: at.host(host, 'attach'), body: ask },
    'ledger.check': { subject: at.ledger('check'), body: () => ({}) },
  });
}

/** Another caller's attaches, one after the other, beside floods that each come under very many inboxes. */
async function beside(
  { nats, agent, host }: { nats: { url: string }; agent: { pid: number }; host: string },
  floods: Readonly<Record<string, { subject: string; body: (n: number) => object } | null>>,
): Promise<void> {
  const quiet = await connect({ servers: nats.url });
  const other = new VoltNetworkClient({ connection: quiet, headers });
  process.stdout.write(`\nattach of another, beside ${INBOXES} inboxes of:\n`);
  let next = 0;
  for (const [name, what] of Object.entries(floods)) {
    const noisy: NatsConnection = await connect({ servers: nats.url });
    const flood = what && new Flood({ ...what, connection: noisy, inFlight: INBOXES });
    await sleep(300);
    await held(agent.pid);
    const times: number[] = [];
    const failed = new Map<string, number>();
    const end = performance.now() + 30_000;
    for (let n = 0; n < ATTACHES && performance.now() < end; n += 1) {
      next += 1;
      const id = `x${next}`;
      const request = { id, workload: id, kind: 'vm', network: `n${next % 3}` } as const;
      const started = performance.now();
      try {
        await other.attach(host, request, { timeoutMs: 30_000 });
        times.push(performance.now() - started);
      } catch (error) {
        const code = error instanceof Error && 'code' in error ? String(error.code) : 'unknown';
        failed.set(code, (failed.get(code) ?? 0) + 1);
      }
    }
    const seen = await held(agent.pid);
    const sorted = times.toSorted((a, b) => a - b);
    const part = (share: number): string =>
      (sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? NaN).toFixed(1);
    process.stdout.write(
      `  ${name.padEnd(14)} ${times.length} ok, p50 ${part(0.5)}, p99 ${part(0.99)}, most ${part(1)} ms; ` +
        `loop held ${seen.heldMs.toFixed(0)} ms (CPU ${seen.cpuMs.toFixed(0)}); failed ${JSON.stringify([...failed])}; ` +
        `flood ${JSON.stringify([...(flood?.answers ?? [])])}\n`,
    );
    if (flood !== null) await Promise.race([flood.stop(), sleep(20_000)]);
    await noisy.close();
  }
  await quiet.close();
}

const note = (name: string, error: unknown): void =>
  void process.stdout.write(`  ${name}: ${String(error)}\n`);
