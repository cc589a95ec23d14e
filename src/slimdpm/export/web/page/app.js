// The page: what was asked for goes to the worker, what comes back is drawn.
import { bytesOf, fileOf, graphsOf, oneLine, openFolder, parsed, sized, tableOf, Wrong } from "./runner.js";

const HERE = new URL("./", import.meta.url);
const TITLES = { model: "Student", teacher: "Teacher" };
const find = (id) => document.getElementById(id);
const fields = Object.fromEntries(
  ["prompt", "negative", "class", "height", "width", "seed", "sampler", "steps", "guidance", "device"].map((id) => [id, find(id)]),
);
const models = []; // {place, title, offer (see openFolder), opened: the device it was opened for, view}
let worker = null;
let busy = false;

const say = (text) => (find("status").textContent = text);
const complain = (error) =>
  (find("error").textContent = oneLine(error instanceof Wrong ? error.message : `something failed: ${error?.message ?? error}`));
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)}\u00a0MB`;
const milliseconds = (ms) => ms.toFixed(ms < 10 ? 1 : 0);
const seconds = (ms) => `${(ms / 1000).toFixed(2)}\u00a0s`;

// What the folders offer.

async function start() {
  const site = parsed(await bytesOf(new URL("site.json", HERE), 2 ** 16), "site.json");
  const places = (Array.isArray(site.models) ? site.models : []).filter((place) => Object.hasOwn(TITLES, place));
  if (!places.length) throw new Wrong("site.json names no model");
  for (const place of places) {
    const offer = await openFolder(new URL(`${place}/`, HERE));
    const title = places.length > 1 ? TITLES[place] : "Image";
    models.push({ place, title, offer, opened: null, view: view(title, offer.manifest) });
  }
  const { manifest, condition, samplers } = models[0].offer;
  const offered = { [condition.kind]: true, guidance: condition.guided, size: offerSizes() };
  for (const element of document.querySelectorAll("[data-for]")) element.hidden = !offered[element.dataset.for];
  fill(fields.class, condition.classes ?? []);
  fields.guidance.value = condition.guidance;
  fill(fields.sampler, samplers.map(([name]) => [name, name]), manifest.default?.scheduler);
  offerSteps(manifest.default?.steps);
  const card = await navigator.gpu?.requestAdapter().catch(() => null);
  if (card) fields.device.append(new Option("GPU (WebGPU)", "webgpu"));
  if (card && !(card.info?.isFallbackAdapter ?? card.isFallbackAdapter)) fields.device.value = "webgpu";
  find("made").textContent = oneLine(`Made by ${manifest["made by"]} with ONNX Runtime Web ${site.runtime}.`);
  find("make").disabled = false;
  const weight = models.reduce((all, { offer }) => all + weightOf(offer.manifest), 0);
  say(`Ready. The first image loads ${megabytes(weight)} of weights.`);
}

const weightOf = (manifest) => graphsOf(manifest).reduce((all, key) => all + manifest.files[manifest[key]].bytes, 0);

function fill(select, pairs, chosen) {
  select.replaceChildren(...pairs.map(([value, text]) => new Option(text, value)));
  if (pairs.some(([value]) => String(value) === String(chosen))) select.value = String(chosen);
}

/** Whether there are other sizes than the models' own; the largest step is a multiple of the others. */
function offerSizes() {
  const steps = models.map(({ offer }) => offer.manifest.step);
  const step = Math.max(...steps.map(Number));
  for (const [i, side] of [fields.height, fields.width].entries()) {
    side.value = models[0].offer.manifest.image[1 + i];
    if (step) Object.assign(side, { step, min: 2 * step });
  }
  return steps.every((own) => own && step % own === 0);
}

function offerSteps(chosen) {
  const [, counts] = models[0].offer.samplers.find(([name]) => name === fields.sampler.value);
  fill(fields.steps, counts.map((count) => [count, count]), chosen);
}

/** A place on the page for the images of a model. */
function view(title, manifest) {
  const section = find("model").content.cloneNode(true).firstElementChild;
  const part = (selector) => section.querySelector(selector);
  part("h2").textContent = title;
  part(".weight").textContent = `${megabytes(weightOf(manifest))} of weights`;
  const canvas = part("canvas");
  [, canvas.height, canvas.width] = manifest.image;
  canvas.setAttribute("aria-label", `${title}: no image yet`);
  find("models").append(section);
  return { canvas, progress: part("progress"), time: part(".time"), download: part(".download"), each: part(".each") };
}

// The worker, one question at a time.

function ask(question, transfer = [], told = () => {}) {
  worker ??= new Worker(new URL("worker.js", HERE), { type: "module" });
  return new Promise((done, failed) => {
    worker.onmessage = ({ data }) => {
      if (data.kind === "error") failed(new Wrong(data.message));
      else if (["opened", "image", "stopped"].includes(data.kind)) done(data);
      else told(data);
    };
    worker.onerror = (event) => {
      event.preventDefault();
      worker = null;
      for (const model of models) model.opened = null;
      failed(new Wrong(`the worker failed: ${event.message ?? "its script cannot be loaded"}`));
    };
    worker.postMessage(question, transfer);
  });
}

/** The networks of a model, loaded for a device unless they are already. */
async function opened(model, device) {
  if (model.opened?.asked === device) return model.opened;
  const { offer, place, title } = model;
  const { folder, manifest } = offer;
  const whole = weightOf(manifest);
  let come = 0;
  say(`${title}: loading ${megabytes(whole)} …`);
  const graphs = {};
  for (const key of graphsOf(manifest))
    graphs[key] = await fileOf(folder, manifest, manifest[key], (bytes) => {
      come += bytes;
      model.view.progress.value = come / whole;
    }).catch(forgotten);
  say(`${title}: preparing the networks …`);
  const buffers = Object.values(graphs).map((bytes) => bytes.buffer);
  const found = await ask({ kind: "open", place, manifest, graphs, device }, buffers);
  return (model.opened = { ...found, asked: device });
}

/** A damaged file is not kept: the next try asks the server again. */
async function forgotten(error) {
  const names = (await globalThis.caches?.keys().catch(() => [])) ?? [];
  for (const name of names) if (name.startsWith(`slimdpm ${HERE.href} `)) await caches.delete(name);
  throw error;
}

// An image.

/** What the form asks for, in the worker's words. */
function asked() {
  const { condition, words } = models[0].offer;
  const seed = fields.seed.value.trim() === "" ? NaN : Number(fields.seed.value);
  if (!Number.isSafeInteger(seed) || seed < 0) throw new Wrong("the seed is a whole number from 0 to 9007199254740991");
  const guidance = condition.guided ? Number(fields.guidance.value) : 1;
  if (!(guidance >= 1 && guidance <= 1000)) throw new Wrong("guidance is a number from 1 to 1000; 1 is none");
  const size = [fields.height, fields.width].map((side) => (side.value.trim() === "" ? NaN : Number(side.value)));
  for (const { offer } of models) sized(offer.manifest, size);
  const wish = { seed, guidance, size, scheduler: fields.sampler.value, steps: Number(fields.steps.value) };
  if (condition.kind === "class") return { ...wish, label: Number(fields.class.value), none: condition.none };
  if (condition.kind === "none") return wish;
  if (!fields.prompt.value.trim()) throw new Wrong("this model makes images of a text: write a prompt");
  return { ...wish, tokens: [words.encode(fields.prompt.value), words.encode(fields.negative.value)] };
}

/** Makes the image of one model; false if it was stopped. */
async function make(model, wish) {
  const { view, place, title, offer } = model;
  const device = await opened(model, fields.device.value);
  if (!busy) return false;
  const table = tableOf(offer.tables, wish.scheduler, wish.steps);
  const times = [];
  say(`${title}: ${table.steps.length} steps of ${wish.scheduler} …`);
  view.progress.max = table.steps.length;
  const made = await ask({ kind: "make", place, table, ...wish }, [], (data) => {
    draw(view.canvas, data);
    if (data.kind !== "step") return;
    times.push(data.milliseconds);
    view.progress.value = times.length;
    view.time.textContent = `step ${times.length} of ${table.steps.length}: ${milliseconds(data.milliseconds)} ms`;
    view.each.textContent = times.map(milliseconds).join(", ");
  });
  if (made.kind === "stopped") return false;
  draw(view.canvas, made);
  model.median = times.toSorted((a, b) => a - b)[times.length >> 1];
  const decoder = made.decoder ? `, decoder ${milliseconds(made.decoder)} ms` : "";
  view.time.textContent = `${milliseconds(model.median)} ms a step${decoder}, ${seconds(made.all)} in all`;
  view.canvas.setAttribute("aria-label", `${title}: image of seed ${wish.seed}, ${wish.steps} steps of ${wish.scheduler}`);
  await downloadable(view, `${place}-${wish.seed}-${wish.scheduler.replace(/\W/g, "")}-${wish.steps}.png`);
  model.where = device.device === "webgpu" ? "WebGPU" : `WebAssembly, ${device.threads} thread${device.threads > 1 ? "s" : ""}`;
  if (device.remark) model.where += ` (${device.remark})`;
  return true;
}

function draw(canvas, { pixels, width, height }) {
  canvas.width = width;
  canvas.height = height;
  canvas.classList.toggle("small", Math.max(width, height) < 192);
  canvas.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
}

async function downloadable(view, name) {
  const blob = await new Promise((done) => view.canvas.toBlob(done, "image/png"));
  if (view.download.href) URL.revokeObjectURL(view.download.href);
  view.download.href = URL.createObjectURL(blob);
  view.download.download = name;
  view.download.removeAttribute("aria-disabled");
}

async function generate() {
  if (busy) return;
  find("error").textContent = "";
  try {
    const wish = asked();
    working(true);
    for (const model of models) if (!(await make(model, wish))) return say("Stopped.");
    say(summary());
  } catch (error) {
    say("");
    complain(error);
  } finally {
    working(false);
  }
}

function summary() {
  const [first, second] = models;
  const both = second ? ` A step of the student is ${(second.median / first.median).toFixed(1)} times as fast as the teacher's.` : "";
  return `Done: ${milliseconds(first.median)} ms a step with ${first.where}.${both}`;
}

function working(now) {
  const focused = document.activeElement;
  busy = now;
  find("make").disabled = now;
  find("stop").disabled = !now;
  if (now && focused === find("make")) find("stop").focus();
  if (!now && focused === find("stop")) find("make").focus();
}

find("form").addEventListener("submit", (event) => {
  event.preventDefault();
  generate();
});
find("stop").addEventListener("click", () => {
  busy = false;
  worker?.postMessage({ kind: "stop" });
});
find("dice").addEventListener("click", () => {
  fields.seed.value = crypto.getRandomValues(new Uint32Array(1))[0];
});
fields.sampler.addEventListener("change", () => offerSteps(fields.steps.value));
addEventListener("unhandledrejection", (event) => complain(event.reason));

start().catch((error) => {
  say("");
  complain(error);
});
// Without a service worker there is no page offline; with it, once all is kept, the page says so to whoever looks.
navigator.serviceWorker?.register(new URL("sw.js", HERE)).catch(() => {});
navigator.serviceWorker?.ready.then(() => (document.documentElement.dataset.kept = ""));
