// Classifies what is drawn, chosen or typed, with the model in this folder. `preprocessing.json` says what it takes.
import * as ort from "./runtime/ort.wasm.bundle.min.mjs";
import { grey, overBlack, resize } from "./pixels.js";

const SHOWN = 10; // classes
const TOLERANCE = 1e-3; // how far a probability may be from the one in training
const SMALL = 64; // grey images up to this side can be drawn
const PAD = 336; // pixels of the drawing area, about

const find = (id) => document.getElementById(id);
const file = async (name) => {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name} is missing (${response.status})`);
  return response;
};
let about, session, sample, last = Promise.resolve();

async function start() {
  ort.env.wasm.numThreads = 1; // more would need headers that plain web servers do not send
  ort.env.wasm.wasmPaths = { wasm: new URL("runtime/ort-wasm-simd-threaded.wasm", import.meta.url).href };
  about = await (await file("preprocessing.json")).json();
  sample = await (await file("sample.json")).json();
  if (about.kind === "images") sample.rows = sample.rows.map((text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0)));
  const accuracy = about.accuracy;
  document.title = `${about.pipeline}, version ${about.version}`;
  find("title").textContent = about.pipeline;
  find("about").textContent = `version ${about.version}, ` + (accuracy
    ? `accuracy ${accuracy.estimate.toFixed(3)} [${accuracy.lower.toFixed(3)}, ${accuracy.upper.toFixed(3)}] on test rows (95 % interval)`
    : "not evaluated on test rows");
  session = await ort.InferenceSession.create(new Uint8Array(await (await file("model.onnx")).arrayBuffer()), { executionProviders: ["wasm"] });
  about.kind === "images" ? offerImages() : offerTable();
  find("check").onclick = test;
  find("check").disabled = false;
  await test(); // the first pass is a slow one, too
  find("status").hidden = true;
  document.querySelector("main").hidden = false;
}

// Probabilities of one row, and the milliseconds of the pass. One pass at a time: a session is not to be entered twice.
function run(row) {
  const pass = last.then(async () => {
    const input = new ort.Tensor(about.input.type, row, [1, ...about.input.shape]);
    const began = performance.now();
    const outputs = await session.run({ [session.inputNames[0]]: input });
    const milliseconds = performance.now() - began;
    const logits = Array.from(outputs[session.outputNames[0]].data);
    const largest = Math.max(...logits);
    const shares = logits.map((one) => Math.exp(one - largest));
    const total = shares.reduce((sum, one) => sum + one, 0);
    return { shares: shares.map((one) => one / total), milliseconds };
  });
  last = pass.catch(() => {});
  return pass;
}

// Hold the answers to the rows from training against those that the version gave there.
async function test() {
  const told = find("selftest");
  try {
    let largest = 0;
    for (const [number, row] of sample.rows.entries()) {
      const { shares } = await run(asInput(row));
      shares.forEach((one, index) => { largest = Math.max(largest, Math.abs(one - sample.answers[number][index])); });
      if (shares.length !== sample.answers[number].length || !Number.isFinite(largest)) throw new Error("other classes, or no numbers");
    }
    const passed = largest <= TOLERANCE;
    told.dataset.outcome = passed ? "passed" : "failed";
    told.textContent = `${passed ? "passed" : "failed"}: ${sample.rows.length} rows from training, largest difference of a probability ${largest.toExponential(1)}`;
  } catch (error) {
    told.dataset.outcome = "failed";
    told.textContent = `failed: ${error.message}`;
  }
}

const asInput = (row) => (about.input.type === "uint8" ? Uint8Array.from(row) : Float32Array.from(row));

async function classify(row) {
  find("error").textContent = "";
  try {
    const { shares, milliseconds } = await run(asInput(row));
    const order = shares.map((_, index) => index).sort((one, other) => shares[other] - shares[one]);
    const small = document.createElement("small");
    small.textContent = `${percent(shares[order[0]])} sure, ${milliseconds < 0.1 ? "under 0.1" : milliseconds.toFixed(1)} ms`;
    find("answer").replaceChildren(about.classes[order[0]], small);
    find("classes").replaceChildren(...order.slice(0, SHOWN).map((index) => bar(about.classes[index], shares[index])));
  } catch (error) {
    find("error").textContent = `The model cannot answer this: ${error.message}`;
  }
}

function bar(name, share) {
  const item = document.createElement("li");
  const parts = ["span", "span", "i"].map((kind) => document.createElement(kind));
  [parts[0].textContent, parts[1].textContent] = [name, percent(share)];
  parts[2].setAttribute("aria-hidden", "true");
  parts[2].style.setProperty("--share", `${100 * share}%`);
  item.append(...parts);
  return item;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

// --- images

function offerImages() {
  const { height, width, channels } = about.image;
  find("drop").hidden = false;
  find("examples").append(...sample.rows.map((row, number) => {
    const canvas = document.createElement("canvas");
    paint(canvas, row);
    return example(number, canvas, () => see(row, "an example, as it is"));
  }));
  find("file").onchange = (event) => event.target.files[0] && choose(event.target.files[0]);
  const drop = find("drop");
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragenter" || kind === "dragover");
      if (kind === "drop" && event.dataTransfer.files[0]) choose(event.dataTransfer.files[0]);
    });
  }
  if (channels === 1 && Math.max(height, width) <= SMALL) offerDrawing();
  else document.querySelector("main").className = "files";
}

function see(row, text) {
  find("seen").hidden = false;
  paint(find("preview"), row);
  find("seen-text").textContent = `What the model gets: ${about.image.width} x ${about.image.height} pixels, ${text}.`;
  return classify(row);
}

function paint(canvas, row) {
  const { height, width, channels } = about.image;
  [canvas.width, canvas.height] = [width, height];
  const image = new ImageData(width, height);
  for (let pixel = 0; pixel < width * height; pixel += 1) {
    for (let channel = 0; channel < 3; channel += 1) image.data[4 * pixel + channel] = row[pixel * channels + Math.min(channel, channels - 1)];
    image.data[4 * pixel + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

async function choose(chosen) {
  try {
    // Upright, but in the colours that are stored: as training decodes it
    const bitmap = await createImageBitmap(chosen, { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" });
    const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    const { width, height } = bitmap;
    const resized = width !== about.image.width || height !== about.image.height;
    const unlike = resized && !about.image.resize ? `; training images all have ${about.image.width} x ${about.image.height}` : "";
    await see(toPixels(context.getImageData(0, 0, width, height)), resized ? `from ${width} x ${height}${unlike}` : "as it is");
  } catch (error) {
    find("error").textContent = `${chosen.name} cannot be read as an image: ${error.message}`;
  }
}

function toPixels({ data, width, height }) {
  const rgb = overBlack(data);
  const plain = about.image.channels === 1 ? grey(rgb) : rgb;
  return resize(plain, height, width, about.image.channels, about.image.height, about.image.width);
}

function offerDrawing() {
  const pad = find("pad");
  const scale = Math.max(4, Math.floor(PAD / Math.max(about.image.height, about.image.width)));
  const context = pad.getContext("2d", { willReadFrequently: true });
  const mean = sample.rows.flatMap((row) => Array.from(row)).reduce((sum, one, _, all) => sum + one / all.length, 0);
  const [paper, ink] = mean < 128 ? ["black", "white"] : ["white", "black"]; // as in the examples
  const clear = () => {
    [pad.width, pad.height] = [about.image.width * scale, about.image.height * scale];
    context.fillStyle = paper;
    context.fillRect(0, 0, pad.width, pad.height);
    Object.assign(context, { strokeStyle: ink, lineCap: "round", lineJoin: "round", lineWidth: scale * Math.max(1.6, about.image.width / 11) });
  };
  const at = (event) => {
    const box = pad.getBoundingClientRect();
    return [((event.clientX - box.left) * pad.width) / box.width, ((event.clientY - box.top) * pad.height) / box.height];
  };
  let before = null, waiting = false;
  const draw = (event) => {
    if (!before) return;
    const point = at(event);
    context.beginPath();
    context.moveTo(...before);
    context.lineTo(...point);
    context.stroke();
    before = point;
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(async () => {
      await see(toPixels(context.getImageData(0, 0, pad.width, pad.height)), "from the drawing");
      waiting = false;
    });
  };
  pad.onpointerdown = (event) => { pad.setPointerCapture(event.pointerId); before = at(event); draw(event); };
  pad.onpointermove = draw;
  pad.onpointerup = pad.onpointercancel = (event) => { draw(event); before = null; };
  find("clear").onclick = () => { clear(); find("seen").hidden = true; find("classes").replaceChildren(); find("answer").textContent = "Nothing yet."; };
  clear();
  find("draw").hidden = false;
}

// --- tables

function offerTable() {
  document.querySelector("main").className = "table";
  const form = find("table");
  const inputs = about.features.map((name) => {
    const label = document.createElement("label");
    const input = Object.assign(document.createElement("input"), { type: "number", step: "any", required: true, name });
    label.append(name, input);
    form.append(label);
    return input;
  });
  const fill = (row) => inputs.forEach((input, index) => { input.value = String(row[index]); });
  const send = () => form.reportValidity() && classify(inputs.map((input) => input.valueAsNumber));
  form.append(Object.assign(document.createElement("button"), { type: "submit", textContent: "Classify" }));
  form.onsubmit = (event) => { event.preventDefault(); send(); };
  find("examples").append(...sample.rows.map((row, number) => example(number, String(number + 1), () => { fill(row); send(); })));
  fill(sample.rows[0]);
  form.hidden = false;
}

function example(number, content, use) {
  const button = document.createElement("button");
  button.type = "button";
  button.setAttribute("aria-label", `Example ${number + 1}`);
  button.append(content);
  button.onclick = use;
  return button;
}

start().catch((error) => {
  find("status").textContent = `The page cannot start: ${error.message}`;
  Object.assign(find("selftest"), { textContent: `failed: ${error.message}` }).dataset.outcome = "failed";
});
