/**
 * A JSON object that a function answered, read field by field. What is missing or of another type throws here,
 * and does not travel on as a wrong value.
 */
export class Fields {
  readonly #values: Readonly<Record<string, unknown>>;
  readonly #what: string;

  constructor(value: unknown, what: string) {
    if (!isObject(value)) throw new TypeError(`${what} is no object`);
    this.#values = value;
    this.#what = what;
  }

  static parse(json: string, what: string): Fields {
    return new Fields(JSON.parse(json), what);
  }

  text(name: string): string {
    const value = this.#values[name];
    return typeof value === 'string' ? value : this.#refuse(name, 'text');
  }

  optionalText(name: string): string | undefined {
    return this.has(name) ? this.text(name) : undefined;
  }

  number(name: string): number {
    const value = this.#values[name];
    return typeof value === 'number' ? value : this.#refuse(name, 'a number');
  }

  /** Functions write numbers of more than 14 digits, which their JSON would round, as text. */
  digits(name: string): number {
    const value = Number(this.text(name));
    return Number.isSafeInteger(value) ? value : this.#refuse(name, 'digits');
  }

  flag(name: string): boolean {
    const value = this.#values[name];
    return typeof value === 'boolean' ? value : this.#refuse(name, 'true or false');
  }

  /** False also for what is not there. */
  optionalFlag(name: string): boolean {
    return this.has(name) && this.flag(name);
  }

  object(name: string): Fields {
    return new Fields(this.#values[name], `${this.#what}.${name}`);
  }

  list(name: string): Fields[] {
    const value = this.#values[name];
    if (!Array.isArray(value)) return this.#refuse(name, 'a list');
    return value.map((one: unknown, index) => new Fields(one, `${this.#what}.${name}.${index}`));
  }

  texts(name: string): string[] {
    const value = this.#values[name];
    if (!Array.isArray(value)) return this.#refuse(name, 'a list');
    return value.map((one: unknown) =>
      typeof one === 'string' ? one : this.#refuse(name, 'texts'),
    );
  }

  /** A list of a text and a flag each. */
  pairs(name: string): (readonly [string, boolean])[] {
    const value = this.#values[name];
    if (!Array.isArray(value)) return this.#refuse(name, 'a list');
    return value.map((one: unknown) => {
      const [text, flag]: unknown[] = Array.isArray(one) ? one : [];
      if (typeof text !== 'string' || typeof flag !== 'boolean') {
        return this.#refuse(name, 'pairs of a text and a flag');
      }
      return [text, flag];
    });
  }

  /** False for null, as for what is not there. */
  has(name: string): boolean {
    return Object.hasOwn(this.#values, name) && (this.#values[name] ?? null) !== null;
  }

  /** As it came. */
  all(): Readonly<Record<string, unknown>> {
    return this.#values;
  }

  #refuse(name: string, kind: string): never {
    throw new TypeError(`${this.#what}.${name} is not ${kind}`);
  }
}

const isObject = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);
