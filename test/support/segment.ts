import { execFileSync } from 'node:child_process';
import { expect } from 'vitest';
import type { Attachment, AttachRequest } from '#protocol/attachment.ts';
import { addNamespace, ip, only, type Row } from './kernel.ts';
import { type Stack, startStack } from './stack.ts';
import { requireTool } from './tools.ts';

export const MODES = ['bridge', 'vepa', 'private', 'passthru'] as const;
export const KINDS = ['vm', 'container'] as const;
export const PARENT_MAC = '02:00:00:00:60:01';

/** A host with a NIC, `nic0`, on a segment on which a peer has the gateway address of each network. */
export interface Segment extends AsyncDisposable {
  readonly stack: Stack;
  /** For a VM on `mv-bridge`, where `extra` says nothing else; a container is in the namespace `box`. */
  readonly request: (id: string, extra?: Partial<AttachRequest>) => AttachRequest;
  readonly attach: (id: string, extra?: Partial<AttachRequest>) => Promise<Attachment>;
  readonly detach: (id: string) => Promise<void>;
  /** What an attach that is refused gets; null where it is not. */
  readonly refusal: (asked: AttachRequest) => Promise<unknown>;
  /** All is as it was before the first attachment. */
  readonly nothingIsLeft: () => Promise<void>;
}

const network = (name: string, third: number, extra: object) => ({
  network: name,
  type: 'macvtap',
  parent: 'nic0',
  subnet: `10.60.${third}.0/24`,
  gateway: `10.60.${third}.1`,
  reuseDelaySeconds: 0,
  ...extra,
});

const NETWORKS = [
  ...MODES.map((mode, index) => network(`mv-${mode}`, index, { mode })),
  network('mv-gone', 10, { parent: 'nic9' }),
  network('mv-lo', 11, { parent: 'lo' }),
  network('mv-port', 12, { parent: 'port0' }),
  network('mv-isolated', 14, { portIsolation: true }),
  network('mv-dual', 15, { ipv6: { subnet: 'fd00:60::/64', gateway: 'fd00:60::1' } }),
];

/**
 * `nic0` with 10.60.0.100 is one end of a veth pair; the other, `wire0` in the namespace `segment`, is the peer.
 * `port0` is the port of a bridge.
 */
export async function startSegment(): Promise<Segment> {
  addNamespace('segment');
  addNamespace('box');
  run(`link add nic0 mtu 1450 address ${PARENT_MAC} type veth peer name wire0 netns segment`);
  run('link set nic0 up');
  run('addr add 10.60.0.100/24 dev nic0');
  run('-n segment link set wire0 up');
  for (const { gateway } of NETWORKS) run(`-n segment addr add ${gateway}/24 dev wire0`);
  run('-n segment addr add fd00:60::1/64 dev wire0 nodad');
  run('link add br9 type bridge');
  run('link add port0 type veth peer name port1');
  run('link set port0 master br9');
  const stack = await startStack({ networks: NETWORKS });
  const { client, host } = stack;
  const clean = await stack.snapshot();
  const request: Segment['request'] = (id, { kind = 'vm', ...extra } = {}) => ({
    id,
    workload: `${kind}-${id}`,
    kind,
    network: 'mv-bridge',
    ...(kind === 'container' && { netns: '/run/netns/box' }),
    ...extra,
  });
  return {
    stack,
    request,
    attach: async (id, extra) => (await client.attach(host, request(id, extra))).attachment,
    detach: async (id) => {
      await client.detach(host, { id });
      await stack.gone(id);
    },
    refusal: (asked) =>
      client.attach(host, asked).then(
        () => null,
        (error: unknown) => error,
      ),
    nothingIsLeft: async () => {
      expect(await stack.snapshot()).toEqual(clean);
      expect(ip('-n', 'box', 'link').map(({ ifname }) => ifname)).toEqual(['lo']);
      expect(only(ip('link', 'show', 'nic0'))).toMatchObject({ address: PARENT_MAC });
    },
    [Symbol.asyncDispose]: () => stack[Symbol.asyncDispose](),
  };
}

/** Runs `ip`. */
export const run = (words: string): string =>
  execFileSync(requireTool('ip'), words.split(' '), { encoding: 'utf8' });

export const addressOf = ({ addresses }: Attachment): string =>
  addresses[0]?.address.split('/')[0] ?? '';

/** Whether an address answers a ping from a namespace, or from the host. */
export function answers(address: string, from?: string): boolean {
  const ping = ['sh', '-c', `ping -c 1 -W 1 ${address} || true`];
  const inside = from === undefined ? [] : [requireTool('ip'), 'netns', 'exec', from];
  const [program = '', ...args] = [...inside, ...ping];
  return execFileSync(program, args, { encoding: 'utf8' }).includes('1 received');
}

export function deviceOf({ device }: Attachment): NonNullable<Attachment['device']> {
  if (device === null) throw new Error('there is no device');
  return device;
}

/** The device as `ip` sees it: on the host, or in the namespace `box`. */
export const shown = (attachment: Attachment): Row =>
  only(
    ip(
      ...(attachment.kind === 'container' ? ['-n', 'box'] : []),
      ...['-d', 'addr', 'show', deviceOf(attachment).name],
    ),
  );
