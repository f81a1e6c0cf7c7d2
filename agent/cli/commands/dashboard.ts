import type { Command } from 'commander';
import type { Shell } from '../shell.ts';

interface DashboardFlags {
  readonly listen: string;
  readonly traces?: string;
}

/** `dashboard`: the fleet as a page in a browser, served until the command is ended. */
export function addDashboardCommand(program: Command, shell: Shell): void {
  program
    .command('dashboard')
    .description('show the fleet as a page in a browser, for as long as the command runs')
    .option('--listen <address:port>', 'where the page is served', '127.0.0.1:8180')
    .option('--traces <file>', "spans, as the OpenTelemetry Collector's file exporter writes them")
    .addHelpText('after', EXAMPLES)
    .action(async ({ listen, traces }: DashboardFlags) => {
      const { parseListen } = await import('../dashboard/listen.ts');
      const { serveDashboard } = await import('../dashboard/server.ts');
      const { Traces } = await import('../dashboard/traces.ts');
      const place = parseListen(listen);
      const spans = traces === undefined ? null : await Traces.of(traces);
      const output = shell.output();
      await shell.withClient(
        async (connected) => {
          const dashboard = await serveDashboard({ connected, place, traces: spans });
          try {
            const { url } = dashboard;
            output.line({ url }, () => `the dashboard is at ${url}`);
            output.note('press Ctrl-C to end');
            await dashboard.ended;
          } finally {
            await dashboard.close();
          }
        },
        { stay: true },
      );
    });
}

const EXAMPLES = `
Examples:
  $ voltnet dashboard
  $ voltnet dashboard --listen 127.0.0.1:9000 --traces /var/log/otel/traces.json

  From another machine, through SSH
  $ ssh -L 8180:127.0.0.1:8180 operator@h1 voltnet dashboard

  On another address, with a token in the address that is printed
  $ voltnet dashboard --listen 10.0.0.7:8180
  $ voltnet dashboard --listen 10.0.0.7:0 --json | jq -r .url

The page shows and changes nothing. On loopback every user of this machine may open it. On another
address only who has the token may, and what is sent is not encrypted.`;
