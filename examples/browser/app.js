"use strict";

const NAMES = ["original", "converted"];
const SIDE = 28; // Of the images that the networks take.
const DIGIT = 20; // MNIST's digits fit into a square of this side,
const RUNS = 20; // and this is how often each network runs to be timed.

const canvas = document.getElementById("drawing");
const context = canvas.getContext("2d", { willReadFrequently: true });
const models = [];

ort.env.wasm.numThreads = 1;

function show(row, values) {
  const cells = document.querySelectorAll(`#${row} td`);
  values.forEach((value, i) => (cells[i].textContent = value));
}

function say(text) {
  document.getElementById("status").textContent = text;
}

async function load() {
  for (const name of NAMES) {
    const response = await fetch(`models/${name}.onnx`);
    if (!response.ok) throw new Error(`models/${name}.onnx: run make.py first`);
    const bytes = new Uint8Array(await response.arrayBuffer());
    const session = await ort.InferenceSession.create(bytes);
    models.push({ session, bytes: bytes.length });
  }
  show("size", models.map((model) => `${(model.bytes / 1e6).toFixed(2)} MB`));
}

async function scores(model, pixels) {
  const { session } = model;
  const tensor = new ort.Tensor("float32", pixels, [1, SIDE, SIDE, 1]);
  const outputs = await session.run({ [session.inputNames[0]]: tensor });
  return Array.from(outputs[session.outputNames[0]].data);
}

function best(values) {
  return values.indexOf(Math.max(...values));
}

// The median time of each network, which run in turns.
async function milliseconds(pixels) {
  const times = models.map(() => []);
  for (let run = 0; run < RUNS; run++) {
    for (const [i, model] of models.entries()) {
      const start = performance.now();
      await scores(model, pixels);
      times[i].push(performance.now() - start);
    }
  }
  return times.map((all) => all.sort((a, b) => a - b)[RUNS / 2]);
}

// Bring a drawing to the form of MNIST's: of its size, in grey, its centre of
// mass in the middle. Returns null for an empty one.
function asImage() {
  const { data, width } = context.getImageData(0, 0, 280, 280);
  let [left, top, right, bottom, mass, x, y] = [width, width, -1, -1, 0, 0, 0];
  for (let i = 0; i < data.length; i += 4) {
    if (!data[i]) continue;
    const [column, row] = [(i / 4) % width, Math.floor(i / 4 / width)];
    left = Math.min(left, column);
    right = Math.max(right, column);
    top = Math.min(top, row);
    bottom = Math.max(bottom, row);
    mass += data[i];
    x += data[i] * column;
    y += data[i] * row;
  }
  if (!mass) return null;
  const scale = DIGIT / Math.max(right - left + 1, bottom - top + 1);
  const small = document.createElement("canvas");
  small.width = small.height = SIDE;
  const target = small.getContext("2d");
  target.imageSmoothingQuality = "high";
  target.translate(SIDE / 2 - (scale * x) / mass, SIDE / 2 - (scale * y) / mass);
  target.scale(scale, scale);
  target.drawImage(canvas, 0, 0);
  const grey = target.getImageData(0, 0, SIDE, SIDE).data;
  return Float32Array.from({ length: SIDE * SIDE }, (_, i) => grey[4 * i]);
}

async function read() {
  const pixels = asImage();
  if (!pixels) return null;
  const found = [];
  for (const model of models) found.push(await scores(model, pixels));
  show("digit", found.map(best));
  show("sure", found.map((one) => `${(100 * Math.max(...one)).toFixed(0)}%`));
  const times = await milliseconds(pixels);
  show("time", times.map((time) => `${time.toFixed(2)} ms`));
  return found.map(best);
}

function line(from, to) {
  context.strokeStyle = "white";
  context.lineWidth = 20;
  context.lineCap = context.lineJoin = "round";
  context.beginPath();
  context.moveTo(...from);
  context.lineTo(...to);
  context.stroke();
}

function clear() {
  context.fillStyle = "black";
  context.fillRect(0, 0, canvas.width, canvas.height);
  for (const row of ["digit", "sure", "time"]) show(row, ["", ""]);
}

function listen() {
  let last = null;
  canvas.addEventListener("pointerdown", (event) => {
    last = [event.offsetX, event.offsetY];
    line(last, last);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!last) return;
    const next = [event.offsetX, event.offsetY];
    line(last, next);
    last = next;
  });
  window.addEventListener("pointerup", () => {
    if (last) read();
    last = null;
  });
  document.getElementById("clear").addEventListener("click", clear);
}

// With ?check in the address: what the networks make of held-out digits, how
// far that is from Keras, and of a drawn one.
async function check() {
  const samples = await (await fetch("models/samples.json")).json();
  const result = { differences: [], correct: [] };
  for (const [i, name] of NAMES.entries()) {
    let [difference, correct] = [0, 0];
    for (const [j, image] of samples.images.entries()) {
      const found = await scores(models[i], Float32Array.from(image));
      found.forEach((value, k) => {
        const off = Math.abs(value - samples[name][j][k]);
        difference = Math.max(difference, off);
      });
      correct += best(found) === samples.labels[j];
    }
    result.differences.push(difference);
    result.correct.push(correct);
  }
  line([140, 40], [140, 240]);
  result.drawn = await read();
  return result;
}

async function start() {
  clear();
  await load();
  listen();
  if (location.search === "?check") say(JSON.stringify(await check()));
  else say("Both run in this page, in onnxruntime-web, on one thread.");
}

start().catch((error) => say(`Failed: ${error.message}`));
