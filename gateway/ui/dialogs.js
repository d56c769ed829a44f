// A request's story, a model's particulars, and the question for an API key.

import { problemOf } from "./feed.js";
import { percent, rounded, stateText } from "./sections.js";

const KEPT = "remontoir-api-key";
const byId = (id) => document.getElementById(id);

for (const dialog of document.querySelectorAll("dialog")) {
  dialog.querySelector(".close")?.addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}

export function keptKey() { return sessionStorage.getItem(KEPT); }

export function askForKey(why, onKey) {
  const text = byId("key-text");
  byId("key-why").textContent = why;
  const use = () => {
    const key = text.value.trim();
    if (!key) return;
    if (byId("key-keep").checked) sessionStorage.setItem(KEPT, key);
    else sessionStorage.removeItem(KEPT);
    text.value = "";
    byId("key-dialog").close();
    onKey(key);
  };
  byId("key-use").onclick = use;
  text.onkeydown = (event) => { if (event.key === "Enter") use(); };
  if (!byId("key-dialog").open) byId("key-dialog").showModal();
  text.focus();
}

function open(title, facts, ...more) {
  byId("story-title").textContent = title;
  const list = document.createElement("dl");
  for (const [name, value] of facts) {
    const term = list.appendChild(document.createElement("dt"));
    const what = list.appendChild(document.createElement("dd"));
    term.textContent = name;
    what.textContent = value;
  }
  byId("story-body").replaceChildren(list, ...more);
  if (!byId("story").open) byId("story").showModal();
}

// What is known at once, and then the gateway's own words.
export async function showStory(request, key) {
  const isServed = request.outcome === "served";
  const words = document.createElement("div");
  words.setAttribute("aria-live", "polite");
  words.textContent = "Asking for its story";
  open(`Request ${request.request_id}`, [
    ["Model", request.model],
    ...(request.tenant ? [["Tenant", request.tenant]] : []),
    ["Outcome", isServed ? "served in time" : `${request.outcome}: ${request.reason.replaceAll("_", " ")}`],
    ...(request.detail ? [["Why", request.detail]] : []),
    ["SLO", `${rounded(request.slo_ms, 2)} ms`],
    ["Answered after", `${rounded(request.latency_ms, 2)} ms`],
    ...(request.slack_ms === null ? [] : [["Slack", slackText(request)]]),
    ...(request.worker ? [["Worker", request.worker], ["Batch", `${request.batch_rows} row${request.batch_rows > 1 ? "s" : ""}`]] : []),
    ...(request.cold_start ? [["Cold start", "it waited for weights"]] : []),
  ], words);
  try {
    const headers = key ? { authorization: `Bearer ${key}` } : {};
    const answer = await fetch(`/requests/${encodeURIComponent(request.request_id)}`, { headers });
    if (!answer.ok) throw new Error((await problemOf(answer)).detail);
    const { story, remedy, timeline } = await answer.json();
    const sentences = remedy === null ? story : [...story, `What helps: ${remedy}`];
    words.replaceChildren(...sentences.map((sentence) => paragraph(sentence)), timelineOf(timeline, request));
  } catch (error) {
    words.textContent = error.message;
  }
}

function slackText({ slack_ms: slack, outcome }) {
  if (slack >= 0) return `${rounded(slack, 2)} ms were left`;
  return outcome === "rejected" ? `it would have been ${rounded(-slack, 2)} ms late` : `${rounded(-slack, 2)} ms late`;
}

function paragraph(text) {
  const element = document.createElement("p");
  element.textContent = text;
  return element;
}

// The phases as a table whose last column draws them.
function timelineOf(timeline, request) {
  const end = Math.max(request.latency_ms, ...timeline.map((phase) => phase.end_ms), 0.001);
  const table = document.createElement("table");
  const head = table.createTHead().insertRow();
  for (const text of ["Phase", "from, ms", "to, ms", ""]) {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.textContent = text;
    if (text.includes("ms")) cell.className = "number";
    head.append(cell);
  }
  const body = table.createTBody();
  for (const { phase, begin_ms: from, end_ms: to } of timeline) {
    const line = body.insertRow();
    for (const text of [phase.replaceAll("_", " "), rounded(from, 2), rounded(to, 2)]) {
      const cell = line.insertCell();
      cell.textContent = text;
      if (text !== phase.replaceAll("_", " ")) cell.className = "number";
    }
    const bar = document.createElement("i");
    bar.className = "phase";
    bar.style.marginLeft = `${(100 * from) / end}%`;
    bar.style.width = `${Math.max(0.5, (100 * (to - from)) / end)}%`;
    line.insertCell().append(bar);
  }
  return table;
}

export function showModel(model, store) {
  const lately = store.lately(model);
  const table = document.createElement("table");
  const head = table.createTHead().insertRow();
  for (const text of ["Rows", "EXEC, ms", "Rows per second"]) {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.className = "number";
    cell.textContent = text;
    head.append(cell);
  }
  const body = table.createTBody();
  for (const [rows, ms] of Object.entries(model.exec_ms)) {
    const line = body.insertRow();
    for (const text of [rows, rounded(ms, 2), rounded((1e3 * rows) / ms, 0)]) {
      const cell = line.insertCell();
      cell.className = "number";
      cell.textContent = text;
    }
  }
  const holders = store.devices.filter((device) => device.holds.get(model)?.state === 2).map((device) => device.worker);
  open(model.name, [
    ["State", model.unavailable_reason ?? stateText(model)],
    ["Resident on", holders.join(", ") || "no device"],
    ["Version", model.version || "–"],
    ["Weights", `${rounded(model.weights_bytes / 2 ** 20)} MiB, ${model.pages} pages; a LOAD takes ${rounded(model.load_ms, 2)} ms`],
    ["Default SLO", `${rounded(model.default_slo_ms)} ms`],
    ["Last 60 s", `${lately.served} in time, ${lately.missed} missed (${percent(lately.attainment)}); mean latency ${rounded(lately.latency, 2)} ms`],
    ["Since the start", `${model.last.served} in time, ${model.last.missed} missed, ${model.cancelled} cancelled, ${model.invalid} invalid, ${model.loads} LOADs, ${model.evictions} evictions, ${model.cold} cold starts`],
    ...Object.entries(model.last.reasons).map(([reason, count]) => [reason.replaceAll("_", " ").replace(":", ": "), String(count)]),
    ...(model.shapes > 1 ? [["Shape classes", `${model.shapes}; the first is shown`]] : []),
  ], ...(Object.keys(model.exec_ms).length ? [table] : []));
}

