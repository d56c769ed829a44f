// Tiles, refusals, worst requests, and what the two big tables have in their columns.

import { colourOf } from "./canvas.js";
import { EXEC, LOAD, WINDOW_US, byBadness, stateOf } from "./store.js";

const MAX_WORST = 50;

export const percent = (share) => (share === null ? "–" : `${(100 * share).toFixed(share > 0.999 && share < 1 ? 2 : 1)} %`);
export const rounded = (n, digits = 1) => (n === null || n === undefined ? "–" : n.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }));

function put(id, text, mood = "") {
  const tile = document.getElementById(id);
  if (tile.textContent !== text) tile.textContent = text;
  tile.dataset.mood = mood;
}

export function showTiles(store, lately, devices) {
  const { served, missed, refused, late, queued, seconds } = lately;
  const share = served + missed ? served / (served + missed) : null;
  put("tile-attainment", percent(share), share === null ? "" : share >= 0.99 ? "good" : share < 0.9 ? "bad" : "");
  put("tile-goodput", `${rounded(served / seconds)}/s`);
  put("tile-refused", `${rounded(refused / seconds)}/s`);
  put("tile-late", `${rounded(late / seconds)}/s`, late ? "bad" : "");
  put("tile-queued", rounded(queued, 0));
  const busy = devices.map((device) => device.busy(EXEC, store.at - 5e6, store.at));
  put("tile-busy", devices.length ? percent(busy.reduce((a, b) => a + b, 0) / devices.length) : "–");
  showAdvice(store.scaling);
}

function showAdvice(advice) {
  put("tile-advised", advice ? `${advice.recommended}, here ${advice.devices}` : "–", advice && advice.recommended > advice.devices ? "bad" : "");
  const wrong = advice?.error === null ? "" : `, forecasts were wrong by ${rounded(advice?.error, 2)} lately`;
  const why = advice
    ? `The load keeps ${rounded(advice.load, 2)} devices busy, refused requests too; soon ${rounded(advice.forecast, 2)}${wrong}.`
    : "It is known after the first seconds.";
  const tile = document.getElementById("tile-advised");
  if (tile.title !== why) tile.title = why;
}

export function showRefusals(table, store, lately, hasChoice) {
  const rows = [...lately.reasons].map(([reason, counts]) => ({ reason, ...counts }));
  if (!hasChoice) {
    for (const [reason, total] of Object.entries(store.unnamed)) rows.push({ reason: `${reason} (no model)`, lately: null, total });
  }
  rows.sort((a, b) => (b.lately ?? -1) - (a.lately ?? -1) || b.total - a.total);
  const most = Math.max(1, ...rows.map((row) => row.lately ?? 0));
  fillRows(table.tBodies[0], rows, 4, "nothing yet", (line, row) => {
    const [outcome, reason] = row.reason.split(":");
    if (!line.remedy) {
      line.reason = line.cells[0].appendChild(document.createElement("span"));
      line.remedy = line.cells[0].appendChild(document.createElement("small"));
    }
    setCell(line.reason, `${reason.replaceAll("_", " ")}, ${outcome}`);
    setCell(line.remedy, store.remedies[reason.split(" ")[0]] ?? "");
    setCell(line.cells[1], rounded(row.lately, 0), "number");
    setCell(line.cells[2], rounded(row.total, 0), "number");
    if (!line.bar) {
      const share = document.createElement("span");
      share.className = "share";
      line.bar = document.createElement("i");
      share.append(line.bar);
      line.cells[3].append(share);
    }
    line.bar.style.width = `${(100 * (row.lately ?? 0)) / most}%`;
  });
}

export function showWorst(table, store, filters, onStory) {
  const known = new Set(store.models.map((model) => model.name));
  const rows = store.worst
    .filter((request) => request.at_us > store.at - WINDOW_US)
    .filter((request) => !filters.hasChoice || (known.has(request.model) && filters.chosen.has(request.model)))
    .filter((request) => !request.worker || filters.lostWorker(request.worker))
    .sort(byBadness)
    .slice(0, MAX_WORST);
  fillRows(table.tBodies[0], rows, 8, "no request yet", (line, row) => {
    const why = row.outcome === "served"
      ? `${row.worker ? `on ${row.worker}, batch of ${row.batch_rows}` : "the answer was shared"}${row.cold_start ? ", waited for weights" : ""}`
      : `${row.reason.replaceAll("_", " ")}: ${row.detail}`;
    setCell(line.cells[0], row.model);
    setCell(line.cells[1], row.outcome, row.outcome === "served" ? "" : "bad");
    setCell(line.cells[2], rounded(row.slack_ms), (row.slack_ms ?? 0) < 0 ? "number bad" : "number");
    setCell(line.cells[3], rounded(row.slo_ms), "number");
    setCell(line.cells[4], rounded(row.latency_ms), "number");
    setCell(line.cells[5], why, "why");
    line.cells[5].title = why;
    setCell(line.cells[6], rounded((store.at - row.at_us) / 1e6, 0), "number");
    line.request = row;
    if (!line.button) {
      line.button = document.createElement("button");
      line.button.type = "button";
      line.button.className = "plain";
      line.button.textContent = "story";
      line.button.addEventListener("click", () => onStory(line.request));
      line.cells[7].append(line.button);
    }
    line.button.setAttribute("aria-label", `Story of request ${row.request_id} for ${row.model}, ${row.outcome}`);
  });
}

