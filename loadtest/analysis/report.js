"use strict";
// The leaderboard: sort by a heading, keep lines with some words.
(() => {
  const table = document.getElementById("lines");
  if (!table) return;
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => row.cells[column].dataset.value;

  function sort(column, ascending) {
    const isNumber = [...body.rows].every((row) => !isNaN(Number(value(row, column))));
    const rows = [...body.rows].sort((a, b) => {
      const left = value(a, column), right = value(b, column);
      if (left === "" || right === "") return (left === "") - (right === "");  // unknown comes last
      const order = isNumber ? Number(left) - Number(right) : left.localeCompare(right);
      return ascending ? order : -order;
    });
    body.append(...rows);
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[column].setAttribute("aria-sort", ascending ? "ascending" : "descending");
  }

  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const now = head.getAttribute("aria-sort");
    const first = head.dataset.better || "ascending";
    sort(column, now ? now !== "ascending" : first === "ascending");
  }));

  const input = document.getElementById("filter"), told = document.getElementById("shown");
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      count += !row.hidden;
    }
    told.textContent = words.length ? `${count} of ${body.rows.length} lines` : "";
  });
})();
