import { METRICS } from '../telemetry/metrics-table.ts';

// docs/metrics.md, made of the table that the instruments are made of.

/** By what they are about, in the order of the page. A metric belongs to the first group that its name fits. */
const GROUPS: readonly (readonly [heading: string, names: RegExp])[] = [
  ['Requests and changes', /_(requests|request|change)_/],
  ['Attachments', /_attachments$/],
  ['Pools', /_pool_/],
  ['Repairs', /_reconcile_/],
  ['The kernel', /_kernel_/],
  ['Events and jobs', /_(events|jobs)_/],
  ['NATS, the ledger and conditions', /_(nats|ledger|session|heartbeat|clock)_|_condition$/],
  ['The process', /./],
];

const HEAD = `# Metrics

Every metric of an agent. This page is generated from \`agent/telemetry/metrics-table.ts\`; a test fails where it is stale
([CONTRIBUTING.md](../CONTRIBUTING.md#add-a-metric)). How to switch metrics on is in [operating.md](operating.md#metrics), what to do about an alert
in [runbook.md](runbook.md).

The names are those of Prometheus. Over OTLP a counter has no \`_total\`, which collectors put there. Each sample on \`/metrics\`
has the host id as \`host_name\`; over OTLP it is \`host.name\` of the resource.
`;

const LABELS = `## Labels

No label has an id of an attachment, an address or a name that a caller can choose freely; what one attachment went through is in
[traces and events](operating.md#one-attachment).

| label | values |
|---|---|
| \`operation\` of requests | those of the protocol: \`attach\`, \`network.put\`, \`ledger.check\`; jobs are \`job.attach\`, \`job.detach\`, \`job.update\` and \`job.unknown\` |
| \`code\` | \`OK\`, or an error code of [the protocol](protocol.md#errors) |
| \`operation\` of changes | \`attach\`, \`detach\`, \`update\`, direct ones and jobs |
| \`phase\` | \`ipam\`: the lease; \`kernel\`: the device; \`answer\`: from the request's turn on its id to its answer; \`total\`: of a detach, until nothing of the attachment is left |
| \`type\` | the network's type; \`unknown\` for a change that failed before that was known |
| \`result\` of changes | \`ok\`, \`replayed\` (a repeat), \`error\`; \`ipam\`, \`kernel\` and \`total\` are measured where they succeed |
| \`network\` | networks that this host has attachments of; with the last attachment its samples end |
| \`state\` of attachments | \`attaching\`, \`attached\`, \`detaching\`, \`fenced\` |
| \`action\` | \`mend\`, \`remake\`, \`close\`, \`detach\`, \`remove\`, \`release\`, \`network\`, \`reassert\`, \`firewall\` |
| \`operation\` of the kernel | the kernel's names: \`RTM_NEWLINK\`, \`TUNSETIFF\`, \`setns\`, \`nft\` |
| \`condition\` | those of [operating.md](operating.md#health); each has a sample, 1 or 0 |

Kernel errors are among them that the agent expects: \`ENOENT\` of what it removes to be sure is none to worry about.
`;

export function metricsPage(): string {
  const left = new Map(Object.entries(METRICS));
  const sections = GROUPS.map(([heading, fits]) => {
    const rows = [...left].filter(([name]) => fits.test(name));
    for (const [name] of rows) left.delete(name);
    return [
      `## ${heading}\n`,
      '| metric | kind | labels | what it is |\n|---|---|---|---|',
      ...rows.map(([name, { kind, labels, help }]) => {
        const named = labels.map((label) => `\`${label}\``).join(', ');
        return `| \`${name}\` | ${kind} | ${named} | ${help} |`;
      }),
    ].join('\n');
  });
  return [HEAD, ...sections.map((text) => `${text}\n`), LABELS].join('\n');
}
