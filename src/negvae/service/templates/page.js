"use strict";
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
let key = "";
let model = null; // what /v1/models/{name} says
let name = "";
const MOST = 1000; // items that are kept
let items = []; // {file, index, score, p_value, is_outlier, error, input, reconstruction, heatmap, position}
let listed = null; // the items whose cards are in the document
let earlier = 0; // how many items were taken off, as others came
const cards = new WeakMap(); // the card of each item
let seed = 0;
let turns = 0; // how often a model was chosen
let rate = null; // null: the threshold as calibrated

/* ---- the service ---- */

async function ask(path, options = {}) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const answer = /^[\x20-\x7e]*$/.test(key) ? await fetch(path, { ...options, headers }).catch(unanswered) : { status: 401 }; // no key has others
  if (answer.status === 401) {
    $("keyform").hidden = false;
    $("links").hidden = true; // a link carries no key
    $("key").focus();
    throw new Error(key ? "This is not the key of this service." : "This service asks for a key.");
  }
  const content = await answer.json().catch(() => (answer.ok ? unanswered() : {}));
  if (!answer.ok) throw new Error(content.error || `The service answered ${answer.status}.`);
  return content;
}

function unanswered() {
  throw new Error("The service does not answer: it has stopped, or the connection to it is lost.");
}

/** Refuse files that a request would fail with, as the browser does not say why. */
async function readable(files) {
  for (const file of files) {
    await file.slice(0, 1).arrayBuffer().catch(() => {
      throw new Error(`${file.name} cannot be read: it is a folder, or was moved or changed. Nothing was sent.`);
    });
  }
}

