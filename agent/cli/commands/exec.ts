import type { Command } from 'commander';
import type { Shell } from '../shell.ts';
import { wholeNumber } from '../units.ts';

/** `exec`: claims the descriptors of an attachment and becomes the command. */
export function addExecCommand(program: Command, shell: Shell): void {
  program
    .command('exec')
    .description("start a command with the attachment's descriptors open in it")
    .argument('<id>', 'attachment id, of this host')
    .argument('<command...>', 'the command, after --')
    .option('--generation <number>', 'only if it still is this generation')
    .addHelpText('after', EXAMPLES)
    .action(async (id: string, words: string[], flags: { generation?: string }) => {
      const generation = wholeNumber('--generation', flags.generation);
      const { runtimeDir, timeoutMs } = shell.settingsHere();
      const { execClaimed } = await import('../exec.ts');
      await execClaimed({
        runtimeDir,
        timeoutMs,
        id,
        words,
        ...(generation !== undefined && { generation }),
      });
    });
}

const EXAMPLES = `
In the command's arguments these are replaced:
  {fd}      the descriptor of the TAP's only queue
  {fds}     all descriptors, joined by colons, as QEMU takes them
  {mac}     the workload's MAC        {mtu}     the MTU        {ifname}  the device's name

Examples:
  $ voltnet exec web -- qemu-system-x86_64 -m 512 -nographic -kernel vmlinuz \\
      -netdev tap,id=n0,fd={fd} -device virtio-net-pci,netdev=n0,mac={mac}

  Two queues
  $ voltnet exec web2 -- qemu-system-x86_64 ... -netdev tap,id=n0,fds={fds} \\
      -device virtio-net-pci,netdev=n0,mac={mac},mq=on,vectors=6

The command replaces voltnet: it has its process id, and signals and exit code are its own. The
agent's local socket hands the descriptors over: to root, to the attachment's owner, to group volt.
While another process holds them the exit code is 6; 126 and 127 are those of a shell.`;
