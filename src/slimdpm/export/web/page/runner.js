// Images from an exported folder: the twin of slimdpm/export/runner.py, without a page. What the folder says is
// somebody's data: it is checked before it is used.

export const FORMAT = 1;
const MOST = 2 ** 13; // of a side, of channels, of tokens
const NUMBERS = 2 ** 26; // of a sample or an image
const JSON_BYTES = 64 * 2 ** 20;
const FILE_BYTES = 2 ** 31; // WebAssembly holds no more
const CLASSES = 2 ** 15;
const NAME = /^[A-Za-z0-9_-][A-Za-z0-9._-]*(\/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$/; // no scheme, no "..", nothing encoded

/** Something that the user can mend, in one line. */
export class Wrong extends Error {}

export function oneLine(text) {
  const line = String(text).replace(/[\p{C}\s]+/gu, " ").trim();
  return line.length <= 500 ? line : `${line.slice(0, 250)} ... ${line.slice(-240)}`;
}

function wrong(message) {
  throw new Wrong(oneLine(message));
}

// The folder.

/** A value deep in what a JSON holds, of the right kind (number, integer, string, boolean, array, object), in bounds. */
export function at(value, keys, kind, least = -Infinity, most = Infinity) {
  for (const key of keys) {
    if (value === null || typeof value !== "object" || !Object.hasOwn(value, key))
      wrong(`the folder's ${keys[0]} is incomplete: ${key} is missing`);
    value = value[key];
  }
  const found = Array.isArray(value) ? "array" : value === null ? "null" : typeof value;
  const fits = kind === "integer" ? Number.isSafeInteger(value) : found === kind;
  if (!fits || (found === "number" && !(value >= least && value <= most)))
    wrong(`the folder's ${keys.join(" ")} is ${JSON.stringify(value).slice(0, 40)}, which cannot be`);
  return value;
}

/** slimdpm.json, once all that is used of it is known to be of its kind. */
export function checkManifest(manifest) {
  if (manifest === null || typeof manifest !== "object" || manifest.format !== FORMAT)
    wrong(`slimdpm.json is of another format than this page reads (${FORMAT})`);
  for (const key of ["shape", "image"]) {
    const sides = at(manifest, [key], "array");
    for (let i = 0; i < 3; i++) at(manifest, [key, i], "integer", 1, MOST);
    const count = sides.reduce((a, b) => a * b, 1);
    if (sides.length !== 3 || count < 16 || count > NUMBERS) wrong(`the folder's ${key} cannot be: ${sides.join(" x ")}`);
  }
  if ((manifest.step ?? null) !== null) at(manifest, ["step"], "integer", 1, MOST);
  at(manifest, ["scale"], "number", 1e-9, 1e9);
  for (const name of Object.keys(at(manifest, ["files"], "object"))) {
    if (!NAME.test(name)) wrong(`the folder names a file outside it: ${name}`);
    at(manifest, ["files", name, "bytes"], "integer", 0, FILE_BYTES);
    at(manifest, ["files", name, "sha256"], "string");
  }
  const wanted = ["sampler.json", at(manifest, ["unet"], "string")];
  for (const key of ["decoder", "text_encoder"]) if (key in manifest) wanted.push(at(manifest, [key], "string"));
  if (conditionOf(manifest).kind === "text") wanted.push("tokens.json", at(manifest, ["text_encoder"], "string"));
  for (const name of wanted)
    if (!Object.hasOwn(manifest.files, name)) wrong(`the folder's files are incomplete: ${name} is missing`);
  return manifest;
}

/** Shape and image for another height and width than the pipeline's own; no size is its own. */
export function sized(manifest, size) {
  const { shape, image, step } = manifest;
  if (!size || String(size) === String(image.slice(1))) return { shape, image };
  const factor = Math.floor(image[1] / shape[1]);
  if (!step || step % factor || image[1] !== shape[1] * factor || image[2] !== shape[2] * factor)
    wrong(`this model makes images of ${image[1]} x ${image[2]} alone`);
  const fits = (side) => Number.isSafeInteger(side) && side % step === 0 && side >= 2 * step && side <= MOST;
  const pixels = Math.floor(NUMBERS / Math.max(shape[0], image[0]));
  if (!size.every(fits) || size[0] * size[1] > pixels)
    wrong(`height and width are multiples of ${step}, from ${2 * step} to ${MOST}, and of ${pixels} pixels together`);
  return { shape: [shape[0], ...size.map((side) => side / factor)], image: [image[0], ...size] };
}

/** What images are asked for by: ``{kind: "none" | "class" | "text", guidance, guided, classes: [[number, name]]}``. */
export function conditionOf(manifest) {
  const told = manifest.condition ?? null;
  if (told === null) return { kind: "none", guided: false, guidance: 1 };
  const kind = at(told, ["kind"], "string");
  const guidance = at(told, ["guidance"], "number", 1, 1000);
  if (kind === "text") return { kind, guided: true, guidance };
  if (kind !== "class") wrong(`this page knows no condition of the kind ${kind}`);
  const rows = at(told, ["rows"], "integer", 1, CLASSES);
  const none = told.null ?? null;
  if (none !== null) at(told, ["null"], "integer", 0, rows - 1);
  const names = at(told, ["names"], "object");
  const numbers = Array.from({ length: rows }, (_, i) => i).filter((i) => i !== none);
  const named = (i) => (Object.hasOwn(names, i) ? oneLine(names[i]) : `class ${i}`);
  return { kind, guided: none !== null, guidance, none, classes: numbers.map((i) => [i, named(i)]) };
}

/** The sampler that was asked for, checked; see `denoise`. */
export function tableOf(tables, scheduler, steps) {
  const table = at(tables, ["schedulers", scheduler, String(steps)], "object");
  at(table, ["start"], "number", 0, 1e6);
  const known = { prediction: ["epsilon", "v_prediction", "sample"], memory: ["clean", "noise", "output"] };
  for (const [key, values] of Object.entries(known))
    if (!values.includes(table[key])) wrong("the folder's sampler.json is of a kind that this page does not know");
  if ((table.clip ?? null) !== null) at(table, ["clip"], "number", 1e-6, 1e6);
  at(table, ["steps"], "array").forEach((row, number) => {
    for (const key of ["t", "scale", "alpha", "sigma", "x", "e", "n"])
      at(table, ["steps", number, key], "number", -1e9, 1e9);
    for (const lag of Object.keys(at(table, ["steps", number, "m"], "object"))) {
      at(table, ["steps", number, "m", lag], "number", -1e9, 1e9);
      if (!/^\d{1,6}$/.test(lag) || Number(lag) > number)
        wrong("the folder's sampler.json looks back to a step before the first");
    }
    at(row, ["draws"], "boolean");
  });
  return table;
}

/** ``[[scheduler, [steps, ...]], ...]`` of sampler.json. */
export function samplersOf(tables) {
  const known = Object.keys(at(tables, ["schedulers"], "object"));
  const found = known.map((name) => [name, Object.keys(at(tables, ["schedulers", name], "object")).map(Number)]);
  if (!found.length || found.some(([, counts]) => !counts.length || !counts.every(Number.isSafeInteger)))
    wrong("the folder's sampler.json offers no sampler");
  return found;
}

// Files: each of the declared size and digest.

/** The bytes of a file, never more than `most`; `told` is called with how many came. */
export async function bytesOf(url, most, told = () => {}) {
  const name = url.pathname.split("/").slice(-2).join("/");
  const answer = await fetch(url, { cache: "no-cache" }).catch((error) => wrong(`${name} cannot be fetched: ${error.message}`));
  if (!answer.ok) wrong(`${name} is missing (${answer.status})`);
  const parts = [];
  let size = 0;
  const reader = answer.body.getReader();
  for (;;) {
    const { done, value } = await reader.read().catch((error) => wrong(`${name} was cut off: ${error.message}`));
    if (done) break;
    size += value.length;
    if (size > most) {
      await reader.cancel();
      wrong(`${name} is damaged: it is larger than the ${most.toLocaleString("en")} bytes that it should have`);
    }
    parts.push(value);
    told(value.length);
  }
  const bytes = new Uint8Array(size);
  parts.reduce((place, part) => (bytes.set(part, place), place + part.length), 0);
  return bytes;
}

export function parsed(bytes, name) {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    wrong(`${name} cannot be read: ${error.message}`);
  }
}

