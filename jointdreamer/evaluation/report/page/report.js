// The report's page: tables, plots, gallery. Reads REPORT (data.js), asks nobody for anything.
"use strict";

const runs = REPORT.runs;
const groups = REPORT.groups ?? [];
const metrics = REPORT.metrics;
const PAGE = 60; // cards, or rows, made at once
const COLORS = ["#2f6fde", "#e07b1a", "#1c9a74", "#b4489c", "#c8443c", "#7a6cd8", "#8a8f1d", "#2aa0b8", "#a06a42", "#6b7480"];
const unique = (values) => [...new Set(values)];
const methods = unique(runs.map((run) => run.method));
const seeds = unique(runs.map((run) => run.seed)).sort((a, b) => a - b);
const color = (method) => COLORS[Math.max(0, methods.indexOf(method)) % COLORS.length];
const confidence = `${Math.round(1000 * (REPORT.confidence ?? 0.95)) / 10}%`;
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
const groupName = (group) => Object.values(group.keys).join(" · ") || "all runs";
const groupColor = (group, index) => ("method" in group.keys ? color(group.keys.method) : COLORS[index % COLORS.length]);
const swatch = (value) => element("span", { class: "swatch", style: `--series: ${value}` });

/** A run's number for a metric as it is shown: a Janus mark is 0 or 100 %. */
function runValue(run, metric) {
  const value = run[metric.name];
  if (typeof value === "boolean") return value ? 100 : 0;
  return typeof value === "number" ? value : null;
}

// ---- header ----
function writeHeader() {
  const prompts = unique(runs.map((run) => run.prompt)).length;
  const captions = REPORT.captions?.count ? `, ${REPORT.captions.count} captions to retrieve from` : "";
  byId("summary").textContent = `${plural(runs.length, "run")}: ${plural(prompts, "prompt")}, ${plural(methods.length, "method")}, ${plural(seeds.length, "seed")}${captions}. Made ${(REPORT.made ?? "").replace("T", " ").slice(0, 16)}. ${REPORT.compared ?? ""}`;
  const extractors = REPORT.extractors ?? {};
  if (extractors.comparable === false || extractors.note) {
    byId("warning").textContent = [extractors.comparable === false ? "These numbers cannot be compared with published ones." : "", extractors.note ?? ""].filter(Boolean).join(" ");
    byId("warning").hidden = false;
  }
  const named = [["CLIP", "clip"], ["FID", "fid"], ["Janus", "janus"]].filter(([, name]) => extractors[name]).map(([label, name]) => `${label}: ${extractors[name]}`);
  byId("table-note").textContent = `Mean with its ${confidence} interval. The best mean is green, whether or not the intervals part it from the others.${named.length ? ` Measured with – ${named.join("; ")}.` : ""}`;
  byId("footer").append(element("p", {}, "Made by ", element("code", {}, REPORT.command ?? "evaluate.py")), element("p", {}, `Evaluation ${REPORT.id}. 3D viewer: <model-viewer> 4.4.0, Apache License 2.0 (model-viewer.LICENSE.txt).`));
}

// ---- results ----
const heading = (metric) => [metric.label, metric.unit ? `, ${metric.unit}` : "", metric.more_is_better === null ? "" : metric.more_is_better ? " ↑" : " ↓"].join("");

function groupValue(group, metric) {
  const entry = group[metric.name];
  if (entry === null || entry === undefined) return null;
  if (typeof entry === "number") return { mean: entry };
  if (entry.mean === null) return null;
  return entry;
}

function writeResults() {
  const head = element("tr", {}, element("th", {}, (REPORT.group_by ?? ["method"]).join(" · ") || "group"), element("th", {}, "Runs"), ...metrics.map((metric) => element("th", {}, heading(metric))));
  const best = new Map(metrics.map((metric) => {
    const means = groups.map((group) => groupValue(group, metric)?.mean).filter((mean) => typeof mean === "number");
    return [metric, new Set(means).size > 1 && metric.more_is_better !== null ? Math[metric.more_is_better ? "max" : "min"](...means) : NaN];
  }));
  const rows = groups.map((group, index) => element("tr", {},
    element("td", {}, swatch(groupColor(group, index)), groupName(group)),
    element("td", { title: `${group.prompts} prompts, ${group.seeds} seeds` }, String(group.runs)),
    ...metrics.map((metric) => {
      const value = groupValue(group, metric);
      if (!value) return element("td", {}, "–");
      const digits = decimals(value.mean);
      const interval = typeof value.low === "number" && typeof value.high === "number" ? element("span", { class: "interval" }, `${number(value.low, digits)} – ${number(value.high, digits)}`) : null;
      return element("td", { class: value.mean === best.get(metric) ? "best" : null, title: value.n ? `n = ${value.n}` : null }, element("span", { class: "mean" }, number(value.mean, digits)), interval);
    })));
  byId("table").append(element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)));
}

