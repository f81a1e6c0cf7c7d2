import { simulate } from './simulation.ts';
const [from, to, m] = process.argv.slice(2);
const broken: string[] = [];
const t = process.hrtime.bigint();
for (let s = Number(from); s <= Number(to); s += 1) {
  try { await simulate(s, JSON.parse(m ?? '{}')); } catch (error) { broken.push(from === to ? String(error) : String(error).split('\n', 1).join()); if (m) break; }
}
console.log(broken.join('\n')); console.log(broken.length, 'broken', Number(process.hrtime.bigint() - t) / 1e6 / (Number(to) - Number(from) + 1), 'ms each');
