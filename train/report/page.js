// A cursor for the charts, by pointer and by arrow keys. It reads the table of numbers below each of
// them, so that it shows nothing that is not in the page without it.
"use strict";
for (const figure of document.querySelectorAll("figure.lines")) {
  const plot = figure.querySelector(".plot");
  const rows = [...figure.querySelectorAll("tr[data-x]")].map((row) => ({
    x: Number(row.dataset.x),
    cells: [...row.cells].map((cell) => cell.textContent),
  }));
  const names = [...figure.querySelectorAll("thead th")].map((cell) => cell.textContent);
  if (!rows.length) continue;
  let at = -1;
  const cursor = document.createElement("span");
  const readout = document.createElement("output");
  cursor.className = "cursor";
  readout.className = "readout";

  // The row nearest to a place, and of each line the nearest row that has a value.
  const nearest = (x, column) => {
    let best = -1;
    rows.forEach((row, number) => {
      const closer = best < 0 || Math.abs(row.x - x) < Math.abs(rows[best].x - x);
      if ((column === 0 || row.cells[column]) && closer) best = number;
    });
    return best;
  };
  const show = (number) => {
    at = number;
    const row = rows[at];
    cursor.style.left = `${100 * row.x}%`;
    const lines = [`${names[0]} ${row.cells[0]}`];
    for (let column = 1; column < names.length; column += 1) {
      const found = rows[nearest(row.x, column)];
      if (found) lines.push(`${names[column]} ${found.cells[column]}`);
    }
    readout.replaceChildren(...lines.map((text) => {
      const line = document.createElement("span");
      line.textContent = text;
      return line;
    }));
    readout.style.right = row.x > 0.5 ? "auto" : "0";
    readout.style.left = row.x > 0.5 ? "0" : "auto";
    plot.append(cursor, readout);
  };
  const hide = () => {
    cursor.remove();
    readout.remove();
    at = -1;
  };
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    show(nearest((event.clientX - box.left) / box.width, 0));
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const last = rows.length - 1;
    const steps = { ArrowRight: 1, ArrowLeft: -1, PageDown: 10, PageUp: -10 };
    const ends = { Home: 0, End: last };
    if (event.key in steps) show(Math.min(Math.max(at + steps[event.key], 0), last));
    else if (event.key in ends) show(ends[event.key]);
    else if (event.key === "Escape") hide();
    else return;
    event.preventDefault();
  });
}