function writeStudy() {
  const study = REPORT.study;
  if (!study) return;
  const percent = (entry, name) => (entry[name] === null ? "–" : `${number(100 * entry[name], 1)} (${number(100 * entry.low, 1)} – ${number(100 * entry.high, 1)})`);
  const head = element("tr", {}, ...["method", "Janus rate, %", "ratings", "preferred, %", "choices"].map((text) => element("th", {}, text)));
  const rows = study.methods.map((row) => element("tr", {}, element("td", {}, swatch(color(row.method)), row.method), element("td", {}, percent(row.janus, "rate")), element("td", {}, String(row.janus.n)), element("td", {}, percent(row.preferred, "share")), element("td", {}, String(row.preferred.n))));
  byId("study-table").append(element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)));
  const kappa = (entry) => (entry.kappa === null ? "not defined" : `${number(entry.kappa, 2)} over ${entry.subjects}`);
  byId("study-note").textContent = `${plural(study.raters.length, "rater")}. ${study.agreement.statistic}: Janus ${kappa(study.agreement.janus)}, preference ${kappa(study.agreement.preferred)}.`;
  byId("study").hidden = false;
}

// ---- plots ----
function draw(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Round numbers that span [low, high]: 1, 2 or 5 times a power of ten apart. */
function ticks(low, high) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * (rough / power > 5 ? 10 : rough / power > 2 ? 5 : rough / power > 1 ? 2 : 1);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at++) found.push(at * step);
  return { found, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}

function plot(metric) {
  const rows = groups.map((group, index) => ({
    group, index, value: groupValue(group, metric),
    dots: Object.keys(group.keys).every((key) => key in (runs[0] ?? {}))
      ? runs.filter((run) => Object.entries(group.keys).every(([key, value]) => String(run[key]) === String(value)) && runValue(run, metric) !== null) : [],
  })).filter((row) => row.value);
  const numbers = rows.flatMap(({ value, dots }) => [value.mean, value.low, value.high, ...dots.map((run) => runValue(run, metric))]).filter((value) => typeof value === "number");
  if (!numbers.length) return null;
  let [low, high] = [Math.min(...numbers), Math.max(...numbers)];
  if (metric.unit === "%") [low, high] = [0, 100];
  const margin = (high - low || Math.abs(high) || 1) * (metric.unit === "%" ? 0.03 : 0.06);
  const [left, width, rowHeight, top] = [14, 372, 58, 8];
  const x = (value) => left + ((value - low + margin) / (high - low + 2 * margin)) * (width - 2 * left);
  const bottom = top + rows.length * rowHeight;
  const svg = draw("svg", { viewBox: `0 0 ${width} ${bottom + 26}`, role: "img", "aria-label": metric.label });
  const scale = ticks(low - (metric.unit === "%" ? 0 : margin), high + (metric.unit === "%" ? 0 : margin));
  for (const at of scale.found) {
    svg.append(draw("line", { class: "axis", x1: x(at), x2: x(at), y1: top, y2: bottom }));
    svg.append(draw("text", { x: x(at), y: bottom + 16, "text-anchor": "middle" }, at.toFixed(scale.digits)));
  }
  rows.forEach(({ group, index, value, dots }, line) => {
    const y = top + line * rowHeight + 39;
    svg.append(draw("text", { class: "name", x: left, y: y - 23 }, groupName(group).slice(0, 56)));
    const stacked = new Map(); // runs of one value stand side by side, not on top of each other
    for (const run of dots) {
      const at = Math.round(x(runValue(run, metric)) / 5);
      const level = stacked.get(at) ?? 0;
      stacked.set(at, level + 1);
      const offset = ((level % 2 ? 1 : -1) * Math.ceil(level / 2) * 3) % 13;
      const dot = draw("circle", { class: "dot", cx: x(runValue(run, metric)), cy: y + offset, r: 4, style: `--series: ${groupColor(group, index)}` });
      dot.append(draw("title", {}, `${run.prompt}, seed ${run.seed}: ${number(runValue(run, metric))}`));
      dot.addEventListener("click", () => openDetail(run));
      svg.append(dot);
    }
    if (typeof value.low === "number" && typeof value.high === "number") svg.append(draw("line", { class: "bar", x1: x(value.low), x2: x(value.high), y1: y, y2: y }));
    svg.append(draw("path", { class: "mean", d: `M${x(value.mean)} ${y - 7}l7 7l-7 7l-7 -7z` }));
  });
  const direction = metric.more_is_better === null ? "" : metric.more_is_better ? "more is better" : "less is better";
  return element("figure", {}, element("figcaption", {}, metric.label, " ", element("span", {}, [metric.unit, direction].filter(Boolean).join(", "))), svg);
}

