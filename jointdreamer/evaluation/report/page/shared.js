// What both pages need: elements made without ever parsing text as HTML, and 3D models that load when they are seen.
"use strict";

const REPORT = window.REPORT;

/** element("p", {class: "note"}, "text", node, ...): strings become text nodes, never HTML. */
function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const byId = (id) => document.getElementById(id);

function loadScript(source) {
  return new Promise((resolve, reject) => {
    const script = element("script", { src: source });
    script.onload = () => { script.remove(); resolve(); };
    script.onerror = () => { script.remove(); reject(new Error(`${source} is missing or damaged`)); };
    document.head.append(script);
  });
}

// ---- models: each is a script that calls reportModel(its name, base64 of a gzipped GLB) ----
const received = new Map(); // name -> base64, until decoded
const modelUrls = new Map(); // name -> promise of a blob: URL
window.reportModel = (name, text) => received.set(name, text);

async function decodeModel(name) {
  await loadScript(name);
  const packed = Uint8Array.from(atob(received.get(name)), (character) => character.charCodeAt(0));
  received.delete(name);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return URL.createObjectURL(new Blob([await new Response(stream).arrayBuffer()], { type: "model/gltf-binary" }));
}

function modelUrl(name) {
  if (!modelUrls.has(name)) modelUrls.set(name, decodeModel(name));
  return modelUrls.get(name);
}

let viewerScript = null;
const viewerReady = () => (viewerScript ??= loadScript("model-viewer.min.js"));

// ---- viewers: made when their box comes near the window, unmade when many are live and theirs is far away ----
// (all model-viewers of a page draw with one WebGL context, but each keeps its mesh and a canvas)
const MAX_LIVE = 12;
const live = new Set(); // boxes with a viewer, the one seen longest ago first
const observer = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    target.seen = isIntersecting;
    if (isIntersecting) {
      live.delete(target);
      live.add(target);
      showModel(target);
    }
  }
  for (const box of live) {
    if (live.size <= MAX_LIVE) break;
    if (!box.seen) hideModel(box);
  }
}, { rootMargin: "120px" });

async function showModel(box) {
  if (box.viewer) return;
  const viewer = (box.viewer = element("model-viewer", {
    "camera-controls": true, "touch-action": "pan-y", "interaction-prompt": "none", "disable-tap": true,
    "disable-pan": true, "camera-orbit": box.orbit ?? "20deg 75deg auto", "shadow-intensity": "0.6", "tone-mapping": "neutral",
    "min-camera-orbit": "auto auto 60%", "max-camera-orbit": "auto auto 200%", alt: box.alt, ...box.options,
  }));
  viewer.append(element("span", { slot: "progress-bar" }));
  viewer.addEventListener("load", () => { box.classList.add("loaded"); box.dispatchEvent(new CustomEvent("loaded")); });
  viewer.addEventListener("error", () => fail(box, "This model cannot be shown: does the browser have WebGL?"));
  viewer.addEventListener("camera-change", (event) => {
    if (event.detail.source === "user-interaction") box.turned?.(viewer.getCameraOrbit().toString());
  });
  try {
    const [url] = await Promise.all([modelUrl(box.model), viewerReady()]);
    if (box.viewer !== viewer) return; // scrolled away meanwhile
    box.append(viewer);
    viewer.src = url;
  } catch (error) {
    fail(box, String(error.message));
  }
}

function hideModel(box) {
  if (box.viewer?.isConnected && box.viewer.loaded) box.orbit = box.viewer.getCameraOrbit().toString();
  box.viewer?.remove();
  box.viewer = null;
  box.classList.remove("loaded");
  live.delete(box);
}

function fail(box, text) {
  box.classList.remove("loaded");
  box.classList.add("failed");
  box.querySelector(".hint").textContent = text;
}

/** A box with the run's model, loaded once it is near the window. turned: called with the orbit that the user chose. */
function modelBox(run, { options = {}, turned = null, orbit = null } = {}) {
  const lacks = !run.files.mesh && (run.missing.includes("mesh") ? "The mesh is gone since the evaluation" : "No mesh");
  const box = element("div", { class: "view" }, element("p", { class: "hint" }, lacks || "Loading …"));
  if (!lacks) {
    Object.assign(box, { model: run.files.mesh, alt: run.prompt, options, turned, orbit });
    observer.observe(box);
  }
  return box;
}

/** The box will not be shown again: let go of its model. */
function dropBoxes(parent) {
  for (const box of parent.querySelectorAll(".view")) {
    observer.unobserve(box);
    hideModel(box);
  }
}

const still = matchMedia("(prefers-reduced-motion: reduce)").matches; // then nothing moves unasked

/** The run's turntable: plays while it is in view, as browsers allow it without sound. Its sheet of views if it has none. */
const players = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (still) target.preload = isIntersecting ? "metadata" : target.preload;
    else if (isIntersecting) target.play().catch(() => {}); // a browser that saves power may refuse: the controls are there
    else target.pause();
  }
});
function turntable(run) {
  const file = run.files.turntable;
  if (file && !file.endsWith(".gif")) {
    const video = element("video", { src: file, loop: true, playsinline: true, preload: "none", controls: still, "aria-label": `turntable: ${run.prompt}` });
    video.muted = true;
    if (!still) video.addEventListener("click", () => (video.paused ? video.play() : video.pause()));
    players.observe(video);
    return video;
  }
  const picture = file ?? run.files.sheet;
  return picture ? element("img", { src: picture, loading: "lazy", alt: `views: ${run.prompt}` }) : element("span", { class: "note" }, "No turntable");
}

const decimals = (value) => (value === 0 ? 0 : Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : Math.abs(value) >= 1 ? 2 : 3);
const number = (value, digits = decimals(value)) => (value === null || value === undefined ? "–" : value.toFixed(digits));
