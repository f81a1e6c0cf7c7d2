/** What dnsmasq has handed out, out of its lease file (man 8 dnsmasq; `lease_update_file` of its lease.c). */
export interface HandedOut {
  readonly v4: readonly { readonly mac: string; readonly address: string }[];
  readonly v6: readonly {
    readonly address: string;
    readonly iaid: string;
    readonly clientId: string;
  }[];
  /** The DUID of this dnsmasq. */
  readonly serverId: string | undefined;
}

/** A line that is not understood is passed over: it is about no workload that dnsmasq was told of. */
export function parseLeases(text: string): HandedOut {
  const v4: { mac: string; address: string }[] = [];
  const v6: { address: string; iaid: string; clientId: string }[] = [];
  let serverId: string | undefined;
  for (const line of text.split('\n')) {
    const [expiry = '', second = '', address = '', , client = ''] = line.split(' ');
    if (expiry === 'duid') serverId = second;
    else if (address.includes(':')) {
      v6.push({ address, iaid: second.replace(/^T/, ''), clientId: client });
    } else if (address !== '') v4.push({ mac: second, address });
  }
  return { v4, v6, serverId };
}
