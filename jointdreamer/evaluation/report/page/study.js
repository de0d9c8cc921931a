// The human study: for each prompt and seed, the methods' objects without their names, in an order of the rater's own.
"use strict";

const runs = REPORT.runs;
const KEY = `jointdreamer-study:${REPORT.id}`;
const LAYOUT = JSON.stringify(runs.map((run) => [run.prompt, run.seed, run.method])); // what the kept indices speak of

/** The file that the rater looks at, named by its content; null if the report has none. */
const look = (run) => run.files.mesh ?? run.files.turntable ?? run.files.sheet ?? null;

/** A trial per prompt and seed, every prompt once before any twice: who stops early has still seen all of them. */
function allTrials() {
  const found = new Map();
  runs.forEach((run, index) => {
    if (look(run) === null) return;
    const key = JSON.stringify([run.prompt, run.seed]);
    if (!found.has(key)) found.set(key, { prompt: run.prompt, seed: run.seed, shown: [] });
    found.get(key).shown.push(index);
  });
  return [...found.values()];
}

/** In random order, all orders as likely (Fisher and Yates). */
function shuffled(values) {
  const list = [...values];
  for (let last = list.length - 1; last > 0; last--) {
    const other = Math.floor(Math.random() * (last + 1));
    [list[last], list[other]] = [list[other], list[last]];
  }
  return list;
}

function drawOrder() {
  const rounds = new Map(); // how many trials of the same prompt came before -> trials
  const before = new Map();
  for (const trial of shuffled(allTrials())) {
    const round = before.get(trial.prompt) ?? 0;
    before.set(trial.prompt, round + 1);
    if (!rounds.has(round)) rounds.set(round, []);
    rounds.get(round).push({ prompt: trial.prompt, seed: trial.seed, shown: shuffled(trial.shown), janus: trial.shown.map(() => null), preferred: null });
  }
  return [...rounds.keys()].sort((a, b) => a - b).flatMap((round) => rounds.get(round));
}

// ---- what is kept: {layout, rater, started, position, trials: [{prompt, seed, shown: runs, janus, preferred: place}]}; in this browser only ----
let state = null;
let kept = true;

function save() {
  try {
    localStorage.setItem(KEY, JSON.stringify(state));
  } catch {
    kept = false;
  }
}

function restore() {
  try {
    localStorage.setItem(`${KEY}?`, "");
    localStorage.removeItem(`${KEY}?`);
    const found = JSON.parse(localStorage.getItem(KEY));
    return found?.layout === LAYOUT ? found : null;
  } catch (error) {
    kept = !(error instanceof DOMException); // storage refused, not unreadable
    return null;
  }
}

const complete = (trial) => trial.janus.every((mark) => mark !== null) && (trial.preferred !== null || trial.shown.length < 2);
const touched = (trial) => trial.janus.some((mark) => mark !== null) || trial.preferred !== null;

/** What is downloaded, see jointdreamer/evaluation/report/study.py. A choice of one is none. */
function results() {
  return {
    kind: "jointdreamer-study", version: 1, evaluation: REPORT.id, rater: state.rater, started: state.started, saved: new Date().toISOString(),
    answers: state.trials.filter(touched).map((trial) => ({
      prompt: trial.prompt, seed: trial.seed, preferred: trial.preferred,
      objects: trial.shown.map((index, place) => ({ method: runs[index].method, object: look(runs[index]), janus: trial.janus[place] })),
    })),
  };
}

