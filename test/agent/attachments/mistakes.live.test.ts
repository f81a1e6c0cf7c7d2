import assert from 'node:assert/strict';
import { join } from 'node:path';
import { Redis } from 'ioredis';
import { describe, expect, test } from 'vitest';
import { type RunningAgent, until } from '../../support/agent.ts';
import { filesIn } from '../../support/kernel.ts';
import { mutantAgent, type SourcePatch } from '../../support/mutant.ts';
import type { Server } from '../../support/servers.ts';
import { type Stack, startStack, VOLT0 } from '../../support/stack.ts';

// How peers lost addresses on the side of the host, each as a scenario that a real agent must live through; and
// the proof of the scenario: with the mistake made in a copy of the agent, it fails.

interface Mistake {
  readonly seenAt: string;
  /** Fails by an AssertionError where the mistake shows. */
  readonly scenario: (stack: Stack) => Promise<void>;
  readonly mutants: Readonly<Record<string, { patches: readonly SourcePatch[]; shows: RegExp }>>;
}

function mistake(title: string, { seenAt, scenario, mutants }: Mistake): void {
  describe(`${title} (${seenAt})`, () => {
    test('is not made', async () => {
      await using stack = await startStack({ networks: [VOLT0] });
      await scenario(stack);
    });
    test.each(Object.entries(mutants))('shows when it is: %s', async (_, { patches, shows }) => {
      using mutant = mutantAgent(patches);
      await using stack = await startStack({ networks: [VOLT0], wrap: mutant.wrap });
      const failure: unknown = await scenario(stack).then(
        () => new Error('nobody noticed'),
        (error: unknown) => error,
      );
      if (!(failure instanceof assert.AssertionError)) throw failure;
      expect(failure.message).toMatch(shows);
    });
  });
}

/** What looks after leases without a record, at the start of an agent, would find these, too: sooner or later. */
const WITHOUT_SETTLING: SourcePatch = {
  file: 'agent/attachments/host-leases.ts',
  right: "return (await ledger.release(ending)) === 'released';",
  wrong: 'return false;',
};

const ONE = { id: 'one', workload: 'vm-one', kind: 'vm', network: 'volt0' } as const;

/** Redis comes back with all that it has now. */
async function saved({ url }: Server): Promise<void> {
  const raw = new Redis(url);
  await raw.save();
  await raw.quit();
}

/** The release of an attachment has failed: the agent says so, or it has lost the record by its mistake. */
function wasTried(agent: RunningAgent, id: string): boolean {
  const said = agent.output().split('\n');
  const isSaid = said.some(
    (line) => line.includes('detach not finished') && line.includes(`"${id}"`),
  );
  return (
    isSaid || !filesIn(join(agent.runtimeDir, 'attachments')).some((name) => name.includes(id))
  );
}

async function isAway(agent: RunningAgent): Promise<boolean> {
  const { redis } = await agent.health();
  return (redis as { state: string }).state !== 'ready';
}

mistake('a failed release that is not retried, by this agent or the next', {
  seenAt: 'calico#4502, cni#1167',
  scenario: async (stack) => {
    const { client, host, redis, agent, gone } = stack;
    for (const id of ['one', 'two']) await client.attach(host, { ...ONE, id });
    await saved(redis);
    await redis.kill();
    try {
      await until('the agent sees that Redis is away', () => isAway(agent));
      await client.detach(host, { id: 'one' });
      await until('one was tried to be released', () => wasTried(agent, 'one'));
      await agent.restart('SIGKILL');
      await until('the next agent serves', async () => {
        return (await agent.health())['requests'] === 'ready';
      });
      await client.detach(host, { id: 'two' });
      await until('two was tried to be released', () => wasTried(agent, 'two'));
    } finally {
      await redis.restart();
    }
    await agent.ready();
    for (const id of ['one', 'two']) await gone(id);
    const { used } = (await client.getNetwork('volt0')).usage;
    assert.equal(used, 0, `${used} addresses are leaked`);
  },
  mutants: {
    'what a release ends with is nobody’s concern': {
      patches: [
        {
          file: 'agent/attachments/detaches.ts',
          right: 'await this.#release(ending);',
          wrong: 'await this.#release(ending).catch(() => {});',
        },
        WITHOUT_SETTLING,
      ],
      shows: /2 addresses are leaked/,
    },
    'the record goes before the release': {
      patches: [
        {
          file: 'agent/attachments/detaches.ts',
          right: '        await this.#release(ending);',
          wrong: '        journal.remove(record.id);\n        await this.#release(ending);',
        },
        WITHOUT_SETTLING,
      ],
      shows: /[12] addresses are leaked/,
    },
  },
});
