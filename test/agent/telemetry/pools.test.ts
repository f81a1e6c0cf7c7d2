import { afterEach, expect, test } from 'vitest';
import type { NetworkUsage } from '#ipam-store/ledger.ts';
import { parseNetwork } from '#protocol/network.ts';
import { Pools, type PoolsOptions } from '#agent/telemetry/pools.ts';
import { until } from '../../support/agent.ts';

// Which networks are read, and what is told of them; the ledger is a table.

const USAGE: NetworkUsage = { size: 9, used: 1, free: 8, reserved: 0, cooling: 0, suspect: 0 };
const RECORD = { network: parseNetwork({ network: 'a', subnet: '10.0.0.0/24' }), revision: 1 };

let pools: Pools;
let networks: string[];
let isAway: boolean;
let asked: string[];
let underWay: number;
let mostUnderWay: number;

function start(...names: string[]): void {
  [networks, isAway, asked, underWay, mostUnderWay] = [names, false, [], 0, 0];
  const getNetwork: PoolsOptions['ledger']['getNetwork'] = async (name) => {
    asked.push(name);
    underWay += 1;
    mostUnderWay = Math.max(mostUnderWay, underWay);
    await Promise.resolve();
    underWay -= 1;
    if (isAway) throw new Error('away');
    return name === 'none' ? null : { ...RECORD, usage: USAGE };
  };
  pools = new Pools({
    ledger: { status: { state: 'ready' }, getNetwork },
    networks: () => networks,
    periodSeconds: 0.02,
    log: { debug: () => {} },
  });
  pools.start();
}
afterEach(() => pools.stop());

const told = (): string[] => [...pools.usage.keys()].toSorted();

test('each network of the host is read, one after the other, and again', async () => {
  start('a', 'b', 'none');
  await until('both are told', () => told().join() === 'a,b');
  const before = asked.length;
  await until('they are read again', () => asked.length >= before + 6);
  expect(mostUnderWay).toBe(1);
  expect(pools.usage.get('a')).toEqual(USAGE);
});

test('a network without attachments here is told no more at once, and not read any more', async () => {
  start('a', 'b');
  await until('both are told', () => told().join() === 'a,b');
  networks = ['b'];
  expect(told()).toEqual(['b']);
  await until('a round without it is over', () => asked.slice(-4).join() === 'b,b,b,b');
});

test('what cannot be read for some rounds is told no more, and again when it can', async () => {
  start('a');
  await until('it is told', () => told().join() === 'a');
  isAway = true;
  await until('it is not told', () => told().length === 0);
  isAway = false;
  await until('it is told again', () => told().join() === 'a');
});
