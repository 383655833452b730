// The page's only script: polls /v1/runs and /v1/controllers, draws what it hears, and asks …/decisions "what if".
//
//   GET /v1/runs (one replica's memory per answer) → merge by run and boundary → charts, table
//   sliders → POST …/decisions, named so that it belongs to no run → bars
//
// Text from outside reaches the document through textContent alone.
"use strict";

const POLL_MS = 2000, HURRY_MS = 300, HURRIES = 6, AWAY_MS = 5000; // The first polls hurry, to meet every replica soon.
const EXAMPLE = { request_id: "example", task_index: 2, stage_index: 1, num_stages: 4, sources: [
  { name: "safety", role: "anchor", reference_loss: 0.4, losses: [0.4, 0.45, 0.52] },
  { name: "code", role: "past", reference_loss: 1.31, losses: [1.9, 1.31, 1.58] },
  { name: "math", role: "current", losses: [2.2, 1.75] }] };
const $ = (id) => document.getElementById(id);
const runs = new Map(); // name → {name, updated, last: {task_index, …}, points: Map, latest, heard: Map(replica → time), colours: Map}
const state = { token: sessionStorage.getItem("proxymix-token"), polls: 0, skew: 0, replicas: new Map(), selected: null, cursor: null, controllers: [] };

// ---- small things

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}
function shape(tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}
const percent = (share) => `${Math.round(100 * share)} %`;
const nats = (loss) => loss.toFixed(loss < 0.095 ? 3 : loss < 100 ? 2 : 0);
const signed = (value, text) => (value > 0 ? "+" : value < 0 ? "−" : "±") + text(Math.abs(value));
const large = (value) => value >= 1e15 ? value.toExponential(1) : new Intl.NumberFormat("en", value < 1e5 ? { maximumFractionDigits: 0 }
  : { notation: "compact", maximumSignificantDigits: 3 }).format(value);
const share = (source) => source.role === "current" ? 0 : source.weight;
const replayShare = (sources) => sources.reduce((sum, source) => sum + share(source), 0);
const order = (point) => point.task_index * 2 ** 21 + point.stage_index;
function ago(time) {
  const s = Math.max(0, Date.now() / 1000 + state.skew - time);
  return s < 2 ? "just now" : s < 90 ? `${Math.round(s)} s ago` : s < 5400 ? `${Math.round(s / 60)} min ago` : `${Math.round(s / 3600)} h ago`;
}
function colour(run, name) {
  if (!run.colours.has(name)) run.colours.set(name, run.colours.size);
  const index = run.colours.get(name);
  return `c${index % 8}${index % 16 >= 8 ? " again" : ""}`;
}