function download() {
  const url = URL.createObjectURL(new Blob([JSON.stringify(results(), null, 1)], { type: "application/json" }));
  const name = state.rater.normalize("NFKD").replace(/[^A-Za-z0-9]+/g, "_").slice(0, 40) || "rater";
  const link = element("a", { href: url, download: `study_${name}_${REPORT.id.slice(0, 8)}.json` });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

// ---- one trial ----
// an object that turns by itself shows its back also to who does not think of it
const SLOWLY = still ? {} : { "auto-rotate": true, "auto-rotate-delay": "1500", "rotation-per-second": "40deg" };
let current = 0; // the object that keys speak of
const trial = () => state.trials[state.position];

function show(name) {
  for (const id of ["intro", "trial", "end"]) byId(id).hidden = id !== name;
  scrollTo(0, 0);
}

function objectCard(runIndex, place) {
  const run = runs[runIndex];
  let view;
  if (run.files.mesh) {
    view = modelBox(run, { options: { ...SLOWLY, "disable-zoom": true, alt: `object ${place + 1}` } });
  } else {
    view = element("div", { class: "view" }, turntable(run)); // the picture's label would not betray the method either
  }
  view.append(element("span", { class: "number" }, String(place + 1)));
  // after a turn by mouse or finger the keys are the study's again; who reaches the model by Tab turns it by arrows
  view.addEventListener("pointerup", () => setTimeout(() => document.activeElement?.blur()));
  return element("article", { class: "object", onpointerdown: () => { current = place; mark(); } }, view,
    element("div", { class: "choices" },
      element("span", {}, "Janus?"),
      element("button", { type: "button", class: "yes", onclick: () => setJanus(place, true) }, "Yes"),
      element("button", { type: "button", class: "no", onclick: () => setJanus(place, false) }, "No"),
      trial().shown.length > 1 ? element("button", { type: "button", class: "prefer", onclick: () => prefer(place) }, `Prefer ${place + 1}`) : null));
}

function writeTrial() {
  const { prompt, shown } = trial();
  current = 0;
  byId("position").textContent = `${state.position + 1} of ${state.trials.length}`;
  byId("prompt").textContent = prompt;
  byId("last-key").textContent = String(Math.min(9, shown.length));
  const objects = byId("objects");
  dropBoxes(objects);
  objects.style.setProperty("--columns", shown.length <= 4 ? shown.length : Math.ceil(shown.length / 2));
  objects.replaceChildren(...shown.map(objectCard));
  show("trial");
  mark();
}

/** Bring the page to what the state says; nothing is made anew. */
function mark() {
  const { janus, preferred, shown } = trial();
  [...byId("objects").children].forEach((card, place) => {
    card.classList.toggle("current", place === current);
    card.classList.toggle("preferred", preferred === place);
    card.querySelector(".yes").setAttribute("aria-pressed", janus[place] === true);
    card.querySelector(".no").setAttribute("aria-pressed", janus[place] === false);
    card.querySelector(".prefer")?.setAttribute("aria-pressed", preferred === place);
  });
  const open = janus.flatMap((value, place) => (value === null ? [place + 1] : []));
  const todo = open.length ? [`Janus of ${open.join(", ")}?`] : [];
  if (shown.length > 1 && preferred === null) todo.push("Which one do you prefer?");
  byId("todo").textContent = todo.join(" ");
  byId("next").disabled = !complete(trial());
  byId("next").textContent = state.position + 1 < state.trials.length ? "Next" : "Finish";
  byId("back").disabled = state.position === 0;
  byId("bar").style.width = `${(100 * state.trials.filter(complete).length) / state.trials.length}%`;
}

function setJanus(place, value) {
  trial().janus[place] = value;
  save();
  mark();
}

function prefer(place) {
  trial().preferred = place;
  save();
  mark();
}

function next() {
  if (!complete(trial())) return;
  if (state.position + 1 === state.trials.length) return writeEnd();
  state.position += 1;
  save();
  writeTrial();
}

function back() {
  if (state.position === 0) return;
  state.position -= 1;
  save();
  writeTrial();
}

function writeEnd() {
  const done = state.trials.filter(complete).length;
  dropBoxes(byId("objects"));
  byId("objects").replaceChildren();
  byId("end-text").textContent = `You have answered ${done} of ${state.trials.length}. Download the answers and send the file to whoever asked you.${done < state.trials.length ? " You can also go on later, in this browser." : ""}`;
  show("end");
}

document.addEventListener("keydown", (event) => {
  if (byId("trial").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const count = trial().shown.length;
  const onButton = event.target instanceof HTMLButtonElement;
  const digit = Number.parseInt(event.key, 10);
  if ((event.key === "ArrowLeft" || event.key === "ArrowRight") && event.target.localName !== "model-viewer") {
    current = (current + (event.key === "ArrowRight" ? 1 : count - 1)) % count;
    byId("objects").children[current].scrollIntoView({ block: "nearest" });
    mark();
  } else if (event.key === "y" || event.key === "n") {
    const place = current;
    if (place + 1 < count) current += 1; // on to the next object, so that y n y answers three
    setJanus(place, event.key === "y");
  } else if (digit >= 1 && digit <= count && count > 1) {
    prefer(digit - 1);
  } else if (event.key === "Enter" && !onButton) {
    next();
  } else if (event.key === "Backspace") {
    back();
  } else {
    return;
  }
  event.preventDefault();
});

byId("start").addEventListener("submit", (event) => {
  event.preventDefault();
  const rater = byId("rater").value.trim();
  if (!rater) return;
  if (state?.rater !== rater) state = { layout: LAYOUT, rater, started: new Date().toISOString(), position: 0, trials: drawOrder() };
  save();
  writeTrial();
});
byId("rater").addEventListener("input", () => {
  byId("resume-note").hidden = !state;
  if (state && byId("rater").value.trim() !== state.rater) byId("resume-note").textContent = `Starting under another name erases the answers of ${state.rater} here.`;
  else if (state) byId("resume-note").textContent = resumeText();
});
byId("next").addEventListener("click", next);
byId("back").addEventListener("click", back);
byId("early").addEventListener("click", () => { writeEnd(); download(); });
byId("download").addEventListener("click", download);
byId("again").addEventListener("click", () => { writeTrial(); });
byId("erase").addEventListener("click", () => {
  if (!confirm(`Erase the answers of ${state.rater} in this browser?`)) return;
  try { localStorage.removeItem(KEY); } catch { /* nothing is kept here anyway */ }
  location.reload();
});

const resumeText = () => `${state.trials.filter(complete).length} of ${state.trials.length} are answered: Start goes on.`;

const trials = allTrials();
const sizes = trials.map(({ shown }) => shown.length);
const [fewest, most] = [Math.min(...sizes), Math.max(...sizes)];
byId("intro-trials").textContent = `${trials.length} prompt${trials.length === 1 ? "" : "s"}`;
byId("intro-objects").textContent = `${fewest === most ? most : `${fewest} to ${most}`} object${most === 1 ? "" : "s"}`;
state = restore();
byId("storage-note").hidden = kept;
if (state) {
  byId("rater").value = state.rater;
  byId("resume-note").textContent = resumeText();
  byId("resume-note").hidden = false;
}
if (!trials.length) byId("start").replaceChildren(element("p", { class: "warning" }, "This report has no object to rate."));
document.documentElement.dataset.ready = "true";
