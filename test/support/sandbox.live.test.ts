import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { describe, expect, test } from 'vitest';

const ip = (...words: string[]): string => execFileSync('ip', words, { encoding: 'utf8' });

// The vitest process that started this one lives outside.
const outside = `/proc/${process.ppid}`;

describe('the sandbox of a live test', () => {
  test('is a network and a mount namespace of its own, for child processes too', () => {
    for (const kind of ['net', 'mnt']) {
      const own = readlinkSync(`/proc/thread-self/ns/${kind}`);
      expect(own).not.toBe(readlinkSync(`${outside}/ns/${kind}`));
      expect(execFileSync('readlink', [`/proc/self/ns/${kind}`], { encoding: 'utf8' })).toBe(
        `${own}\n`,
      );
    }
  });

  test('has lo, up, and nothing else', () => {
    expect(readdirSync('/sys/class/net')).toEqual(['lo']);
    expect(ip('-o', 'link', 'show', 'up')).toMatch(/^1: lo: <LOOPBACK,UP,LOWER_UP>/);
    expect(ip('-o', 'addr')).toContain('127.0.0.1/8');
  });

  test('keeps what it mounts and makes in /run to itself', () => {
    expect(readdirSync('/run')).toEqual(['netns']);
    ip('netns', 'add', 'inside');
    try {
      expect(readdirSync('/run/netns')).toEqual(['inside']);
      const link = ip('-n', 'inside', '-o', 'link');
      expect(link).toContain('lo');
      const mounts = readFileSync(`${outside}/mountinfo`, 'utf8');
      expect(mounts).not.toContain('/run/netns/inside');
    } finally {
      ip('netns', 'delete', 'inside');
    }
  });

  test('shows a namespace made later in a mount namespace made before', async () => {
    ip('netns', 'add', 'first');
    // `ip netns exec` has a mount namespace of its own.
    const script = 'echo ready; read line; ip -n second -o link';
    const child = spawn('ip', ['netns', 'exec', 'first', 'sh', '-c', script]);
    const output: string[] = [];
    child.stdout.on('data', (chunk: Buffer) => output.push(chunk.toString()));
    await once(child.stdout, 'data');
    ip('netns', 'add', 'second');
    child.stdin.end('go\n');
    const [code] = await once(child, 'close');
    expect(code).toBe(0);
    expect(output.join('')).toMatch(/lo: <LOOPBACK>/);
    ip('netns', 'delete', 'first');
    ip('netns', 'delete', 'second');
  });
});