/** One of the manifest's files, whole and unchanged. */
export async function fileOf(folder, manifest, name, told) {
  const { bytes: size, sha256 } = manifest.files[name];
  const bytes = await bytesOf(new URL(name, folder), name.endsWith(".json") ? Math.min(size, JSON_BYTES) : size, told);
  if (bytes.length !== size)
    wrong(`${name} is damaged: it has ${bytes.length.toLocaleString("en")} bytes and should have ${size.toLocaleString("en")}`);
  if (!globalThis.crypto?.subtle) wrong("the files cannot be checked: open this page over https or from localhost");
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  if (Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("") !== sha256)
    wrong(`${name} is damaged: its content is not what was exported`);
  return bytes;
}

/** What a folder offers: its manifest, samplers and words. The graphs are fetched when they are needed. */
export async function openFolder(folder) {
  const manifest = checkManifest(parsed(await bytesOf(new URL("slimdpm.json", folder), JSON_BYTES), "slimdpm.json"));
  const json = async (name) => parsed(await fileOf(folder, manifest, name), name);
  const condition = conditionOf(manifest);
  const tables = await json("sampler.json");
  const words = condition.kind === "text" ? new Words(await json("tokens.json")) : null;
  return { folder, manifest, condition, tables, samplers: samplersOf(tables), words };
}

