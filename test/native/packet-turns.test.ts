import { setImmediate as nextTurn } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { PacketTurns } from '#native/packet-turns.ts';

/** A connection with so many packets, which says again that it has some, as poll(2) does. */
function sender(turns: PacketTurns, uid: number, name: string, packets: number, read: string[]) {
  let left = packets;
  const own = {
    uid,
    take: () => {
      if (left === 0) return;
      left -= 1;
      read.push(name);
      if (left > 0) turns.add(own);
    },
  };
  turns.add(own);
  return own;
}

test('accounts come one after the other, and of each its connections', async () => {
  const turns = new PacketTurns();
  const read: string[] = [];
  sender(turns, 1, 'a', 3, read);
  sender(turns, 1, 'b', 2, read);
  sender(turns, 2, 'c', 2, read);
  while (read.length < 7) await nextTurn();
  expect(read).toEqual(['a', 'c', 'b', 'c', 'a', 'b', 'a']);
});

test('a connection that has said it twice is read once', async () => {
  const turns = new PacketTurns();
  const read: string[] = [];
  const one = sender(turns, 1, 'a', 1, read);
  turns.add(one);
  await nextTurn();
  await nextTurn();
  expect(read).toEqual(['a']);
});

test('what one packet throws does not keep the next from being read', async () => {
  const turns = new PacketTurns();
  const read: string[] = [];
  const thrown: unknown[] = [];
  const listeners = process.listeners('uncaughtException');
  process.removeAllListeners('uncaughtException');
  process.once('uncaughtException', (error) => thrown.push(error));
  turns.add({
    uid: 1,
    take: () => {
      throw new Error('odd');
    },
  });
  sender(turns, 1, 'a', 1, read);
  while (read.length === 0) await nextTurn();
  for (const listener of listeners) process.on('uncaughtException', listener);
  expect(thrown).toMatchObject([{ message: 'odd' }]);
});
