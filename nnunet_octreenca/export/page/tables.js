// Rows of the page's tables: the classes of one image, and all images.

import { PROBLEM, rowsOf, shown, sizeOf } from './cases.js';

function element(kind, text, name = '') {
  const made = document.createElement(kind);
  made.textContent = text;
  if (name) made.className = name;
  return made;
}

/** A row for every class but the background: its colour, share and size. */
export function legendRows({ counts, shape, spacing, flat }, model) {
  const cells = shape.reduce((a, b) => a * b);
  return model.names
    .filter(([label]) => label > 0)
    .map(([label, name]) => {
      const row = document.createElement('tr');
      const head = element('th', name);
      const swatch = element('span', '', 'swatch');
      head.scope = 'row';
      swatch.style.background = `rgb(${model.colours[label]})`;
      head.prepend(swatch);
      const share = `${((100 * counts[label]) / cells).toFixed(2)} %`;
      const size = shown(...sizeOf(counts[label], spacing, flat));
      row.append(head, element('td', share, 'number'), element('td', size, 'number'));
      return row;
    });
}

/** The head, and a row for every image, which a button shows again. */
export function tableRows(results, names, disabled, show) {
  const [heads, ...rows] = rowsOf(results, names);
  const head = document.createElement('tr');
  head.append(...heads.map((text) => Object.assign(element('th', text), { scope: 'col' })));
  const body = rows.map((cells, i) => {
    const row = document.createElement('tr');
    const kind = (text, column) => (column === PROBLEM && text ? 'problem' : '');
    row.append(...cells.map((text, column) => element('td', text, kind(text, column))));
    if (!results[i].problem) {
      const button = Object.assign(element('button', results[i].name), {
        type: 'button',
        disabled,
      });
      button.addEventListener('click', () => show(results[i]));
      row.cells[0].replaceChildren(button);
    }
    return row;
  });
  return [head, ...body];
}