export const graphsOf = (manifest) => ["unet", "decoder", "text_encoder"].filter((key) => key in manifest);

// Noise: PyTorch's, for each image a stream of its own.

/** The low 32 bits of NumPy's SeedSequence([seed, image]).generate_state(1, uint64) >> 1. */
export function streamSeed(seed, image) {
  const wordsOf = (n) => (n < 2 ** 32 ? [n] : [n % 2 ** 32, Math.floor(n / 2 ** 32)]);
  const entropy = [...wordsOf(seed), ...wordsOf(image)];
  let constant = 0x43b0d7e5;
  const hash = (value) => {
    value ^= constant;
    constant = Math.imul(constant, 0x931e8875);
    value = Math.imul(value, constant);
    return value ^ (value >>> 16);
  };
  const mix = (x, y) => {
    const value = Math.imul(0xca01f9dd, x) - Math.imul(0x4973f715, y);
    return value ^ (value >>> 16);
  };
  const pool = [0, 1, 2, 3].map((i) => hash(entropy[i] ?? 0));
  for (let from = 0; from < 4; from++)
    for (let to = 0; to < 4; to++) if (from !== to) pool[to] = mix(pool[to], hash(pool[from]));
  constant = 0x8b51f9dd;
  const [low, high] = pool.slice(0, 2).map((value) => {
    value ^= constant;
    constant = Math.imul(constant, 0x58f38ded);
    value = Math.imul(value, constant);
    return value ^ (value >>> 16);
  });
  return ((low >>> 1) | (high << 31)) >>> 0;
}

