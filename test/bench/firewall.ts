import { Firewall } from '#agent/host/firewall/firewall.ts';
import { portMapFacts } from '#agent/host/firewall/host-nat.ts';
import { bridgePortFacts } from '#agent/host/firewall/port-filter.ts';
import { createLog } from '#agent/log.ts';
import type { Table } from './figures.ts';

const SAMPLES = 200;
const PORTS = 5_000;
const MAPS = 10_000;

const octets = (n: number): string => `${(n >> 8) & 0xff}.${n & 0xff}`;

const port = (n: number) =>
  bridgePortFacts({
    device: `tap-${n}`,
    mac: `02:00:00:00:${(n >> 8).toString(16).padStart(2, '0')}:${(n & 0xff).toString(16).padStart(2, '0')}`,
    addresses: [`10.42.${octets(n)}/16`, `fd42::${n.toString(16)}/64`],
    linkLocal: 'eui64',
  });

const map = (n: number) =>
  portMapFacts({
    ports: [{ protocol: 'tcp', hostPort: 10_000 + n, port: 80 }],
    addresses: [{ address: `10.88.${octets(n)}/16` }],
  });

/** What the port filter and a port map cost an attach and a detach, alone and among thousands. */
export async function benchFirewall(): Promise<Table[]> {
  using firewall = new Firewall({ log: createLog('warn', 'bench'), table: 'volt' });
  firewall.start();
  await Promise.resolve();
  const sample = (facts: (n: number) => ReturnType<typeof port>, from: number) => {
    const put: number[] = [];
    const remove: number[] = [];
    for (let n = from; n < from + SAMPLES; n += 1) {
      const started = performance.now();
      firewall.put(`bench:${n}`, facts(n));
      put.push(performance.now() - started);
    }
    for (let n = from; n < from + SAMPLES; n += 1) {
      const started = performance.now();
      firewall.remove(`bench:${n}`);
      remove.push(performance.now() - started);
    }
    return { put, remove };
  };
  sample(port, 0);
  const tables: Table[] = [];
  for (const [name, facts, many] of [
    ['port filter', port, PORTS],
    ['port map', map, MAPS],
  ] as const) {
    const alone = sample(facts, 1);
    for (let n = SAMPLES + 1; n < many; n += 1) firewall.put(`many:${n}`, facts(n));
    const among = sample(facts, many);
    tables.push({
      name: name.replace(' ', '-'),
      title: `${name}, alone and among ${many}`,
      how: `${SAMPLES} puts and ${SAMPLES} removals. 0.3 ms is meant, and flat.`,
      decisive: [],
      shown: [
        { name: 'put', unit: 'ms', values: alone.put },
        { name: `put among ${many}`, unit: 'ms', values: among.put },
        { name: 'remove', unit: 'ms', values: alone.remove },
        { name: `remove among ${many}`, unit: 'ms', values: among.remove },
      ],
    });
  }
  return tables;
}
