import { printable } from '#protocol/printable.ts';

/** What the audience sees: numbered steps, facts below them, the commands and what they printed; all of it is text. */
export class Stage {
  readonly #steps: number;
  readonly #write: (text: string) => void;
  readonly #colours: boolean;
  readonly #started = performance.now();
  #step = 0;

  constructor(options: { steps: number; colours: boolean; write: (text: string) => void }) {
    this.#steps = options.steps;
    this.#colours = options.colours;
    this.#write = options.write;
  }

  step(title: string): void {
    this.#step += 1;
    this.#write(`\n${this.#strong(`${this.#step}/${this.#steps}  ${printable(title)}`)}\n`);
  }

  fact(text: string): void {
    this.#write(`     ${printable(text)}\n`);
  }

  /** A command line as a reader would type it, before it runs. */
  command(text: string): void {
    this.#write(`     ${this.#faint('$')} ${printable(text)}\n`);
  }

  /** Output of a command, indented. */
  output(text: string): void {
    for (const line of text.trimEnd().split('\n')) this.#write(`       ${printable(line)}\n`);
  }

  end(text: string): void {
    const seconds = ((performance.now() - this.#started) / 1_000).toFixed(1);
    this.#write(`\n${this.#strong(`${printable(text)} (${seconds} s)`)}\n`);
  }

  #strong(text: string): string {
    return this.#colours ? `\x1b[1m${text}\x1b[0m` : text;
  }

  #faint(text: string): string {
    return this.#colours ? `\x1b[2m${text}\x1b[0m` : text;
  }
}