/** MT19937 from init_genrand: a function that gives the next 32 bits. */
export function twister(seed) {
  const state = new Int32Array(624);
  state[0] = seed;
  for (let i = 1; i < 624; i++) state[i] = Math.imul(1812433253, state[i - 1] ^ (state[i - 1] >>> 30)) + i;
  let next = 624;
  return () => {
    if (next === 624) {
      for (let i = 0; i < 624; i++) {
        const y = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
        state[i] = state[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      next = 0;
    }
    let y = state[next++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  };
}

/** Draws what PyTorch's CPU generator draws for this image, rounded where it rounds; at least 16 numbers at once. */
export function randomStream(seed, image) {
  const float32 = Math.fround;
  const bits = twister(streamSeed(seed, image));
  const uniform = (count) => Float64Array.from({ length: count }, () => (bits() & 0xffffff) / 2 ** 24);
  const normal = (numbers, made, first) => {
    for (let block = 0; block + 16 <= numbers.length; block += 16)
      for (let i = block; i < block + 8; i++) {
        const radius = float32(Math.sqrt(-2 * float32(Math.log(1 - numbers[i]))));
        const angle = float32(float32(2 * Math.PI) * numbers[i + 8]);
        made[first + i] = radius * float32(Math.cos(angle));
        made[first + i + 8] = radius * float32(Math.sin(angle));
      }
  };
  return (count) => {
    const made = new Float32Array(count);
    normal(uniform(count), made, 0);
    if (count % 16) normal(uniform(16), made, count - 16);
    return made;
  };
}

// The sampler: between two calls of the network everything is linear.

/**
 * From noise to a clean sample, in double precision between the calls of the network.
 * @param predict what the network says of (sample, timestep); may take its time.
 * @param draw of `randomStream`.
 * @param told is given the number of each step and its clean sample; if it answers false the work is stopped.
 */
export async function denoise(predict, table, draw, count, told) {
  const filled = (f) => Float64Array.from({ length: count }, (_, i) => f(i));
  let x = Float64Array.from(draw(count), (value) => value * table.start);
  let memory = [];
  const longest = 1 + Math.max(0, ...table.steps.flatMap((row) => Object.keys(row.m).map(Number)));
  for (const [number, row] of table.steps.entries()) {
    const given = x.map((value) => value * row.scale);
    const e = await predict(Float32Array.from(given), row.t);
    if (e.length !== count || !e.every(Number.isFinite))
      wrong("the network's output is not finite or of another shape: it is damaged");
    const found = {
      epsilon: (i) => (given[i] - row.sigma * e[i]) / row.alpha,
      v_prediction: (i) => row.alpha * given[i] - row.sigma * e[i],
      sample: (i) => e[i],
    }[table.prediction];
    const clip = table.clip ?? Infinity;
    const clean = filled((i) => Math.min(Math.max(found(i), -clip), clip));
    const noise = table.memory === "noise" && filled((i) => (given[i] - row.alpha * clean[i]) / row.sigma);
    memory = [{ clean, noise, output: e }[table.memory], ...memory].slice(0, longest);
    const back = Object.entries(row.m).map(([lag, value]) => [memory[lag], value]);
    const fresh = row.draws ? draw(count) : null;
    const before = x;
    x = filled((i) => {
      let value = row.x * before[i] + row.e * e[i];
      for (const [kept, factor] of back) value += factor * kept[i];
      return fresh === null ? value : value + row.n * fresh[i];
    });
    if ((await told(number, clean)) === false) return null;
  }
  return Float32Array.from(x);
}

/** Guidance: away from what the network says without the condition. */
export const guided = (without, with_, scale) => with_.map((value, i) => without[i] + scale * (value - without[i]));

/** RGBA bytes of numbers (C, H, W) from -1 to 1; one channel is grey, of more than three the first three are seen. */
export function pixelsOf(sample, [channels, height, width]) {
  const pixels = new Uint8ClampedArray(4 * height * width).fill(255);
  const plane = height * width;
  for (let channel = 0; channel < 3; channel++) {
    const first = channels >= 3 ? channel * plane : 0;
    for (let i = 0; i < plane; i++)
      pixels[4 * i + channel] = Math.fround(Math.fround(Math.min(Math.max(sample[first + i], -1), 1) + 1) * 127.5);
  }
  return pixels; // clamped arrays round half to even, as NumPy does
}

// Text.

/** CLIP's byte-pair encoding, from tokens.json. */
export class Words {
  static parts =
    /<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}\p{Nl}\p{No}]+|\p{Nd}|[^\s\x1c-\x1f\x85\p{L}\p{N}]+/gu;

  constructor(told) {
    this.numbers = new Map(Object.entries(at(told, ["vocabulary"], "object")));
    const pairs = at(told, ["merges"], "array").filter((pair) => pair?.length === 2);
    this.ranks = new Map(pairs.map((pair, rank) => [pair.join(" "), rank]));
    this.length = at(told, ["length"], "integer", 2, MOST);
    for (const key of ["begin", "end", "pad"]) this[key] = at(told, [key], "integer", 0, 2 ** 31 - 1);
    const plain = Array.from({ length: 256 }, (_, i) => i).filter(
      (i) => (i >= 33 && i < 127) || (i >= 161 && i < 173) || i >= 174,
    ); // bytes that stand for themselves
    let rest = 256;
    this.bytes = Array.from({ length: 256 }, (_, i) => String.fromCharCode(plain.includes(i) ? i : rest++));
  }

  /** Numbers (T), cut or filled to the length that the text encoder takes. */
  encode(text) {
    const lower = text.normalize("NFC").replace(/[\s\x1c-\x1f\x85]+/gu, " ").toLowerCase();
    const found = (lower.match(Words.parts) ?? []).flatMap((part) => this.#encoded(part)).slice(0, this.length - 2);
    const numbers = new Int32Array(this.length).fill(this.pad);
    numbers.set([this.begin, ...found, this.end]);
    return numbers;
  }

  #encoded(part) {
    if (part.startsWith("<|") && this.numbers.has(part)) return [this.numbers.get(part)];
    let word = Array.from(new TextEncoder().encode(part), (byte) => this.bytes[byte]);
    word[word.length - 1] += "</w>";
    const rank = (i) => this.ranks.get(`${word[i]} ${word[i + 1]}`) ?? Infinity;
    while (word.length > 1) {
      const best = word.slice(1).reduce((least, _, i) => (rank(i) < rank(least) ? i : least), 0);
      if (rank(best) === Infinity) break;
      const [left, right] = [word[best], word[best + 1]];
      const merged = [];
      for (const piece of word) {
        const joins = merged.length > 0 && merged.at(-1) === left && piece === right;
        if (joins) merged[merged.length - 1] += piece;
        else merged.push(piece);
      }
      word = merged;
    }
    return word.map((piece) => this.numbers.get(piece) ?? this.end);
  }
}
