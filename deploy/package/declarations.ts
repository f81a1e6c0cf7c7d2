import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import ts from 'typescript-5';

// The types of messages are made from zod's schemas. In the package they stand for themselves: whoever imports the client
// needs no types of zod, and an editor shows keys with their comments. The compiler does not write a type out, so this does.

/**
 * Leaves in `folder`, which has compiled files, the declarations that `entries` need, and writes out the types in those that
 * name zod. `sources` is where the TypeScript lies that `folder` was compiled from.
 */
export function prepareDeclarations(of: {
  readonly sources: string;
  readonly folder: string;
  /** `./protocol/client` */
  readonly entries: readonly string[];
}): void {
  const { sources, folder, entries } = of;
  const needed = new Set<string>();
  const files = entries.map((entry) => join(`${entry}.d.ts`));
  for (let file = files.pop(); file !== undefined; file = files.pop()) {
    if (needed.has(file)) continue;
    needed.add(file);
    const path = join(folder, file);
    const written = readFileSync(path, 'utf8');
    const text = /from 'zod'/.test(written)
      ? writtenOut(join(sources, file.replace(/\.d\.ts$/, '.ts')))
      : written.replace(RELATIVE_IMPORT, '$1.js$2');
    writeFileSync(path, text);
    for (const [, specifier = ''] of text.matchAll(/from ['"]([#.][^'"]+)['"]/g)) {
      const target = specifier.startsWith('#')
        ? specifier.slice(1)
        : join(dirname(file), specifier);
      files.push(target.replace(/\.[jt]s$/, '.d.ts'));
    }
  }
  for (const entry of entries) {
    const path = join(folder, `${entry}.d.ts`);
    // For `using`, which the compilers' default libraries may lack.
    const lib = '/// <reference lib="esnext.disposable" />\n';
    writeFileSync(path, `${lib}${readFileSync(path, 'utf8')}`);
  }
  for (const name of readdirSync(folder, { recursive: true, encoding: 'utf8' })) {
    if (name.endsWith('.d.ts') && !needed.has(name)) rmSync(join(folder, name));
  }
}

const RELATIVE_IMPORT = /(from ['"]\.[^'"]+)\.ts(['"])/g;

/** The declarations of a source file: its types, written out, and nothing else. */
function writtenOut(file: string): string {
  const root = dirname(dirname(file));
  const config: unknown = JSON.parse(readFileSync(join(root, 'tsconfig.json'), 'utf8'));
  const { options } = ts.parseJsonConfigFileContent(config, ts.sys, root);
  const program = ts.createProgram([file], options);
  const source = program.getSourceFile(file);
  if (source === undefined || !existsSync(file)) throw new Error(`${file} is not there`);
  const checker = program.getTypeChecker();
  const aliases = source.statements
    .filter((one) => ts.isTypeAliasDeclaration(one))
    .filter(isExported);
  const names = new Map(
    aliases.map((alias) => [checker.getTypeAtLocation(alias), alias.name.text] as const),
  );
  const printer = new TypePrinter(checker, names);
  return aliases
    .map((alias) => {
      const symbol = checker.getSymbolAtLocation(alias.name);
      const type = printer.print(checker.getTypeAtLocation(alias), alias.name.text);
      return `${printer.comment(symbol, '')}export type ${alias.name.text} = ${type};\n`;
    })
    .join('');
}

const isBoolean = (one: ts.Type): boolean => (one.flags & ts.TypeFlags.BooleanLiteral) !== 0;

const isExported = (statement: ts.TypeAliasDeclaration): boolean =>
  statement.modifiers?.some(({ kind }) => kind === ts.SyntaxKind.ExportKeyword) === true;

class TypePrinter {
  readonly #checker: ts.TypeChecker;
  readonly #names: ReadonlyMap<ts.Type, string>;

  constructor(checker: ts.TypeChecker, names: ReadonlyMap<ts.Type, string>) {
    this.#checker = checker;
    this.#names = names;
  }

  /** `own`: the name that this type is declared under. Any other that has a name is called by it. */
  print(type: ts.Type, own = '', indent = ''): string {
    const name = this.#names.get(type);
    if (name !== undefined && name !== own) return name;
    const simple = (type.flags & (ts.TypeFlags.Object | ts.TypeFlags.UnionOrIntersection)) === 0;
    if (simple || (type.flags & ts.TypeFlags.Boolean) !== 0)
      return this.#checker.typeToString(type);
    if (type.isUnion()) return this.#union(type, indent);
    if (type.isIntersection()) {
      return type.types.map((one) => this.print(one, '', indent)).join(' & ');
    }
    if (this.#checker.isArrayType(type)) {
      const element = this.#checker.getIndexTypeOfType(type, ts.IndexKind.Number);
      if (element === undefined) throw new Error('an array has elements');
      const printed = this.print(element, '', indent);
      return /^\w+$/.test(printed) ? `${printed}[]` : `Array<${printed}>`;
    }
    return this.#object(type, indent);
  }

  #union(type: ts.UnionType, indent: string): string {
    const parts = type.types
      .filter((one) => !isBoolean(one))
      .map((one) => this.print(one, '', indent));
    const booleans = type.types.filter(isBoolean);
    if (booleans.length === 2) parts.push('boolean');
    else parts.push(...booleans.map((one) => this.#checker.typeToString(one)));
    // As one writes it: undefined and null last.
    const last = ['null', 'undefined'];
    return parts.toSorted((a, b) => last.indexOf(a) - last.indexOf(b)).join(' | ');
  }

  #object(type: ts.Type, indent: string): string {
    const deeper = `${indent}  `;
    const keys = this.#checker.getPropertiesOfType(type).map((property) => {
      const optional = (property.flags & ts.SymbolFlags.Optional) !== 0 ? '?' : '';
      const value = this.print(this.#checker.getTypeOfSymbol(property), '', deeper);
      const key = /^\w+$/.test(property.name) ? property.name : `'${property.name}'`;
      return `${this.comment(property, deeper)}${deeper}${key}${optional}: ${value};\n`;
    });
    const indexes = this.#checker
      .getIndexInfosOfType(type)
      .map((index) => `${deeper}[key: string]: ${this.print(index.type, '', deeper)};\n`);
    return `{\n${[...keys, ...indexes].join('')}${indent}}`;
  }

  comment(symbol: ts.Symbol | undefined, indent: string): string {
    const text = ts.displayPartsToString(symbol?.getDocumentationComment(this.#checker) ?? []);
    if (text === '') return '';
    const [only = '', ...more] = text.split('\n');
    if (more.length === 0) return `${indent}/** ${only} */\n`;
    const lines = [only, ...more].map((line) => `${indent} * ${line}\n`).join('');
    return `${indent}/**\n${lines}${indent} */\n`;
  }
}