// ---- gallery ----
/** Janus needs a front: an object that shows none is neither Janus nor free of it. */
const verdict = (run) => (run.janus ? "Janus" : run.front === false ? "no front" : "no Janus");
const VERDICT_CLASS = { "Janus": "yes", "no front": "unsure", "no Janus": "no" };

function tags(run) {
  const shown = [element("span", {}, swatch(color(run.method)), element("b", {}, run.method)), element("span", {}, `seed ${run.seed}`)];
  if (typeof run.clip_score === "number") shown.push(element("span", {}, "CLIP ", element("b", {}, number(run.clip_score, 1))));
  if (typeof run.r_precision === "number") shown.push(element("span", {}, "R-P ", element("b", {}, `${number(run.r_precision, 0)}%`)));
  if (typeof run.janus === "boolean") shown.push(element("span", { class: VERDICT_CLASS[verdict(run)] }, verdict(run)));
  if (typeof run.resultant_length === "number") shown.push(element("span", { title: "1: it turns with the camera; 0: it looks the same from everywhere" }, "R ", element("b", {}, number(run.resultant_length, 2))));
  return element("div", { class: "tags" }, ...shown);
}

function card(run, { title = true, viewer = {} } = {}) {
  return element("article", { class: "card", "data-run": runs.indexOf(run) },
    element("div", { class: "stage" }, modelBox(run, { options: { "disable-zoom": true }, ...viewer }), element("div", { class: "turntable" }, turntable(run))),
    element("div", { class: "text" }, title ? element("h3", {}, run.prompt) : null, tags(run), element("button", { class: "more", type: "button", onclick: () => openDetail(run) }, "Details")));
}

/** The methods' objects for one prompt and seed; turning one turns all. */
function compareRow(prompt, seed, shownMethods) {
  const cells = shownMethods.map((method) => runs.find((run) => run.prompt === prompt && run.seed === seed && run.method === method) ?? method);
  const row = element("div", {});
  const turned = (orbit) => {
    for (const box of row.querySelectorAll(".view")) {
      if (box.viewer && box.viewer.getCameraOrbit?.().toString() !== orbit) box.viewer.cameraOrbit = orbit;
      box.orbit = orbit;
    }
  };
  row.append(...cells.map((run) => (typeof run === "string" ? element("div", { class: "absent" }, `${run}: no such run`) : card(run, { title: false, viewer: { turned } }))));
  return element("div", { class: "row" }, element("h3", {}, prompt, element("small", {}, ` · seed ${seed}`)), row);
}

let shown = PAGE;
const checked = (id) => [...byId(id).querySelectorAll("input:checked")].map((input) => input.value);

function writeCards() {
  const words = byId("filter-prompt").value.toLowerCase().split(/\s+/).filter(Boolean);
  const [wantedMethods, wantedSeeds, janus] = [checked("filter-method"), checked("filter-seed"), byId("filter-janus").value];
  const found = runs.filter((run) => words.every((word) => run.prompt.toLowerCase().includes(word)) && wantedMethods.includes(run.method) && wantedSeeds.includes(String(run.seed)) && (janus === "" || (typeof run.janus === "boolean" && verdict(run) === janus)));
  const cards = byId("cards");
  dropBoxes(cards);
  const compare = byId("compare").checked;
  cards.className = compare ? "" : "grid";
  let all;
  if (compare) {
    const pairs = new Map(found.map((run) => [JSON.stringify([run.prompt, run.seed]), run]));
    all = [...pairs.values()].map((run) => () => compareRow(run.prompt, run.seed, methods.filter((method) => wantedMethods.includes(method))));
  } else {
    all = found.map((run) => () => card(run));
  }
  cards.replaceChildren(...all.slice(0, shown).map((make) => make()));
  byId("count").textContent = compare ? plural(all.length, "comparison") : `${all.length} of ${plural(runs.length, "object")}`;
  byId("more")?.remove();
  if (all.length > shown) byId("gallery").append(element("button", { id: "more", type: "button", onclick: () => { shown += PAGE; writeCards(); } }, `Show more (${all.length - shown} left)`));
}

function writeFilters() {
  const changed = () => { shown = PAGE; writeCards(); };
  const boxes = (id, values, label) => byId(id).append(...values.map((value) => element("label", {}, element("input", { type: "checkbox", value: String(value), checked: true, onchange: changed }), label(value))));
  boxes("filter-method", methods, (method) => element("span", {}, swatch(color(method)), method));
  boxes("filter-seed", seeds, (seed) => String(seed));
  let timer = 0;
  byId("filter-prompt").addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(changed, 150); });
  byId("filter-janus").addEventListener("change", changed);
  byId("compare").addEventListener("change", changed);
  if (methods.length < 2) byId("compare").parentElement.hidden = true;
}

