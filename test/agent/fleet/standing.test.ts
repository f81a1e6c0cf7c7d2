import { expect, test } from 'vitest';
import { VoltError } from '#protocol/errors.ts';
import { Standing } from '#agent/fleet/standing.ts';

const conflict = (message: string): VoltError =>
  new VoltError('HOST_CONFLICT', message, { details: { yieldsTo: 'machine-1' } });

test('whoever shows why an agent is refused hears of another reason, for the same machine too', () => {
  const standing = new Standing('machine-1');
  const told: (string | undefined)[] = [];
  standing.onChange((refusal) => told.push(refusal?.message));
  standing.noteRefused(conflict('two machines with one machine id'));
  standing.noteRefused(conflict('two machines with one machine id'));
  standing.noteRefused(conflict('an operator has decided'));
  standing.noteOwn();
  expect(told).toEqual(['two machines with one machine id', 'an operator has decided', undefined]);
});