function counted(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

async function begin() {
  const models = await ask("v1/models");
  const names = Object.keys(models).filter((each) => models[each]);
  if (!names.length) throw new Error("No model is loaded.");
  $("model").replaceChildren(...names.map((each) => new Option(each, each)));
  $("picker").hidden = names.length < 2;
  await take(names[0]);
}

/** Use a model; if it cannot be had, the former one stays, and if another was chosen meanwhile, that one counts. */
async function take(chosen) {
  const turn = ++turns;
  let found;
  try {
    found = await ask(`v1/models/${encodeURIComponent(chosen)}`);
  } catch (error) {
    if (turn === turns && name) $("model").value = name;
    throw error;
  }
  if (turn !== turns) return;
  [model, name] = [found, chosen];
  $("model").value = name;
  [items, earlier] = [[], 0];
  rate = null;
  const [channels, height, width] = model.shape;
  const kind = { 1: "gray", 3: "color" }[channels] || `${channels}-channel`;
  const what = model.features ? `rows of ${channels} numbers (.npy files)` :
    model.tiled ? `${kind} images of any size, in tiles of ${width} × ${height} pixels` : `${kind} images of ${width} × ${height} pixels`;
  $("about").textContent = `Model ${name} takes ${what}. Its score is ${model.score.replaceAll("_", " ")}: larger means less like the training data.`;
  $("files").accept = model.features ? ".npy" : "image/*,.npy";
  $("droptext").innerHTML = model.features ? "<strong>Choose .npy files</strong> or drop them here" :
    "<strong>Choose images</strong> or drop them here";
  $("limits").textContent = `up to ${model.max_images} at a time`;
  $("resizeline").hidden = model.features || model.resizes || model.tiled;
  $("heatline").hidden = !model.offers.includes("heatmap");
  document.body.classList.toggle("photos", model.tiled || width > 64);
  $("samplesection").hidden = !model.offers.includes("samples");
  $("mapsection").hidden = !model.offers.includes("position");
  $("least").textContent = percent(least());
  show();
  say("");
  if (model.offers.includes("samples")) await draw();
}

async function score(files) {
  if (!files.length || !model) return;
  const bytes = files.reduce((sum, file) => sum + file.size, 0);
  if (bytes > model.max_bytes) {
    say(`The files have ${bytes.toLocaleString("en")} bytes; at most ${model.max_bytes.toLocaleString("en")} can be sent at a time.`, true);
    return;
  }
  const form = new FormData();
  for (const file of files) form.append("files", file);
  const query = new URLSearchParams({ model: name });
  if (!model.features && !model.resizes) query.set("resize", $("resize").checked);
  for (const each of model.offers) if (each !== "samples") query.append("include", each);
  say(`${files.length === 1 ? "1 file is" : `${files.length} files are`} being scored.`);
  try {
    await readable(files);
    const [asked, answer] = [name, await ask(`v1/score?${query}`, { method: "POST", body: form })];
    if (asked !== name) return; // another model was chosen meanwhile
    const all = [...answer.images, ...items];
    items = all.slice(0, MOST);
    earlier += all.length - items.length;
    const failed = answer.images.filter((each) => each.error).length;
    say(`${answer.images.length - failed} scored${failed ? `, ${failed} could not be read` : ""}.`);
    show();
  } catch (error) {
    say(error.message, true);
  }
}

async function draw() {
  const [asked, drawn] = [name, seed];
  const { images } = await ask(`v1/models/${encodeURIComponent(name)}/samples?count=16&seed=${seed}`);
  if (asked !== name || drawn !== seed) return;
  $("samples").replaceChildren(...images.map((source, at) => picture(source, `Generated image ${at + 1}`)));
}

/* ---- the decision ---- */

const least = () => 1 / (model.held_out + 1);
const bound = () => (rate === null ? model.rate : rate);
const outlying = (item) => (rate === null ? item.is_outlier : item.p_value <= rate + 1e-12);

/** The score above which the p-value is at most the rate: in groups the largest p-value is, so the highest of theirs. */
const cut = () => (rate === null ? model.threshold : Math.max(...model.parts.map(ranked)));

/** The k-th largest of some held-out scores, k by the rate. */
function ranked(part) {
  const rank = Math.floor(rate * (part.held_out + 1) + 1e-9);
  if (rank < 1) return Infinity;
  if (rank <= part.top.length) return part.top[rank - 1];
  const at = 1 - (rank - 1) / Math.max(part.held_out - 1, 1);
  return part.quantiles[Math.min(400, Math.max(0, Math.ceil(at * 400 - 1e-9)))];
}

const slid = (at) => Math.exp(Math.log(least()) + (at / 1000) * (Math.log(0.5) - Math.log(least())));
const slot = (value) => Math.round((1000 * (Math.log(value) - Math.log(least()))) / (Math.log(0.5) - Math.log(least())));
const percent = (value) => `${Number((100 * value).toPrecision(value < 0.1 ? 2 : 3))}%`;
const short = (value) => Number(value.toPrecision(4)).toString();

/** A score in few digits, unless these are the threshold's too. */
const written = (value) => (short(value) === short(cut()) ? String(value) : short(value));

/** What is certified of the calibrated threshold. */
function certified() {
  const { at_most: most, confidence } = model.certificate;
  return most === undefined ? "" : `: at most ${percent(most)} of inliers, with ${percent(confidence)} confidence`;
}

/* ---- what is shown ---- */

function show() {
  const share = Math.min(0.5, Math.max(least(), bound()));
  $("rate").value = slot(share);
  $("bound").textContent = model.bounds_rate ? "at most" : "about";
  $("ratetext").textContent = percent(bound());
  $("rate").setAttribute("aria-valuetext", percent(bound()));
  $("threshold").textContent = Number.isFinite(cut()) ? `Outliers score above ${items.some((each) => !each.error && short(each.score) === short(cut())) ? cut() : short(cut())}${rate === null ? ` (as calibrated${certified()})` : ""}.` :
    "No score is called at this rate.";
  const good = items.filter((each) => !each.error);
  const out = good.filter(outlying).length;
  $("summary").textContent = items.length ? `${out} of ${good.length} called outliers${items.length > good.length ? `; ${items.length - good.length} could not be read` : ""}${earlier ? `; ${earlier} earlier ones are no longer shown` : ""}.` :
    "No image has been scored yet.";
  $("clear").hidden = !items.length;
  if (listed !== items) $("verdicts").replaceChildren(...items.map(card));
  listed = items;
  items.forEach(judge);
  histogram(good);
  if (model.offers.includes("position")) map(good);
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  made.append(...children);
  return made;
}

const picture = (source, alt) => element("img", { src: source, alt });

/** Write the verdict on an item to its card: all that the rate changes. */
function judge(item) {
  const kind = item.error ? "err" : outlying(item) ? "out" : "in";
  const made = cards.get(item);
  made.className = kind;
  made.querySelector(".called").textContent = { err: "not read", out: "outlier", in: "like the training data" }[kind];
  if (!item.error) made.querySelector(".score").textContent = written(item.score);
}

/** The card of an item, made once: to decode its pictures anew would hold up the slider. */
function card(item) {
  if (!cards.has(item)) cards.set(item, makeCard(item));
  return cards.get(item);
}

function makeCard(item) {
  const title = item.index ? `${item.file} [${item.index}]` : item.file;
  const made = element("li");
  made.append(element("p", { class: "name" }, element("span", { title }, title), element("span", { class: "called" })));
  if (item.error) {
    made.append(element("p", { class: "reason" }, item.error));
    return made;
  }
  if (item.input) {
    const first = element("figure", {}, picture(item.input, `Input ${title}`));
    if (item.heatmap) {
      const heat = picture(item.heatmap, "Where it differs");
      heat.className = "heat";
      first.append(heat);
    }
    first.append(element("figcaption", {}, item.heatmap ? "input, heat map" : "input"));
    const figures = element("div", { class: "pictures" }, first);
    if (item.reconstruction) {
      figures.append(element("figure", {}, picture(item.reconstruction, `Reconstruction of ${title}`),
        element("figcaption", {}, "reconstruction")));
    }
    made.append(figures);
  }
  made.append(element("p", { class: "facts" },
    element("span", {}, "score ", element("b", { class: "score" })),
    element("span", {}, "p-value ", element("b", {}, short(item.p_value)))));
  return made;
}

/* ---- charts ---- */

function drawn(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  made.append(...children);
  return made;
}

const WIDE = 520, HIGH = 230, LEFT = 8, RIGHT = 12, TOP = 24, BOTTOM = 28;

function frame(label, low, high, ticks) {
  const x = (value) => LEFT + ((value - low) / (high - low)) * (WIDE - LEFT - RIGHT);
  const svg = drawn("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": label });
  svg.append(drawn("line", { x1: LEFT, x2: WIDE - RIGHT, y1: HIGH - BOTTOM, y2: HIGH - BOTTOM, stroke: "var(--soft)" }));
  for (const tick of ticks) {
    svg.append(drawn("line", { x1: x(tick), x2: x(tick), y1: HIGH - BOTTOM, y2: HIGH - BOTTOM + 4, stroke: "var(--soft)" }));
    const anchor = x(tick) < 30 ? "start" : x(tick) > WIDE - 30 ? "end" : "middle";
    svg.append(drawn("text", { x: x(tick), y: HIGH - BOTTOM + 21, "text-anchor": anchor }, short(tick)));
  }
  return [svg, x];
}

