import { readFileSync } from 'node:fs';

/** The fenced commands of a page, which a test types as they stand. */
export interface Page {
  readonly text: string;
  /** One block of a chapter; throws if there is none. */
  readonly commandsOf: (chapter: string, index?: number) => string;
  /** `chapter index` of each block that nobody has asked for yet. */
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

/** `name`: of a page in docs/, or from the root of the checkout with a leading slash. */
export function openPage(name: string): Page {
  const file = name.startsWith('/') ? `../..${name}` : `../../docs/${name}`;
  const text = readFileSync(new URL(file, import.meta.url), 'utf8');
  const blocks = new Map(
    text.split('\n## ').flatMap((chapter) => {
      const title = chapter.slice(0, chapter.indexOf('\n'));
      const found = [...chapter.matchAll(/^```sh\n([\s\S]*?)^```$/gm)];
      return found.map(([, commands = ''], index) => [`${title} ${index}`, commands] as const);
    }),
  );
  const untyped = new Set(blocks.keys());
  return {
    text,
    commandsOf: (chapter, index = 0) => {
      const commands = blocks.get(`${chapter} ${index}`);
      if (commands === undefined) throw new Error(`"${chapter}" has no commands ${index}`);
      untyped.delete(`${chapter} ${index}`);
      return commands;
    },
    untyped: () => [...untyped],
    fileOf: (path) => {
      const [, content] = text.split(`\n\`\`\`ini\n# ${path}\n`);
      if (content === undefined) throw new Error(`no block is the file ${path}`);
      return content.slice(0, content.indexOf('\n```') + 1);
    },
    shown: (words) => {
      const blocks = [...text.matchAll(/^```text\n([\s\S]*?)^```$/gm)].map(
        ([, block = '']) => block,
      );
      const found = blocks.find((block) => block.includes(words));
      if (found === undefined) throw new Error(`no block shows "${words}"`);
      return found;
    },
  };
}