async function api(path, body) {
  const headers = state.token ? { Authorization: `Bearer ${state.token}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  const response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), cache: "no-store" });
  if (response.status === 401) askForToken("That token was refused.");
  if (!response.ok) throw Object.assign(new Error((await response.json().catch(() => ({}))).detail ?? response.statusText), { status: response.status });
  return response.json();
}

// ---- token and polling

function askForToken(note) {
  state.token = null;
  sessionStorage.removeItem("proxymix-token");
  if (note) $("gate-note").textContent = note;
  $("gate").hidden = false;
  $("main").hidden = true;
  say("wait", "token needed");
  $("token").focus();
}
$("gate").addEventListener("submit", (event) => {
  event.preventDefault();
  state.token = $("token").value.trim();
  sessionStorage.setItem("proxymix-token", state.token);
  $("token").value = "";
  $("gate").hidden = true;
  poll();
});
function say(kind, text) {
  if ($("status").textContent !== text) $("status").textContent = text; // Said again only when it changes.
  $("status").dataset.state = kind;
}

async function poll() {
  let wait = POLL_MS;
  try {
    if (!document.hidden) {
      if (state.polls % 8 === 0) await readControllers();
      await readRuns();
      $("main").hidden = false;
      draw();
      wait = state.polls++ < HURRIES ? HURRY_MS : POLL_MS;
      say("live", state.replicas.size > 1 ? `live · ${state.replicas.size} replicas` : "live");
    }
  } catch (error) {
    if (error.status === 401) return; // The form goes on from here.
    say("away", "no answer, trying again");
    wait = AWAY_MS;
  }
  setTimeout(poll, wait);
}

function heardFrom(replica) { // One that is silent for a minute is no more.
  state.replicas.set(replica, Date.now());
  for (const [other, time] of state.replicas) if (time < Date.now() - 60_000) state.replicas.delete(other);
}

async function readRuns() {
  const list = await api("v1/runs");
  state.skew = list.now - Date.now() / 1000;
  heardFrom(list.replica);
  for (const { run: name, updated, ...last } of list.runs) {
    if (!runs.has(name)) runs.set(name, { name, updated: 0, points: new Map(), latest: null, heard: new Map(), colours: new Map() });
    const run = runs.get(name);
    if (updated >= run.updated) Object.assign(run, { updated, last });
  }
  state.selected ??= list.runs[0]?.run ?? null;
  const listed = list.runs.find((summary) => summary.run === state.selected);
  const run = runs.get(state.selected);
  try {
    for (let tries = 0; listed && tries < 4 && run.heard.get(list.replica) !== listed.updated; tries++) await readRun(run); // Another replica may answer.
  } catch (error) { // One run that cannot be read leaves the others to be chosen.
    if (error.status === 401) throw error;
  }
}

async function readRun(run) {
  const detail = await api(`v1/runs/${run.name.split("/").map(encodeURIComponent).join("/")}`);
  heardFrom(detail.replica);
  if (!detail.points.length) return;
  const newest = detail.points.at(-1);
  run.heard.set(detail.replica, newest.time);
  if (newest.time >= run.updated) Object.assign(run, { latest: detail.latest, updated: newest.time, last: newest });
  for (const point of detail.points) if (!(run.points.get(order(point))?.time > point.time)) run.points.set(order(point), point);
  let first = Infinity; // Where a run began again or resumed further back, what was ahead is no longer so.
  for (const point of [...run.points.values()].sort((a, b) => b.time - a.time || order(b) - order(a))) {
    if (order(point) < first) first = order(point);
    else run.points.delete(order(point));
  }
}

// ---- live decisions

function columnsOf(run) { // One per boundary, in order: {kind: seen | fallback | unheard, point?, task_index, stage_index}
  const columns = [];
  let before = null;
  for (const point of [...run.points.values()].sort((a, b) => order(a) - order(b))) {
    const tasks = before ? point.task_index - before.task_index : 0;
    const gap = before ? Math.max(0, tasks * before.num_stages + point.stage_index - before.stage_index - 1) : Math.min(point.fallbacks, point.task_index * point.num_stages + point.stage_index);
    for (let left = Math.min(gap, 500); left > 0; left--) {
      const at = point.task_index * point.num_stages + point.stage_index - left;
      columns.push({ kind: left <= point.fallbacks ? "fallback" : "unheard", task_index: Math.floor(at / point.num_stages), stage_index: at % point.num_stages });
    }
    columns.push({ kind: "seen", point, task_index: point.task_index, stage_index: point.stage_index });
    before = point;
  }
  return columns;
}

function draw() {
  const run = runs.get(state.selected);
  $("no-runs").hidden = runs.size > 0;
  $("has-runs").hidden = !run;
  drawList();
  if (!knobs.touched && run?.latest && knobs.base !== run.latest) rebase(run.latest);
  else if (!knobs.body && state.controllers.length) rebase(EXAMPLE);
  if (!run || !run.points.size) return;
  const columns = columnsOf(run), at = Math.min(state.cursor ?? columns.length - 1, columns.length - 1);
  const names = [...new Set(columns.flatMap((column) => column.point ? column.point.sources.map((source) => source.name) : []))];
  names.forEach((name) => colour(run, name));
  drawTiles(run, columns);
  drawMixture(run, columns, names, at);
  drawLosses(run, columns, names, at);
  drawTable(run, columns[at], at === columns.length - 1);
  $("legend-fallback").hidden = !columns.some((column) => column.kind === "fallback");
  $("legend-unheard").hidden = !columns.some((column) => column.kind === "unheard");
  const slider = { "aria-valuemax": columns.length, "aria-valuenow": at + 1, "aria-valuetext": describe(columns[at]) };
  for (const [key, value] of Object.entries(slider)) $("boundary").setAttribute(key, value);
}

function drawList() { // Buttons are kept, so that the focus is.
  for (const run of [...runs.values()].sort((a, b) => b.updated - a.updated)) {
    if (!run.button) {
      run.button = element("button", { type: "button" }, element("span", { textContent: run.name }), element("small"));
      run.button.addEventListener("click", () => select(run));
      $("runs").append(element("li", {}, run.button));
    }
    run.button.setAttribute("aria-current", run.name === state.selected);
    run.button.lastChild.textContent = `task ${run.last.task_index + 1}, stage ${run.last.stage_index + 1} of ${run.last.num_stages} · ${ago(run.updated)}`;
  }
}
async function select(run) {
  Object.assign(state, { selected: run.name, cursor: null });
  knobs.touched = false;
  await readRun(run).catch(() => {}); // The next poll tries again.
  draw();
}

function drawTiles(run, columns) {
  const last = columns.at(-1).point, fallbacks = columns.filter((column) => column.kind === "fallback").length;
  const current = last.sources.find((source) => source.role === "current");
  const tiles = [["Replay share", percent(replayShare(last.sources)), ""], ["Now tuned on", current.name, ""],
    [`Stage of task ${last.task_index + 1}`, `${last.stage_index + 1} / ${last.num_stages}`, ""],
    ["Fallbacks", String(fallbacks), columns.length > 1 ? ` of ${columns.length} boundaries` : ""], ["Decided by", last.controller, ""]];
  $("tiles").replaceChildren(...tiles.map(([term, value, note]) =>
    element("div", {}, element("dt", { textContent: term }), element("dd", { textContent: value }, element("small", { textContent: note })))));
}

function frame(id, columns, at) { // The parts both charts share; returns the geometry.
  const svg = $(id), width = svg.clientWidth || 600, height = svg.clientHeight || 200, left = 38, top = 20, right = width - 2, bottom = height - 8;
  const x = (index) => left + (right - left) * index / columns.length, band = (index, extra) =>
    shape("rect", { x: x(index), width: x(index + 1) - x(index), y: top, height: bottom - top, ...extra });
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const over = [];
  columns.forEach((column, index) => {
    if (column.kind !== "seen") over.push(band(index, column.kind === "fallback" ? { fill: "url(#hatching)" } : { class: "hole" }));
    const begins = index === 0 || columns[index - 1].task_index !== column.task_index;
    if (begins && index) over.push(shape("line", { class: "task", x1: x(index), x2: x(index), y1: 4, y2: bottom }));
    if (!begins) return;
    const inTask = columns.filter((other) => other.task_index === column.task_index);
    const name = inTask.find((other) => other.point)?.point.sources.find((source) => source.role === "current").name ?? "";
    const fits = Math.floor((x(index + inTask.length) - x(index) - 8) / 6.2);
    if (fits > 2) over.push(shape("text", { x: x(index) + 5, y: 12 }, name.length > fits ? `${name.slice(0, fits - 1)}…` : name));
  });
  if (state.cursor !== null) over.push(band(at, { class: "cursor" }));
  return { svg, x, top, bottom, left, right, over };
}
function ticks(chart, marks) {
  return marks.flatMap(([y, text]) => [shape("line", { class: "grid", x1: chart.left, x2: chart.right, y1: y, y2: y }),
    shape("text", { x: chart.left - 7, y: y + 4, "text-anchor": "end" }, text)]);
}

function drawMixture(run, columns, names, at) {
  const chart = frame("mixture", columns, at), y = (value) => chart.bottom - (chart.bottom - chart.top) * value;
  const stacked = columns.map(({ point }) => {
    const spans = new Map();
    let floor = 0;
    for (const name of point ? names : []) {
      const weight = point.sources.find((source) => source.name === name)?.weight;
      if (weight !== undefined) spans.set(name, [floor, floor += weight]);
    }
    return spans;
  });
  const areas = names.map((name) => {
    let path = "";
    for (let start = 0; start < columns.length; start++) {
      if (!stacked[start].has(name)) continue;
      let end = start, upper = "", lower = "";
      for (; end < columns.length && stacked[end].has(name); end++) {
        const [low, high] = stacked[end].get(name);
        upper += `L${chart.x(end)} ${y(high)}L${chart.x(end + 1)} ${y(high)}`;
        lower = `L${chart.x(end + 1)} ${y(low)}L${chart.x(end)} ${y(low)}` + lower;
      }
      path += `M${upper.slice(1)}${lower}Z`;
      start = end;
    }
    return shape("path", { class: `area ${colour(run, name)}`, d: path, "data-source": name });
  });
  const hatching = shape("pattern", { id: "hatching", width: 7, height: 7, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" });
  hatching.append(shape("line", { class: "hatching", x1: 0, x2: 0, y1: 0, y2: 7 }));
  chart.svg.replaceChildren(hatching, ...ticks(chart, [[y(0), "0 %"], [y(0.5), "50"], [y(1), "100"]]), ...areas, ...chart.over);
}

function drawLosses(run, columns, names, at) {
  const most = Math.max(0.1, ...columns.flatMap(({ point }) => point ? point.sources.map((source) => source.loss) : []));
  const chart = frame("losses", columns, at), y = (loss) => chart.bottom - (chart.bottom - chart.top) * Math.sqrt(loss / most);
  const step = 10 ** Math.floor(Math.log10(most)), nice = [0, 0.1, 0.5, 1, 2, 4, 8].map((part) => part * step).filter((tick) => tick <= most);
  const marks = nice.filter((tick, index) => !index || y(nice[index - 1]) - y(tick) > 14).map((tick) => [y(tick), String(Number(tick.toPrecision(2)))]);
  const lines = names.flatMap((name) => {
    let path = "", pen = "M";
    const dots = [];
    columns.forEach(({ point }, index) => {
      const source = point?.sources.find((other) => other.name === name), x = (chart.x(index) + chart.x(index + 1)) / 2;
      if (source) {
        path += `${pen}${x} ${y(source.loss)}`;
        if (columns.length <= 30) dots.push(shape("circle", { class: `dot ${colour(run, name)}`, cx: x, cy: y(source.loss), r: 2.5 }));
      }
      pen = source ? "L" : "M";
    });
    return [shape("path", { class: `line ${colour(run, name)}`, d: path, "data-source": name }), ...dots];
  });
  chart.svg.replaceChildren(...ticks(chart, marks), ...chart.over, ...lines);
}

const describe = (column) => `Task ${column.task_index + 1}, stage ${column.stage_index + 1}` + ({
  seen: `: replay share ${column.point && percent(replayShare(column.point.sources))}`,
  fallback: ": the service was away, the run's fallback decided", unheard: ": not seen by the replicas heard so far" })[column.kind];

function drawTable(run, column, isLatest) {
  $("moment").textContent = (isLatest ? "Latest: " : "") + describe(column) + (column.point ? `, ${ago(column.point.time)}` : "");
  $("sources").replaceChildren(...(column.point?.sources ?? []).map((source) => {
    const rise = source.reference_loss === null ? "" : signed(source.loss - source.reference_loss, nats);
    return element("tr", {}, element("th", { scope: "row" }, element("span", { className: `swatch ${colour(run, source.name)}` }), source.name),
      element("td", { className: "role", textContent: source.role }),
      element("td", {}, element("div", { className: "share" }, bar(colour(run, source.name), source.weight), element("b", { textContent: percent(source.weight) }))),
      element("td", { className: "number", textContent: nats(source.loss) }), element("td", { className: "number", textContent: rise }));
  }));
}
function bar(classes, value, before) {
  const fill = element("i", { className: classes }), track = element("div", { className: "bar", ariaHidden: "true" }, fill);
  fill.style.width = `${100 * value}%`;
  if (before !== undefined) {
    const mark = element("u");
    mark.style.left = `${100 * before}%`;
    track.append(mark);
  }
  return track;
}

$("boundary").addEventListener("keydown", (event) => {
  const last = Number($("boundary").getAttribute("aria-valuemax")) - 1, now = state.cursor ?? last;
  const next = { ArrowLeft: now - 1, ArrowDown: now - 1, ArrowRight: now + 1, ArrowUp: now + 1, PageDown: now - 8, PageUp: now + 8, Home: 0, End: last, Escape: null }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  state.cursor = next === null ? null : Math.min(Math.max(next, 0), last);
  draw();
});
$("boundary").addEventListener("pointermove", (event) => {
  const box = $("mixture").getBoundingClientRect(), count = Number($("boundary").getAttribute("aria-valuemax"));
  const index = Math.floor((event.clientX - box.left - 38) / (box.width - 40) * count);
  if (index >= 0 && index < count && index !== state.cursor) { state.cursor = index; draw(); }
});
for (const event of ["pointerleave", "blur"]) $("boundary").addEventListener(event, () => { state.cursor = null; draw(); });
new ResizeObserver(() => draw()).observe($("main"));

// ---- the controller's card

async function readControllers() {
  const list = await api("v1/controllers"), labels = list.controllers.map((one) => `${one.name}@${one.version}`);
  $("reload-error").hidden = !list.reload_error;
  $("reload-error").textContent = list.reload_error ? `The last update of the controllers was not taken: ${list.reload_error}` : "";
  const isSame = JSON.stringify(list.controllers) === JSON.stringify(state.controllers);
  state.controllers = list.controllers;
  if (isSame) return;
  const chosen = labels.includes($("controllers").value) ? $("controllers").value : list.default;
  $("controllers").replaceChildren(...labels.map((label) => element("option", { value: label, textContent: label })));
  $("controllers").value = chosen;
  $("choose").hidden = labels.length < 2;
  await showCard();
}
const address = () => {
  const [name, version] = $("controllers").value.split("@");
  return `v1/controllers/${encodeURIComponent(name)}/versions/${encodeURIComponent(version)}`;
};
$("controllers").addEventListener("change", () => showCard().then(ask).catch((error) => say("away", error.message)));

async function showCard() {
  const card = await api(address()), cost = { ...card.training_cost, ...(card.training_flops ? { "floating-point operations": card.training_flops } : {}) };
  const trainedOn = [...new Set((card.training?.sources ?? []).map((name) => String(name).split("@")[0]))];
  const chips = trainedOn.slice(0, 24).concat(trainedOn.length > 24 ? [`${trainedOn.length - 24} more`] : []);
  const costs = Object.entries(cost).filter(([, value]) => typeof value === "number");
  const rows = [["Name", card.name], ["Version", card.version], ["SHA-256 of the weights", element("span", { className: "hash", textContent: card.sha256 })],
    ["Architecture", card.architecture && `${card.architecture}, ${card.max_sources ? `at most ${card.max_sources} sources` : "any number of sources"}`],
    ["Trained on", chips.length && element("ul", { className: "chips" }, ...chips.map((name) => element("li", { textContent: name })))],
    ["In sequences", card.training?.sequences?.length],
    ["What that cost", costs.length && element("div", { className: "costs" }, ...costs.flatMap(([key, value]) =>
      [element("span", { textContent: key.replaceAll("_", " ") }), element("span", { textContent: large(value) })]))],
    ["Seed", card.seed], ["Made with", card.versions && Object.entries(card.versions).map(([name, version]) => `${name} ${version}`).join(", ")]];
  $("card").replaceChildren(...rows.filter(([, value]) => value || value === 0).flatMap(([term, value]) =>
    [element("dt", { textContent: term }), element("dd", {}, typeof value === "object" ? value : String(value))]));
}

// ---- what if

const knobs = { base: null, touched: false, body: null, before: null, rows: [], isAsking: false, isStale: false };

function rebase(request) {
  const isExample = request === EXAMPLE, body = structuredClone(request), run = runs.get(state.selected) ?? { colours: new Map() };
  body.request_id = "what-if"; // Belongs to no run, so it is not remembered.
  Object.assign(knobs, { base: request, body, before: null, touched: false });
  $("reset").disabled = true;
  $("base").textContent = (isExample ? "An example; with a run it is its latest decision. " : `From ${request.request_id}. `) +
    "Change what the controller is told and see what it would decide; nothing is kept, no run is touched.";
  const most = Math.max(1, 1.5 * Math.max(...body.sources.map((source) => source.losses.at(-1))));
  const head = ["Source", "Last loss, nats", "", "Share (mark: as decided)", ""].map((text) => element("span", { className: "head", textContent: text }));
  knobs.rows = body.sources.map((source, index) => {
    const classes = colour(run, source.name), result = element("span", { className: "result" }), track = bar(classes, 0, 0);
    // Fine steps where losses are small; the loss as sent stays itself until its slider is moved.
    const input = element("input", { type: "range", id: `knob${index}`, min: 0, max: 1000, step: "any", value: 1000 * Math.sqrt(source.losses.at(-1) / most) });
    const label = element("label", { htmlFor: input.id, title: `${source.name}, ${source.role}` }, element("span", { className: `swatch ${classes}` }), source.name);
    const output = element("output", { htmlFor: input.id });
    const show = () => { output.textContent = nats(source.losses.at(-1)); input.setAttribute("aria-valuetext", `${source.name}, ${source.role}: ${nats(source.losses.at(-1))} nats`); };
    input.addEventListener("input", () => { source.losses[source.losses.length - 1] = most * (input.value / 1000) ** 2; show(); touch(); });
    input.addEventListener("focus", touch);
    input.addEventListener("keydown", (event) => nudge(event, input, 10));
    show();
    return { name: source.name, classes, track, result, cells: [label, input, output, track, result] };
  });
  $("knobs").replaceChildren(...head, ...knobs.rows.flatMap((row) => row.cells), element("div", { className: "rule" }), ...progressKnob(body));
  ask();
}
function progressKnob(body) {
  const input = element("input", { type: "range", id: "knob-progress", min: 0, max: body.num_stages - 1, step: 1, value: body.stage_index });
  const output = element("output", { htmlFor: input.id });
  const show = () => { output.textContent = `${body.stage_index + 1} / ${body.num_stages}`; input.setAttribute("aria-valuetext", `stage ${body.stage_index + 1} of ${body.num_stages}`); };
  input.addEventListener("input", () => { body.stage_index = Number(input.value); show(); touch(); });
  input.addEventListener("focus", touch);
  show();
  return [element("label", { htmlFor: input.id, textContent: "Stage of the task" }), input, output];
}
function nudge(event, input, step) { // Where the step is "any", browsers differ in what an arrow key does.
  const change = { ArrowLeft: -step, ArrowDown: -step, ArrowRight: step, ArrowUp: step, PageDown: -10 * step, PageUp: 10 * step }[event.key];
  if (change === undefined) return;
  event.preventDefault();
  input.value = Number(input.value) + change;
  input.dispatchEvent(new Event("input"));
}
function touch(event) {
  knobs.touched = true;
  $("reset").disabled = false;
  if (event?.type !== "focus") ask();
}
$("reset").addEventListener("click", () => rebase(runs.get(state.selected)?.latest ?? EXAMPLE));

async function ask() { // One question at a time; what changed meanwhile is asked next.
  knobs.isStale = true;
  if (knobs.isAsking || !knobs.body) return;
  knobs.isAsking = true;
  try {
    while (knobs.isStale) {
      knobs.isStale = false;
      const path = `${address()}/decisions`, { base } = knobs;
      if (knobs.before?.path !== path) knobs.before = { path, answer: await api(path, { ...base, request_id: "what-if" }) };
      const answer = await api(path, knobs.body);
      if (base === knobs.base) showOutcome(knobs.before.answer, answer);
    }
  } catch (error) {
    $("outcome").textContent = `No answer: ${error.message}`;
  } finally {
    knobs.isAsking = false;
  }
}
function showOutcome(before, after) {
  for (const row of knobs.rows) {
    const now = after.weights[row.name], then = before.weights[row.name], points = Math.round(100 * now) - Math.round(100 * then);
    row.track.firstChild.style.width = `${100 * now}%`;
    row.track.lastChild.style.left = `${100 * then}%`;
    row.result.replaceChildren(percent(now), element("small", { textContent: points ? `  ${signed(points, String)}` : "" }));
  }
  const points = Math.round(100 * after.replay_share) - Math.round(100 * before.replay_share);
  $("outcome").textContent = `Replay share ${percent(after.replay_share)}` + (points ? `, ${signed(points, String)} points against the decision` : ", as decided");
}

// ---- begin

if (document.documentElement.dataset.guarded === "true" && !state.token) askForToken();
else poll();
