"use strict";
(() => {
  const value = (row, column) => {
    const cell = row.cells[column];
    const number = cell.dataset.sort;
    return { number: number === undefined ? NaN : Number(number), text: cell.textContent.trim() };
  };

  // Rows without a value come last in either direction.
  const compare = (column, direction, numeric) => (a, b) => {
    const x = value(a, column), y = value(b, column);
    if (!numeric) return direction * x.text.localeCompare(y.text, undefined, { numeric: true });
    if (isNaN(x.number) || isNaN(y.number)) return isNaN(x.number) - isNaN(y.number);
    return x.number === y.number ? 0 : direction * (x.number < y.number ? -1 : 1);
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
      const rows = [...body.rows];
      const numeric = rows.some(row => row.cells[column].dataset.sort !== undefined);
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      body.append(...rows.sort(compare(column, ascending ? 1 : -1, numeric)));
    }));
  }

  for (const box of document.querySelectorAll(".searchable")) {
    const field = box.querySelector(".search"), hits = box.querySelector(".hits");
    const rows = [...box.querySelector("tbody").rows];
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every(word => text.includes(word));
        shown += !row.hidden;
      }
      hits.textContent = words.length ? `${shown} of ${rows.length}` : "";
    });
  }

  const ask = row => document.dispatchEvent(new CustomEvent("show-case", { detail: Number(row.dataset.shows) }));
  for (const row of document.querySelectorAll("tr[data-shows]")) {
    row.addEventListener("click", () => ask(row));
  }

  // Arrow keys go from one case's button to the next visible one.
  document.addEventListener("keydown", event => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || !document.activeElement.matches("tbody .show")) return;
    const buttons = [...document.activeElement.closest("tbody").querySelectorAll("tr:not([hidden]) .show")];
    const next = buttons[buttons.indexOf(document.activeElement) + step];
    if (next) { next.focus(); event.preventDefault(); }
  });

  document.addEventListener("case-shown", event => {
    for (const row of document.querySelectorAll("tr[data-shows]")) {
      row.classList.toggle("shown", Number(row.dataset.shows) === event.detail);
    }
  });
})();
