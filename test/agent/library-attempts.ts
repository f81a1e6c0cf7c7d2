import { readdirSync } from 'node:fs';
import { Kernel } from '#agent/host/kernel.ts';
import { createTap, createVeth, type Port } from '#agent/library.ts';

// Makes ports while strace makes every `period`-th call of one kind fail: the first call of the first attempt, the
// second of the second, and so on. Writes what came of each and what was left, one JSON array a line.
// Arguments: vm or container, sendto or ioctl, the period, which is more than an attempt has calls.

const [kind, call, period] = process.argv.slice(2);
const kernel = new Kernel();

const make = (): Port =>
  kind === 'vm'
    ? createTap('br0', 'vm-try')
    : createVeth('br0', 'container-try', {
        netns: '/run/netns/try',
        addresses: ['10.50.0.9/24'],
        gateways: ['10.50.0.1'],
      });

/** One call that changes nothing; false when it failed. */
function idle(): boolean {
  try {
    if (call === 'sendto') kernel.links.get('lo');
    else kernel.links.indexOf('lo');
    return true;
  } catch {
    return false;
  }
}

function dispose(port: Port): void {
  try {
    port[Symbol.dispose]();
  } catch {
    // It was the turn of this call; the next is let through.
    port[Symbol.dispose]();
  }
}

for (let nth = 1; nth < Number(period); nth += 1) {
  while (idle());
  for (let calls = Number(period) - nth; calls > 0; calls -= 1) idle();
  let outcome = 'made';
  try {
    dispose(make());
  } catch (error) {
    outcome = String(error instanceof Error && 'code' in error ? error.code : error);
  }
  const left = readdirSync('/sys/class/net').filter((name) => /^(tap|veth)-/.test(name));
  console.log(JSON.stringify([nth, outcome, left]));
}
