// Files as cases, their results as a table.

const CHANNEL = /_(\d{4})(\.nii(?:\.gz)?)$/i;
const ENDING = /\.(nii\.gz|[^.]+)$/i;

/**
 * @param {boolean} grouped whether every channel of a case has a file, NAME_0000.nii.gz and so on
 * @returns {{name: string, files: File[]}[]}
 */
export function casesOf(files, grouped) {
  if (!grouped) return [...files].map((file) => ({ name: file.name, files: [file] }));
  const cases = new Map();
  for (const file of [...files].sort((a, b) => a.name.localeCompare(b.name))) {
    const name = file.name.replace(CHANNEL, '$2');
    if (!cases.has(name)) cases.set(name, []);
    cases.get(name).push(file);
  }
  return [...cases].map(([name, own]) => ({ name, files: own }));
}

export const stemOf = (name) => name.replace(ENDING, '');

/** What a number of cells is: [value, unit]. */
export function sizeOf(cells, spacing, flat) {
  if (!spacing) return [cells, 'pixels'];
  const [z, y, x] = spacing;
  return flat ? [cells * y * x, 'mm²'] : [(cells * z * y * x) / 1000, 'ml'];
}

export const shown = (value, unit) =>
  unit === 'pixels' ? value.toLocaleString('en') : value.toPrecision(4);

export const PROBLEM = 3; // the column

/** Rows of the table of all cases, the heads first. */
export function rowsOf(results, names) {
  const classes = names.filter(([label]) => label > 0);
  const heads = ['image', 'cells', 'seconds', 'problem'];
  for (const [, name] of classes) heads.push(`${name} (%)`, `${name} (size)`);
  heads.push('unit of size');
  const rows = results.map((one) => {
    if (one.problem) return [one.name, '', '', one.problem, ...classes.flatMap(() => ['', '']), ''];
    const cells = one.shape.reduce((a, b) => a * b);
    const values = classes.flatMap(([label]) => [
      ((100 * one.counts[label]) / cells).toFixed(3),
      String(+sizeOf(one.counts[label], one.spacing, one.flat)[0].toPrecision(7)),
    ]);
    const shape = one.shape[0] === 1 ? one.shape.slice(1) : one.shape;
    return [
      one.name,
      [...shape].reverse().join(' x '),
      one.seconds.toFixed(2),
      '',
      ...values,
      sizeOf(0, one.spacing, one.flat)[1],
    ];
  });
  return [heads, ...rows];
}

/** RFC 4180; a cell that a spreadsheet would compute is quoted as text. */
export function csvOf(rows) {
  const cell = (text) => {
    const safe = /^[=+\-@\t]/.test(text) ? `'${text}` : text;
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  return rows.map((row) => `${row.map(cell).join(',')}\r\n`).join('');
}
