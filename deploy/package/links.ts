import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';

// A package has the pages for users, without those for developers: what leads there is no link in it.

const LINK = /(!?)\[((?:[^[\]]|\[[^\]]*\])*)\]\(([^)\s#:]+)(?:#[^)]*)?\)/g;

/** Leaves of each relative link below `folder` that leads to nothing its text, and of such a picture nothing. */
export function dropDeadLinks(folder: string): void {
  const pages = readdirSync(folder, { recursive: true, encoding: 'utf8' });
  for (const page of pages.filter((name) => name.endsWith('.md'))) {
    const path = join(folder, page);
    const text = readFileSync(path, 'utf8');
    const living = text.replace(LINK, (link, picture: string, label: string, target: string) => {
      if (existsSync(join(dirname(path), target))) return link;
      return picture === '' ? label : '';
    });
    if (living !== text) writeFileSync(path, living);
  }
}
