import type { AttachRequest, Attachment } from '#protocol/attachment.ts';

/** As the contract has it. */
export const VOLT0 = {
  network: 'volt0',
  subnet: '10.42.0.0/24',
  gateway: '10.42.0.1',
  pool: { start: '10.42.0.2', end: '10.42.0.254' },
  reservations: { 'vm-web': '10.42.0.10', 'container-db': '10.42.0.20' },
} as const;

export const vmRequest: AttachRequest = {
  id: 'att-1',
  workload: 'vm-abc123',
  kind: 'vm',
  network: 'volt0',
};

export const containerRequest: AttachRequest = {
  id: 'att-2',
  workload: 'container-xyz',
  kind: 'container',
  network: 'volt0',
  netns: '/run/netns/xyz',
};

export const attachment: Attachment = {
  id: 'att-2',
  generation: 4_294_967_297,
  workload: 'container-xyz',
  kind: 'container',
  network: 'volt0',
  type: 'bridged',
  host: 'h1',
  state: 'attached',
  mac: '22:86:4c:46:31:c6',
  device: {
    type: 'veth',
    name: 'veth-xyz-h',
    ifindex: 7,
    mac: 'fe:86:4c:46:31:c6',
    mtu: 1500,
    bridge: 'volt0',
    peer: { name: 'eth0', ifindex: 2, mac: '22:86:4c:46:31:c6', netns: '/run/netns/xyz' },
  },
  filter: 'none',
  netns: '/run/netns/xyz',
  addresses: [{ address: '10.42.0.5/24', gateway: '10.42.0.1' }],
  routes: [],
  dns: {},
  ports: [],
  bandwidth: {},
  lease: { generation: 4_294_967_297, grantedAt: '2026-01-02T03:04:05.678Z' },
  createdAt: '2026-01-02T03:04:05.670Z',
  labels: {},
};