// ---- one run ----
function openDetail(run) {
  const dialog = byId("detail");
  const labels = new Map(metrics.map((metric) => [metric.name, metric]));
  const facts = Object.entries(run).filter(([name, value]) => !["prompt", "files", "missing"].includes(name) && value !== null && typeof value !== "object").map(([name, value]) => {
    const metric = labels.get(name);
    const text = typeof value === "boolean" ? (value ? "yes" : "no") : typeof value === "number" && !Number.isInteger(value) ? number(value) : String(value);
    const label = name === "janus" ? "Janus" : metric?.label ?? name.replaceAll("_", " ");
    return element("div", { class: name === "folder" ? "wide" : null }, element("dt", {}, label), element("dd", {}, metric?.unit && typeof value === "number" ? `${text} ${metric.unit}` : text));
  });
  dialog.replaceChildren(
    element("header", {}, element("h2", {}, run.prompt), element("button", { type: "button", onclick: () => dialog.close() }, "Close")),
    element("div", { class: "stage" }, modelBox(run), element("div", { class: "turntable" }, turntable(run))),
    element("div", { class: "body" }, element("dl", {}, ...facts), run.files.sheet ? element("img", { class: "sheet", src: run.files.sheet, alt: `views: ${run.prompt}` }) : null));
  dialog.showModal();
}
byId("detail").addEventListener("close", () => { dropBoxes(byId("detail")); byId("detail").replaceChildren(); });
byId("detail").addEventListener("click", (event) => { if (event.target === byId("detail")) byId("detail").close(); });

// ---- all runs ----
let sorting = { name: null, down: false };
function writeRuns() {
  const columns = [
    { name: "prompt", label: "prompt" }, { name: "method", label: "method" }, { name: "seed", label: "seed" }, { name: "models", label: "models" },
    ...metrics.filter((metric) => runs.some((run) => run[metric.name] !== null && run[metric.name] !== undefined)).map((metric) => ({ ...metric, measured: true })),
  ];
  const value = (run, column) => (column.measured ? runValue(run, column) : run[column.name]);
  const rows = [...runs];
  if (sorting.name) {
    const column = columns.find(({ name }) => name === sorting.name);
    const sign = sorting.down ? -1 : 1;
    rows.sort((a, b) => {
      const [left, right] = [value(a, column), value(b, column)];
      if (left === right) return 0;
      if (left === null || left === undefined) return 1; // unknown stands last either way
      if (right === null || right === undefined) return -1;
      return sign * (typeof left === "number" ? left - right : String(left).localeCompare(String(right)));
    });
  }
  const head = columns.map((column) => element("th", { class: column.measured ? null : "left", "aria-sort": sorting.name === column.name ? (sorting.down ? "descending" : "ascending") : null },
    element("button", { type: "button", onclick: () => { sorting = { name: column.name, down: sorting.name === column.name && !sorting.down }; writeRuns(); } }, column.measured && column.unit && column.name !== "janus" ? `${column.label}, ${column.unit}` : column.name === "janus" ? "Janus" : column.label)));
  const cell = (run, column) => {
    if (!column.measured) return element("td", { class: column.name === "prompt" ? "prompt left" : "left" }, column.name === "method" ? swatch(color(run.method)) : null, String(run[column.name] ?? "–"));
    if (column.name === "janus" && typeof run.janus === "boolean") return element("td", {}, { "Janus": "yes", "no Janus": "no" }[verdict(run)] ?? verdict(run));
    if (typeof run[column.name] === "boolean") return element("td", {}, run[column.name] ? "yes" : "no");
    return element("td", {}, number(runValue(run, column)));
  };
  const body = rows.map((run) => element("tr", { class: "pick", onclick: () => openDetail(run) }, ...columns.map((column) => cell(run, column))));
  byId("run-table").replaceChildren(element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body)));
}

function writeLeftOut() {
  const left = REPORT.left_out ?? [];
  byId("left-out").hidden = !left.length;
  byId("left-out").querySelector("ul").append(...left.map(({ folder, why }) => element("li", {}, element("code", {}, folder), `: ${why}`)));
}

writeHeader();
writeResults();
writeStudy();
byId("plot-note").textContent = `A dot is a run; the diamond is the mean with its ${confidence} interval. Point at a dot for its prompt, click it for the object.`;
byId("plot-grid").append(...metrics.map(plot).filter(Boolean));
writeFilters();
writeCards();
writeRuns();
writeLeftOut();
document.documentElement.dataset.ready = "true"; // for scripts that drive the page
