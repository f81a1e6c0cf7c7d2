// What a terminal acts upon instead of showing it: controls (C0, DEL, C1), marks that turn the direction of text, line
// and paragraph separators, halves of surrogate pairs, and what has no width, so that two texts look alike.
const UNPRINTABLE = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}\p{Default_Ignorable_Code_Point}]/gu;
const UNPRINTABLE_BUT_LINE_FEED = new RegExp(`(?!\\n)${UNPRINTABLE.source}`, 'gu');

/**
 * Text of somebody else, as a terminal may have it on one line: what a terminal would act upon, line feeds too, is
 * written `\u001b`. Text that is printable stays as it is, so doing it twice does no more than once.
 */
export const printable = (text: string): string => text.replace(UNPRINTABLE, escaped);

/** The same for text whose line feeds are our own. JSON stays JSON of the same value. */
export const printableLines = (text: string): string =>
  text.replace(UNPRINTABLE_BUT_LINE_FEED, escaped);

/** Each UTF-16 unit for itself, as JSON has them. */
const escaped = (character: string): string =>
  Array.from(
    { length: character.length },
    (_, unit) => `\\u${character.charCodeAt(unit).toString(16).padStart(4, '0')}`,
  ).join('');
