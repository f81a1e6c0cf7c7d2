import type { Redis } from 'ioredis';
import { readFileSync } from 'node:fs';
import { ROOT } from './fixture.ts';

type Content = Readonly<Record<string, string>> | readonly string[];

/**
 * Lays out what the function library 1.2 left in a redis-server 7.0, as if it had been written now. Network n:
 * the leases of a and of the reserved r on h1 and of b, which expires, on h2; 10.9.0.4 rests. Network old:
 * 10.8.0.1 rests.
 */
export async function restoreGolden(raw: Redis): Promise<void> {
  const now = Number((await raw.time())[0]) * 1_000;
  const text = readFileSync(new URL('./golden-1.2.json', import.meta.url), 'utf8')
    .replaceAll('<now>', String(now))
    .replaceAll('<later>', String(now + 1_000_000));
  const golden = JSON.parse(text) as Readonly<Record<string, Content>>;
  for (const [key, content] of Object.entries(golden)) {
    if (!isList(content)) {
      await raw.hset(`${ROOT}:${key}`, { ...content });
      continue;
    }
    for (let at = 0; at < content.length; at += 2) {
      await raw.zadd(`${ROOT}:${key}`, content[at + 1] ?? '', content[at] ?? '');
    }
  }
}

const isList = (content: Content): content is readonly string[] => Array.isArray(content);
