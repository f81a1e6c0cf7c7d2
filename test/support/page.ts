import { readFileSync } from 'node:fs';

/** The fenced commands of a page of docs/, which a test types as they stand. */
export interface Page {
  readonly text: string;
  /** One block of a chapter; throws if there is none. */
  readonly commandsOf: (chapter: string, index?: number) => string;
  /** `chapter index` of each block that nobody has asked for yet. */
  readonly untyped: () => string[];
}

export function openPage(name: string): Page {
  const text = readFileSync(new URL(`../../docs/${name}`, import.meta.url), 'utf8');
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
  };
}
