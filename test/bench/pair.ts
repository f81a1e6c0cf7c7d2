import { startHost, type Stack } from './host.ts';
import { inTurns, type Turns } from './figures.ts';
import { cycleMany } from './many.ts';
import { manyAtOnce } from './rate.ts';
import { agentRival, type Rival, turnOf } from './rivals.ts';

const WARM_UP = 400;
/** So that neither takes the other's devices for strays: what nobody has is removed after two looks at everything. */
const RECONCILE_SECONDS = 86_400;

/** One of two agents that are compared. */
export interface SideOptions {
  readonly name: string;
  readonly env?: Record<string, string>;
  /** An agent of another tree: its launcher. */
  readonly launcher?: string;
}

export interface Side {
  readonly name: string;
  readonly stack: Stack;
  readonly network: string;
}

/** Agents side by side, each on servers of its own and warm, in one network namespace. The caller disposes `open`. */
export async function startSides(
  options: readonly SideOptions[],
  open: AsyncDisposableStack,
): Promise<Side[]> {
  const sides: Side[] = [];
  for (const [n, { name, env, launcher }] of options.entries()) {
    const network = `side${n}`;
    const second = 40 + n;
    const wide = { network, subnet: `10.${second}.0.0/16`, gateway: `10.${second}.0.1` };
    const stack = await startHost({
      networks: [wide],
      config: {
        host: `side${n}`,
        nftablesTable: `side${n}`,
        reconcileSeconds: RECONCILE_SECONDS,
      },
      ...(env !== undefined && { env }),
      // $0 is the launcher that the fixture would have run.
      ...(launcher !== undefined && { wrap: ['sh', '-c', `exec '${launcher}' "$@"`] }),
    });
    open.use(stack);
    await cycleMany(stack, network, WARM_UP);
    sides.push({ name, stack, network });
  }
  return sides;
}

/** Attaches and detaches of one kind, one after the other, by all sides in turns. */
export async function attachInTurns(
  sides: readonly Side[],
  order: { kind: 'vm' | 'container'; rounds: number; block: number },
): Promise<Turns> {
  const { kind, rounds, block } = order;
  const rivals: Rival[] = sides.map(({ name, stack, network }) =>
    agentRival(stack, { name, kind, network, places: block }),
  );
  return inTurns(rivals, rounds, (rival, note) => turnOf(rival, block, note));
}

/** Attaches of VMs, many in flight, by all sides in turns. */
export async function manyInTurns(
  sides: readonly Side[],
  { turns, attaches, limit }: { turns: number; attaches: number; limit: number },
): Promise<Turns> {
  return inTurns(sides, turns, ({ stack, network }, note) =>
    manyAtOnce(stack, { count: attaches, limit, network }, note),
  );
}
