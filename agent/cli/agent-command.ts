import { Command } from 'commander';
import { SERVICE_NAME } from '#protocol/subjects.ts';

/** The command line of `volt-network-agent`, without what it does; its manual page is made from it, too. */
export const createAgentCommand = (version: string): Command =>
  new Command(SERVICE_NAME)
    .description('Network of the virtual machines and containers of this host.')
    .version(version)
    .option('--config <file>', 'agent.json to read (default: /etc/volt/network/agent.json)')
    .option('--host <id>', 'host id, instead of the host name')
    .option('--nats <url>', 'NATS server')
    .option('--redis <url>', 'Redis server')
    .option('--runtime-dir <folder>', 'records, socket and lock')
    .option('--state-dir <folder>', 'what survives a reboot')
    .option('--networks-dir <folder>', 'network files')
    .option('--log-level <level>', 'debug, info, warn or error')
    .option('--log-format <format>', 'json, text, or auto: text on a terminal')
    .option('--check-config', 'print the checked configuration and exit');
