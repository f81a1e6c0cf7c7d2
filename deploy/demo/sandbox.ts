import { existsSync, mkdirSync } from 'node:fs';
import { checked } from '#native/errors.ts';
import { replaceProcess } from '#native/exec.ts';
import { mount, unshare } from '#native/libc.ts';

// sched.h and sys/mount.h
const CLONE_NEWNS = 0x0002_0000;
const CLONE_NEWNET = 0x4000_0000;
const MS_NOSUID = 2;
const MS_NODEV = 4;
const MS_NOEXEC = 8;
const MS_REC = 16_384;
const MS_PRIVATE = 1 << 18;

const MARK = 'VOLT_DEMO_SANDBOX';

export const isInSandbox = (env: NodeJS.ProcessEnv): boolean => env[MARK] === '1';

/**
 * Starts this program anew in a network and a mount namespace of its own, with an empty /run and a /sys
 * that shows the new network. Needs root. It returns only by throwing: unshare(2) moves one thread, so
 * Node is replaced by a fresh one, whose threads all begin where that thread is.
 */
export function enterSandbox(script: string, args: readonly string[]): never {
  checked(unshare(CLONE_NEWNS | CLONE_NEWNET), 'unshare', 'network and mount namespace');
  checked(mount('none', '/', null, MS_REC | MS_PRIVATE, null), 'mount', '/ private');
  checked(mount('tmpfs', '/run', 'tmpfs', MS_NOSUID | MS_NODEV, 'mode=0755'), 'mount', '/run');
  const flags = MS_NOSUID | MS_NODEV | MS_NOEXEC;
  checked(mount('sysfs', '/sys', 'sysfs', flags, null), 'mount', '/sys');
  mkdirSync('/run/netns');
  // An installed agent's configuration is not the demo's.
  if (existsSync('/etc/volt')) {
    checked(mount('tmpfs', '/etc/volt', 'tmpfs', MS_NOSUID | MS_NODEV, null), 'mount', '/etc/volt');
  }
  process.env[MARK] = '1';
  return replaceProcess({ file: process.execPath, args: [...process.execArgv, script, ...args] });
}
