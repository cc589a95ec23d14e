// The networks at work, away from the page so that it stays at hand. Asked by messages, one piece of work at a time:
//   open  {place, manifest, graphs: {unet, decoder, text_encoder}, device}   → opened {device, threads, remark}
//   make  {place, table, size, seed, label, none, tokens, guidance}   → noise, step ..., image
//   stop  → what is being made ends after its step: stopped
import { denoise, guided, oneLine, pixelsOf, randomStream, sized, Wrong } from "./runner.js";

const RUNTIME = new URL("runtime/", import.meta.url).href;
const BUILDS = {
  wasm: ["ort.wasm.min.js", "ort-wasm-simd-threaded"],
  webgpu: ["ort.webgpu.min.js", "ort-wasm-simd-threaded.asyncify"],
};
const loaded = {}; // the runtime's builds
const models = {}; // by place: {manifest, sessions, Tensor}
let stopping = false;

const threads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency ?? 1, 8) : 1;

async function build(device) {
  if (loaded[device]) return loaded[device];
  const [script, binary] = BUILDS[device];
  const ort = await import(RUNTIME + script);
  ort.env.wasm.wasmPaths = { mjs: `${RUNTIME}${binary}.js`, wasm: `${RUNTIME}${binary}.wasm` };
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = "fatal";
  return (loaded[device] = ort);
}

async function sessionsOf(device, manifest, graphs) {
  const ort = await build(device);
  const sessions = {};
  for (const [key, bytes] of Object.entries(graphs)) {
    const options = { executionProviders: [device], graphOptimizationLevel: "all", logSeverityLevel: 4 };
    sessions[key] = await ort.InferenceSession.create(bytes, options).catch((error) => {
      throw new Wrong(oneLine(`${manifest[key]} cannot be loaded: ${error?.message ?? error}`));
    });
  }
  return { manifest, sessions, Tensor: ort.Tensor };
}

async function open({ place, manifest, graphs, device }) {
  for (const session of Object.values(models[place]?.sessions ?? {})) await session.release();
  delete models[place];
  let remark = "";
  if (device === "webgpu") {
    try {
      if (!(await navigator.gpu?.requestAdapter())) throw new Wrong("this browser has none here");
      models[place] = await sessionsOf(device, manifest, graphs);
    } catch (error) {
      remark = oneLine(`WebGPU cannot be used, WebAssembly is: ${error?.message ?? error}`);
      device = "wasm";
    }
  }
  models[place] ??= await sessionsOf("wasm", manifest, graphs);
  postMessage({ kind: "opened", place, device, threads: device === "wasm" ? threads : 0, remark });
}

async function run(session, inputs) {
  const made = (await session.run(inputs))[session.outputNames[0]];
  const data = await made.getData();
  const numbers = Float32Array.from(data);
  made.dispose?.();
  return { numbers, dims: made.dims };
}

/** What the network is given besides: rows of the condition, without it first where it is guided. */
async function conditionOf({ Tensor, sessions }, { label, none, tokens, guidance }) {
  if (label !== undefined) {
    const rows = guidance === 1 ? [label] : [none, label];
    return { class_labels: new Tensor("int64", BigInt64Array.from(rows, BigInt), [rows.length]) };
  }
  if (tokens === undefined) return {};
  const rows = guidance === 1 ? tokens.slice(0, 1) : [tokens[1], tokens[0]];
  const length = rows[0].length;
  const input_ids = new Tensor("int32", Int32Array.from(rows.flatMap((row) => [...row])), [rows.length, length]);
  const { numbers, dims } = await run(sessions.text_encoder, { input_ids });
  return { encoder_hidden_states: new Tensor("float32", numbers, dims) };
}

async function make(asked) {
  const model = models[asked.place];
  const { manifest, sessions, Tensor } = model;
  const { shape, image } = sized(manifest, asked.size);
  const count = shape.reduce((a, b) => a * b, 1);
  const began = performance.now();
  const given = await conditionOf(model, asked);
  const rows = asked.guidance === 1 ? 1 : 2;

  const predict = async (x, t) => {
    const doubled = new Float32Array(rows * count);
    for (let row = 0; row < rows; row++) doubled.set(x, row * count);
    const sample = new Tensor("float32", doubled, [rows, ...shape]);
    const timestep = new Tensor("float32", [t], [1]);
    const { numbers, dims } = await run(sessions.unet, { sample, timestep, ...given });
    if (String(dims) !== String([rows, ...shape])) throw new Wrong("the network's output is of another shape");
    return rows === 1 ? numbers : guided(numbers.subarray(0, count), numbers.subarray(count), asked.guidance);
  };
  const show = (kind, sample, rest) =>
    postMessage({ kind, place: asked.place, pixels: pixelsOf(sample, shape), height: shape[1], width: shape[2], ...rest });
  // Latents are larger than pixels: a third of them is seen.
  const seen = sessions.decoder ? (sample) => sample.map((value) => value / 3) : (sample) => sample;

  show("noise", seen(randomStream(asked.seed, 0)(count)), {});
  let before = performance.now();
  let sample = await denoise(predict, asked.table, randomStream(asked.seed, 0), count, async (number, clean) => {
    const now = performance.now();
    show("step", seen(clean), { number, milliseconds: now - before });
    await breath();
    before = performance.now();
    return !stopping;
  });
  if (sample === null) return postMessage({ kind: "stopped", place: asked.place });
  const stepped = performance.now();
  if (sessions.decoder) {
    const latents = new Tensor("float32", sample.map((value) => value / manifest.scale), [1, ...shape]);
    const { numbers, dims } = await run(sessions.decoder, { latent_sample: latents });
    if (String(dims) !== String([1, ...image])) throw new Wrong("the decoder's output is of another shape");
    sample = numbers;
  }
  if (!sample.every(Number.isFinite)) throw new Wrong("the image is not finite: a network is damaged");
  const [, height, width] = image;
  const ended = performance.now();
  const times = { all: ended - began, decoder: sessions.decoder ? ended - stepped : 0 };
  postMessage({ kind: "image", place: asked.place, pixels: pixelsOf(sample, image), height, width, ...times });
}

/** Lets a message come in between two steps. */
function breath() {
  return new Promise((done) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = done;
    port2.postMessage(null);
  });
}

self.onmessage = async ({ data }) => {
  if (data.kind === "stop") {
    stopping = true;
    return;
  }
  stopping = false;
  try {
    await { open, make }[data.kind](data);
  } catch (error) {
    const told = error instanceof Wrong ? error.message : `the runtime failed: ${error?.message ?? error}`;
    postMessage({ kind: "error", place: data.place, message: oneLine(told) });
  }
};
