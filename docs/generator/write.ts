import { mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import packageJson from '../../package.json' with { type: 'json' };
import { documents } from './documents.ts';

// `npm run docs`: writes everything of docs/ that is made of the code.

const ROOT = new URL('../..', import.meta.url);
const SCHEMAS = new URL('docs/reference/schemas/', ROOT);

const made = await documents(packageJson.version);
mkdirSync(SCHEMAS, { recursive: true });
for (const name of readdirSync(SCHEMAS)) {
  if (!made.has(`docs/reference/schemas/${name}`)) rmSync(new URL(name, SCHEMAS));
}
for (const [name, text] of made) writeFileSync(new URL(name, ROOT), text);
