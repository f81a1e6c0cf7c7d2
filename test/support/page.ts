import { readFileSync } from 'node:fs';

/** Blocks that no test types, and why: `chapter index`, by page. */
export const NEVER_TYPED: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  'README.md': {
    'Try it 1': 'it runs every test, this one among them: .ci/run types it in a fresh clone',
  },
  'CONTRIBUTING.md': {
    'Set-up, from a fresh Debian 12 0': 'it clones and installs: .ci/run does, in a fresh clone',
  },
  'docs/client.md': {
    '# The client, for orchestrators 0':
      'npm needs a registry: test/package installs the same package without one',
  },
};

/** The fenced commands of a page, which a test types as they stand. */
export interface Page {
  readonly text: string;
  /** One block of a chapter; throws if there is none. */
  readonly commandsOf: (chapter: string, index?: number) => string;
  /** `chapter index` of each block, and the path of each file, that nobody has asked for yet, but for what is never typed. */
  readonly untyped: () => string[];
  /** What a block has that is a file, whose first line is a comment with its path. */
  readonly fileOf: (path: string) => string;
  /** What the page shows of what is said: a block of text that has these words. */
  readonly shown: (words: string) => string;
}

/** Commands of a block, each to be typed by itself: a line, with those that go on with it. */
export function linesOf(block: string): string[] {
  const lines: string[] = [];
  let open = false;
  for (const line of block.trimEnd().split('\n')) {
    if (open) lines.push(`${lines.pop()}\n${line}`);
    else lines.push(line);
    open = /[\\|]$/.test(line);
  }
  return lines;
}

/** `chapter index` of each block of commands, with the block. */
export const blocksOf = (text: string): Map<string, string> =>
  new Map(
    text.split('\n## ').flatMap((chapter) => {
      const title = chapter.slice(0, chapter.indexOf('\n'));
      const found = [...chapter.matchAll(/^```sh\n([\s\S]*?)^```$/gm)];
      return found.map(([, commands = ''], index) => [`${title} ${index}`, commands] as const);
    }),
  );

/** `name`: of a page in docs/, or from the root of the checkout with a leading slash. */
export function openPage(name: string): Page {
  const path = name.startsWith('/') ? name.slice(1) : `docs/${name}`;
  const text = readFileSync(new URL(`../../${path}`, import.meta.url), 'utf8');
  const blocks = blocksOf(text);
  const files = new Map(
    [...text.matchAll(/^```ini\n# (\S+)\n([\s\S]*?)^```$/gm)].map(
      ([, file = '', content = '']) => [file, content] as const,
    ),
  );
  const never = NEVER_TYPED[path] ?? {};
  const untyped = new Set(
    [...blocks.keys(), ...files.keys()].filter((block) => !Object.hasOwn(never, block)),
  );
  return {
    text,
    commandsOf: (chapter, index = 0) => {
      const commands = blocks.get(`${chapter} ${index}`);
      if (commands === undefined) throw new Error(`"${chapter}" has no commands ${index}`);
      untyped.delete(`${chapter} ${index}`);
      return commands;
    },
    untyped: () => [...untyped],
    fileOf: (file) => {
      const content = files.get(file);
      if (content === undefined) throw new Error(`no block is the file ${file}`);
      untyped.delete(file);
      return content;
    },
    shown: (words) => {
      const shown = [...text.matchAll(/^```text\n([\s\S]*?)^```$/gm)].map(([, said = '']) => said);
      const found = shown.find((said) => said.includes(words));
      if (found === undefined) throw new Error(`no block shows "${words}"`);
      return found;
    },
  };
}
