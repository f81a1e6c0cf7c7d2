import fc from 'fast-check';
import { expect, test } from 'vitest';
import { Stage } from '../../deploy/demo/stage.ts';
import { actsOnTerminals, hostileText } from '../support/hostile-text.ts';

test('whatever the demo shows is text', () => {
  fc.assert(
    fc.property(hostileText(), (text) => {
      let shown = '';
      const stage = new Stage({ steps: 1, colours: false, write: (part) => (shown += part) });
      stage.step(text);
      stage.fact(text);
      stage.command(text);
      stage.output(text);
      stage.end(text);
      expect(actsOnTerminals(shown)).toEqual([]);
    }),
  );
});
