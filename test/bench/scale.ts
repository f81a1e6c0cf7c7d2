import { startHost } from './host.ts';
import { type Figure, median, type Table } from './figures.ts';
import { Floor } from './floor.ts';
import { attachVms, cycleMany, networksFor, untilQuiet, WIDE } from './many.ts';
import { agentRival, turnOf } from './rivals.ts';
import type { Sizes } from './sizes.ts';

const WARM_UP = 400;
/** What may be there, as shares of the most. */
const STEPS = [0, 0.1, 0.5, 1];
/** The step that is held against none. */
const HALF = 0.5;

/** An attach beside the attachments that are there already, on bridges of their own. */
export async function benchScale({ attachments, rounds, block }: Sizes): Promise<Table[]> {
  const networks = networksFor(attachments);
  await using stack = await startHost({ networks: [...networks, WIDE] });
  await using floor = new Floor();
  await cycleMany(stack, WIDE.network, WARM_UP);
  const rival = agentRival(stack, {
    ...{ name: 'agent', kind: 'vm', network: WIDE.network, places: block },
  });
  for (let round = 0; round < rounds; round += 1) await turnOf(rival, block, () => {});
  const agent = new Map<number, number[]>();
  const c = new Map<number, number[]>();
  let there = 0;
  for (const step of STEPS) {
    const count = Math.round(attachments * step) - there;
    await attachVms(stack, networks, { prefix: `s${step}-`, count, limit: 64 });
    there += count;
    await untilQuiet(stack);
    const times: number[] = [];
    const floors: number[] = [];
    for (let round = 0; round < rounds; round += 1) {
      await turnOf(rival, block, (what, ms) => {
        if (what === 'attach') times.push(ms);
      });
      for (let n = 0; n < block; n += 1) floors.push((await floor.tap()).totalMs);
      await floor.clear();
    }
    agent.set(step, times);
    c.set(step, floors);
  }
  const present = (step: number): string => `${(attachments * step).toLocaleString('en')} present`;
  const rows = (of: ReadonlyMap<number, number[]>, who: string): Figure[] =>
    STEPS.map((step) => ({
      name: `${who}, ${present(step)}`,
      unit: 'ms',
      values: of.get(step) ?? [],
    }));
  const against = (of: ReadonlyMap<number, number[]>, step: number): number[] => {
    const none = median(of.get(0) ?? []);
    return [median(of.get(step) ?? []) / none];
  };
  return [
    {
      name: 'scale',
      title: `An attach beside up to ${attachments.toLocaleString('en')} attachments`,
      how:
        `${rounds} turns of ${block} VMs at each step, attached one after the other on a bridge of their own; beside ` +
        'them TAPs made in C, whose time grows with what the kernel holds. A step can only follow the one before, so ' +
        'that these ratios are not of neighbouring turns.',
      decisive: [
        {
          name: `attach, ${present(HALF)} / none`,
          unit: 'ratio',
          values: against(agent, HALF),
          bound: 1.2,
        },
        { name: `attach, ${present(1)} / none`, unit: 'ratio', values: against(agent, 1) },
        { name: `C, ${present(HALF)} / none`, unit: 'ratio', values: against(c, HALF) },
      ],
      shown: [...rows(agent, 'agent'), ...rows(c, 'C')],
    },
  ];
}