function nice(low, high) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((each) => each * power >= rough);
  const ticks = [];
  for (let at = Math.ceil(low / step); at * step <= high; at++) ticks.push(at * step);
  return ticks;
}

function dot(cx, cy, item) {
  const circle = drawn("circle", {
    cx, cy, r: 5, fill: outlying(item) ? "var(--c1)" : "var(--c2)", stroke: "var(--card)", "stroke-width": 1.5,
  }, drawn("title", {}, `${item.file}: score ${written(item.score)}`));
  const mark = (on) => cards.get(item).classList.toggle("shown", on);
  circle.addEventListener("pointerenter", () => mark(true));
  circle.addEventListener("pointerleave", () => mark(false));
  return circle;
}

function histogram(good) {
  const { counts, edges } = model;
  const limit = cut();
  const [first, last] = [edges[0], edges.at(-1)];
  const beyond = good.filter((each) => each.score > last).length > 0;
  const span = last - first;
  const low = first - 0.02 * span, high = last + (beyond ? 0.3 : 0.04) * span;
  const inside = (value) => Math.min(Math.max(value, low), high - 0.02 * span);
  const axis = `Score: ${model.score.replaceAll("_", " ")}${model.unit && model.unit !== "1" ? `, ${model.unit}` : ""}${beyond ? "; the images at the right edge lie beyond it" : ""}`;
  const label = `Histogram of the scores of ${counted(model.held_out, "held-out inlier")}, from ${short(first)} to ${short(last)}, with the threshold at ${short(limit)} and ${counted(good.length, "scored image")}`;
  const [svg, x] = frame(label, low, high, nice(first, last));
  $("histaxis").textContent = axis;
  const most = Math.max(...counts, 1), base = HIGH - BOTTOM;
  counts.forEach((count, at) => {
    const height = (Math.sqrt(count / most)) * (base - TOP - 46);
    svg.append(drawn("rect", { x: x(edges[at]), width: Math.max(0.5, x(edges[at + 1]) - x(edges[at]) - 0.6), y: base - height, height, fill: "var(--fill0)" }));
  });
  if (limit <= high) {
    const at = x(Math.max(limit, low));
    svg.append(drawn("line", { x1: at, x2: at, y1: TOP - 4, y2: base, stroke: "var(--ink)", "stroke-width": 1.5, "stroke-dasharray": "4 3" }));
    svg.append(drawn("text", { x: at, y: TOP - 9, "text-anchor": at > WIDE * 0.7 ? "end" : at < WIDE * 0.2 ? "start" : "middle" }, "threshold"));
  }
  const rows = new Map();
  items.forEach((item) => {
    if (item.error) return;
    const cx = x(inside(item.score)), column = Math.round(cx / 9);
    const row = rows.get(column) || 0;
    rows.set(column, row + 1);
    svg.append(dot(cx, TOP + 8 + Math.min(row, 4) * 10, item));
  });
  $("histogram").replaceChildren(svg);
}