// Keeps the row elements, so that focus stays where it is.
function fillRows(body, rows, numCells, empty, fill) {
  body.lines ??= [];
  while (body.lines.length < rows.length) {
    const element = body.insertRow();
    body.lines.push({ element, cells: Array.from({ length: numCells }, () => element.insertCell()) });
  }
  body.lines.forEach((line, place) => {
    line.element.hidden = place >= rows.length;
    if (place < rows.length) fill(line, rows[place]);
  });
  if (!body.note) {
    body.note = body.insertRow(0);
    const cell = body.note.insertCell();
    cell.colSpan = numCells;
    cell.className = "empty";
    cell.textContent = empty;
  }
  body.note.hidden = rows.length > 0;
}

function setCell(cell, text, name = "") {
  if (cell.textContent !== text) cell.textContent = text;
  if (cell.className !== name) cell.className = name;
}

export function modelColumns(store, onModel) {
  const lately = (model) => store.lately(model);
  return [
    { title: "Model", heads: true, text: (m) => m.name, action: onModel, swatch: colourOf },
    { title: "State", text: stateText, order: (m) => stateOf(m), mood: (m) => (m.unavailable_reason ? "bad" : ""), title_of: (m) => m.unavailable_reason },
    { title: "Goodput/s", number: true, text: (m) => rounded(lately(m).goodput), order: (m) => lately(m).goodput },
    { title: "In time", number: true, text: (m) => percent(lately(m).attainment), order: (m) => lately(m).attainment, mood: (m) => (lately(m).attainment !== null && lately(m).attainment < 0.9 ? "bad" : "") },
    { title: "Missed, 60\u00a0s", number: true, text: (m) => rounded(lately(m).missed, 0), order: (m) => lately(m).missed },
    { title: "Latency, ms", number: true, text: (m) => rounded(lately(m).latency), order: (m) => lately(m).latency },
    { title: "Waiting", number: true, text: (m) => m.queued, order: (m) => m.queued },
    { title: "EXEC of\u00a01, ms", number: true, text: (m) => rounded(m.exec_ms["1"], 2), order: (m) => m.exec_ms["1"] ?? null },
    { title: "LOAD, ms", number: true, text: (m) => rounded(m.load_ms, 2), order: (m) => m.load_ms },
    { title: "Pages", number: true, text: (m) => m.pages, order: (m) => m.pages },
    { title: "Loads", number: true, text: (m) => m.loads, order: (m) => m.loads },
    { title: "Cold starts", number: true, text: (m) => m.cold, order: (m) => m.cold },
    { title: "Batches", text: (m) => m.batch_sizes.join(" "), order: (m) => m.batch_sizes.at(-1) ?? 0 },
    { title: "Version", text: (m) => m.version },
  ];
}

export function stateText(model) {
  const state = stateOf(model);
  const where = model.held[2] ? ` on ${model.held[2]}` : "";
  return `${state}${where}${model.pinned ? ", pinned" : ""}`;
}

// Lost workers too, as rows with a name alone.
export function workerRows(store, filters, devices) {
  const lost = store.lost.filter((name) => filters.lostWorker(name));
  return [...devices, ...lost.map((worker) => ({ worker, isLost: true, kind: "", figures: [] }))];
}

export function workerColumns(store) {
  const busy = (device, lane) => (device.isLost ? null : device.busy(lane, store.at - 10e6, store.at));
  const figure = (place, scale = 1) => (d) => (d.figures[place] ?? null) === null ? null : d.figures[place] * scale;
  const shown = (of, digits = 0) => (d) => rounded(of(d), digits);
  const [free, outstanding, ahead, gaps, rtt] = [figure(1), figure(2), figure(3, 1e-3), figure(4), figure(5, 1e-3)];
  const [used, power, heat] = [figure(6), figure(7, 1e-3), figure(8)];
  return [
    { title: "Worker", heads: true, text: (d) => d.worker },
    { title: "State", text: (d) => (d.isLost ? "lost" : "here"), mood: (d) => (d.isLost ? "bad" : "") },
    { title: "Device", text: (d) => d.kind },
    { title: "EXEC, 10\u00a0s", number: true, text: (d) => percent(busy(d, EXEC)), order: (d) => busy(d, EXEC) },
    { title: "LOAD, 10\u00a0s", number: true, text: (d) => percent(busy(d, LOAD)), order: (d) => busy(d, LOAD) },
    { title: "Pages free", number: true, text: (d) => (d.isLost ? "–" : `${free(d)} of ${d.total_pages}`), order: free },
    { title: "Models", number: true, text: (d) => d.holds?.size, order: (d) => d.holds?.size ?? null },
    { title: "Orders out", number: true, text: shown(outstanding), order: outstanding },
    { title: "Sent ahead, ms", number: true, text: shown(ahead, 2), order: ahead },
    { title: "Gaps", number: true, text: (d) => percent(gaps(d)), order: gaps },
    { title: "Round trip, ms", number: true, text: shown(rtt, 2), order: rtt },
    { title: "GPU,\u00a0%", number: true, text: shown(used), order: used },
    { title: "Power,\u00a0W", number: true, text: shown(power), order: power },
    { title: "°C", number: true, text: shown(heat), order: heat },
  ];
}
