import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import { OrderedIds } from '#agent/storage/ordered-ids.ts';

const id = fc.stringMatching(/^[A-Za-z0-9][A-Za-z0-9._:-]{0,2}$/);

test('whatever comes and goes, who pages through them meets each in order', () => {
  fc.assert(
    fc.property(fc.array(fc.record({ id, add: fc.boolean() })), id, (changes, cursor) => {
      const ids = new OrderedIds();
      const model = new Set<string>();
      for (const change of changes) {
        if (change.add) ids.add(change.id);
        else ids.delete(change.id);
        if (change.add) model.add(change.id);
        else model.delete(change.id);
      }
      const met: string[] = [];
      for (let at = ids.after(cursor); at !== undefined; at = ids.after(at)) met.push(at);
      const expected = [...model]
        .filter((one) => one > cursor)
        .toSorted((a, b) => (a < b ? -1 : 1));
      expect(met).toEqual(expected);
      expect(ids.after('')).toBe([...model].toSorted((a, b) => (a < b ? -1 : 1))[0]);
    }),
  );
});
