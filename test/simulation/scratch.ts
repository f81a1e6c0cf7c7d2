import { simulate } from './simulation.ts';
const [from, to, full] = process.argv.slice(2).map(Number);
const t = Date.now();
const counts = new Map<string, number[]>();
for (let s = from!; s <= to!; s++) {
  try {
    const a = await simulate(s);
    if (full) {
      const b = await simulate(s);
      const i = a.findIndex((x, n) => x !== b[n]);
      if (i >= 0 || a.length !== b.length)
        console.log(
          s,
          'DIFF',
          i,
          a.length,
          b.length,
          '\n',
          a.slice(i - 3, i + 2).join('\n '),
          '\n ---\n',
          b.slice(i - 3, i + 2).join('\n '),
        );
    }
  } catch (e) {
    if (from === to) console.log(String((e as Error).message));
    const k = String((e as Error).message)
      .split('\n')
      .slice(0, 1)
      .join(' | ')
      .replace(/^seed \d+: /, '')
      .replace(/\d+/g, 'N')
      .slice(0, 260);
    counts.set(k, [...(counts.get(k) ?? []), s]);
  }
}
for (const [k, v] of [...counts].sort((a, b) => b[1].length - a[1].length))
  console.log(v.length, v.slice(0, 6).join(','), k);
console.log(Date.now() - t, 'ms');