function map(good) {
  const { prior, negative_prior: negative } = model.priors;
  const all = [...prior, ...negative, ...good.map((each) => each.position)];
  const reach = (values) => [Math.min(...values), Math.max(...values)];
  let [low, high] = reach([...prior, ...negative].map((each) => each[0]));
  const own = reach(all.map((each) => each[0]));
  const span = high - low;
  low = Math.max(own[0], low - 0.6 * span) - 0.05 * span;
  high = Math.min(own[1], high + 0.6 * span) + 0.05 * span;
  const tall = Math.min(Math.max(...all.map((each) => each[1])), 2.5 * Math.max(...[...prior, ...negative].map((each) => each[1]))) * 1.08 || 1;
  const out = good.filter(outlying).length;
  const label = `Map of the latent space: the prior on the left, the negative prior on the right, and ${counted(good.length, "image")}, ${out} of them called outliers`;
  const [svg, x] = frame(label, low, high, nice(low, high));
  const y = (value) => HIGH - BOTTOM - (Math.min(value, tall) / tall) * (HIGH - BOTTOM - TOP);
  const inside = (value) => Math.min(Math.max(value, low), high);
  for (const [cloud, fill] of [[prior, "var(--fill0)"], [negative, "var(--fill4)"]]) {
    for (const [along, across] of cloud) svg.append(drawn("circle", { cx: x(along), cy: y(across), r: 2.6, fill }));
  }
  items.forEach((item) => {
    if (!item.error) svg.append(dot(x(inside(item.position[0])), y(item.position[1]), item));
  });
  $("map").replaceChildren(svg);
}

/* ---- events ---- */

const guarded = (work) => (...given) => Promise.resolve(work(...given)).catch((error) => say(error.message, true));

$("files").addEventListener("change", guarded(async (event) => {
  await score([...event.target.files]);
  event.target.value = "";
}));
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
  });
}
document.addEventListener("drop", guarded((event) => score([...event.dataTransfer.files])));
document.addEventListener("paste", guarded((event) => score([...event.clipboardData.files])));
$("rate").addEventListener("input", (event) => {
  rate = slid(Number(event.target.value));
  show();
});
$("heat").addEventListener("change", (event) => document.body.classList.toggle("plain", !event.target.checked));
$("calibrated").addEventListener("click", () => {
  rate = null;
  show();
});
$("clear").addEventListener("click", () => {
  [items, earlier] = [[], 0];
  show();
  say("All images were removed.");
  $("files").focus();
});
$("again").addEventListener("click", guarded(() => {
  seed += 1;
  return draw();
}));
$("model").addEventListener("change", guarded((event) => take(event.target.value)));
$("keyform").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  guarded(async () => {
    await begin();
    $("keyform").hidden = true;
  })();
});
guarded(begin)();
