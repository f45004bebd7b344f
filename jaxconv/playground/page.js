"use strict";
// The page: pictures and settings go out over one WebSocket; maps, votes and curves come in. See connection.py for the messages.

const $ = (selector) => document.querySelector(selector);
const SVG = "http://www.w3.org/2000/svg";
const THINNEST = 0.01; // least distance between two points of a line, in canvas widths
const PEN = Math.SQRT1_2 / 9; // stroke width of the data source, see data/xo.py
const ENDED = 1001, TOO_FAST = 1008, REFUSED = 1013; // close codes of the server
const AGAIN = 2000; // milliseconds between attempts to reconnect
const LOST = "The connection to the playground is lost. This page tries to reconnect every 2 seconds; if the playground has ended, start it again.";
const PATIENCE = 3000; // milliseconds after which a picture is sent even if the one before was never answered

let socket, about, training;
let strokes = [], line = null, points = 0;
let sample = { figure: "x", number: 0 };
let nextId = 1, waiting = null, pending = null, latest = null, shown = null;
// For tests and measurements; latencies are milliseconds from an event to the frame that shows its answer.
window.playground = { latencies: [], answer: null, get training() { return training; }, get idle() { return !waiting && !pending && !latest; } };

// ---------- messages

function connect() {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/socket`);
  socket.binaryType = "arraybuffer";
  socket.onmessage = (event) => (typeof event.data === "string" ? told(JSON.parse(event.data)) : answered(event.data));
  socket.onclose = (event) => {
    $("#status").textContent = "";
    const refused = event.code === REFUSED || event.code === TOO_FAST, ended = event.code === ENDED;
    const why = refused ? `${event.reason}. Reload this page to reconnect.` : ended ? `${event.reason}. Start it again; this page will reconnect.` : LOST;
    if ($("#connection").textContent !== why) $("#connection").textContent = why;
    if (!refused) setTimeout(connect, AGAIN);
  };
}

// After reconnecting: the server has forgotten what this page was showing.
function resume(before) {
  if (JSON.stringify([before.run, before.shape, before.classes]) !== JSON.stringify([about.run, about.shape, about.classes])) { location.reload(); return; }
  waiting = pending = null;
  if (about.run) look($("#which :checked").value);
  if (shown) ask(shown);
}

function say(message) {
  if (socket.readyState === WebSocket.OPEN) socket.send(message instanceof Blob || message instanceof Uint8Array ? message : JSON.stringify(message));
}

// Ask about a new picture, and remember it for after a lost connection.
function askPicture(make) { shown = make; ask(make); }

// One question at a time; of those that arrive meanwhile, only the last is asked.
function ask(make) {
  const question = { make, since: performance.now() };
  if (waiting && performance.now() - waiting.sent < PATIENCE) pending = question;
  else put(question);
}

function put(question) {
  problem("picture", "");
  waiting = { id: nextId++, since: question.since, sent: performance.now() };
  say(question.make(waiting.id));
}

function done(id) {
  if (!waiting || waiting.id !== id) return null;
  const question = waiting;
  waiting = null;
  if (pending) { const next = pending; pending = null; put(next); }
  return question;
}

function told(message) {
  if (message.kind === "welcome") welcome(message);
  else if (message.kind === "training") showTraining(message);
  else if (message.kind === "problem") { if (message.id) done(message.id); problem(message.of, message.message); }
  else if (message.kind === "waiting") done(message.id);
}

function answered(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const question = header.id ? done(header.id) : null;
  const scheduled = latest !== null;
  latest = { header, data: new Uint8Array(buffer, 4 + length), questions: [...(latest ? latest.questions : []), ...(question ? [question] : [])] };
  // Answers that arrive faster than the screen refreshes are skipped.
  if (!scheduled) requestAnimationFrame(() => {
    const { header, data, questions } = latest;
    latest = null;
    draw(header, data);
    for (const { since } of questions) window.playground.latencies.push(performance.now() - since);
    if (questions.length) announce(`vote: ${$("#verdict").firstChild.textContent}`);
    if (questions.length) $("#latency").textContent = `answered in ${Math.round(performance.now() - questions[0].since)} ms`;
    window.playground.answer = header;
  });
}

function problem(of, text) {
  const place = of === "set" || of === "train" ? $("#training-problem") : $("#picture-problem");
  if (place.textContent !== text) place.textContent = text;
}

// Announce to screen readers only the last message within a second, not every changing number.
let saying = null;
function announce(text) {
  clearTimeout(saying);
  saying = setTimeout(() => ($("#said").textContent = text), 1000);
}

function welcome(message) {
  const before = about;
  about = message;
  const drawable = about.pen !== null;
  for (const [name, there] of [["xo", about.xo], ["drawing", drawable], ["training", about.trains]])
    for (const element of document.querySelectorAll(`.of-${name}`)) element.hidden = !there;
  if (drawable && !before) $("#pen").value = about.pen;
  $("#votes-title").textContent = about.trains ? "Votes" : "Answer";
  $("#canvas").classList.toggle("drawable", drawable);
  $("#tests").hidden = !about.tests;
  $("#which").hidden = !about.run || !about.trains;
  if (drawable && !about.xo) $("#hint").textContent = "Draw X's and O's, drop an image, or choose a test image.";
  else if (!about.xo) $("#hint").textContent = about.tests ? "Drop or open an image, or choose a test image." : "Drop or open an image.";
  $("#test-number").max = about.tests - 1;
  $("#accuracy-title").textContent = `accuracy on the last ${about.window} test images`;
  for (const [name, [least, most, count]] of Object.entries(about.limits)) {
    const input = $(`#settings [name=${name}]`);
    if (input.type === "number") { input.min = least; input.max = most; input.step = name === "filter_size" ? 2 : 1; }
    input.title = count > 1 ? `up to ${count} whole numbers from ${least} to ${most}, separated by commas` : `a whole number from ${least} to ${most}`;
  }
  for (const [name, value] of Object.entries(about.variation)) { const input = $(`#samples [name=${name}]`); input.value = value; shownValue(input); }
  shownValue($("#pen"));
  const megabytes = about.most.bytes / 1e6;
  $("#limits").textContent =
    (about.alone ? `The playground listens on ${about.host}: only this machine can open this page. ` : `The playground listens on ${about.host}: anyone who can reach this machine over the network can open this page, without a password. `) +
    `It refuses other sites' pages, and accepts JPEG and PNG files of up to ${megabytes} MB and ` +
    `${about.most.pixels / 1e6} million pixels, drawings of up to ${about.most.points} points, and ${about.most.pages} open pages. Images are decoded in memory and never written to disk. ` +
    "This page loads nothing from elsewhere.";
  $("#connection").textContent = "";
  if (before) resume(before);
  else if (about.xo) askSample();
  else if (about.tests) askTest();
  else look(about.run ? "run" : "trained");
}

// ---------- the picture

function place(event) {
  const box = $("#canvas").getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

function extend(event) {
  for (const part of event.getCoalescedEvents?.().length ? event.getCoalescedEvents() : [event]) {
    const [x, y] = place(part), last = line[line.length - 1];
    if (last && Math.hypot(x - last[0], y - last[1]) < THINNEST) continue;
    if (points >= about.most.points) { problem("picture", `A drawing has at most ${about.most.points} points: clear it and start again.`); return; }
    line.push([Math.round(x * 1e4) / 1e4, Math.round(y * 1e4) / 1e4]);
    points++;
  }
  paintStrokes();
  askStrokes();
}

function askStrokes() {
  askPicture((id) => ({ do: "draw", id, strokes, weight: Number($("#pen").value), fit: about.xo && $("#fit").checked }));
}

function paintStrokes() {
  const canvas = $("#canvas"), context = canvas.getContext("2d"), size = canvas.width;
  context.fillStyle = "#000";
  context.fillRect(0, 0, size, size);
  context.strokeStyle = context.fillStyle = "#fff";
  context.lineWidth = PEN * size * (1 + Number($("#pen").value));
  context.lineCap = context.lineJoin = "round";
  for (const stroke of strokes) {
    context.beginPath();
    stroke.forEach(([x, y], i) => (i ? context.lineTo(x * size, y * size) : context.moveTo(x * size, y * size)));
    if (stroke.length === 1) context.lineTo(stroke[0][0] * size + 0.01, stroke[0][1] * size);
    context.stroke();
  }
}

function clear() { strokes = []; line = null; points = 0; }

function variation() {
  return Object.fromEntries([...$("#samples").querySelectorAll("input[type=range]")].map((input) => [input.name, Number(input.value)]));
}

function shownValue(input) {
  const value = Number(input.value), percent = `${Math.round(100 * value)} %`.replace("-", "−");
  const text = input.id === "pen" ? (value > 0 ? `+${percent}` : percent) : input.name === "rotation" ? `up to ${value}°` : input.name === "noise" ? `deviation ${value.toFixed(2)}` : `up to ${percent}`;
  input.parentElement.querySelector(".value").textContent = text;
  input.setAttribute("aria-valuetext", text);
}

function askSample() { clear(); askPicture((id) => ({ do: "sample", id, ...sample, variation: variation() })); }

function askTest() { clear(); askPicture((id) => ({ do: "test", id, number: Number($("#test-number").value) })); }

function askFile(file) {
  if (!file) return;
  if (file.size > about.most.bytes) { problem("picture", `The file has ${file.size.toLocaleString("en")} bytes; at most ${about.most.bytes.toLocaleString("en")} are accepted.`); return; }
  file.arrayBuffer().then((buffer) => {
    clear();
    askPicture((id) => {
      const message = new Uint8Array(4 + buffer.byteLength);
      new DataView(message.buffer).setUint32(0, id, true);
      message.set(new Uint8Array(buffer), 4);
      return message;
    });
  });
}

function listenToPicture() {
  const canvas = $("#canvas");
  canvas.addEventListener("pointerdown", (event) => {
    if (!about || about.pen === null || event.button !== 0 || line) return;
    canvas.setPointerCapture(event.pointerId);
    strokes.push((line = []));
    extend(event);
  });
  canvas.addEventListener("pointermove", (event) => line && event.isPrimary && extend(event));
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (line = null));
  $("#clear").addEventListener("click", () => { clear(); paintStrokes(); askStrokes(); });
  $("#pen").addEventListener("input", (event) => { shownValue(event.target); if (strokes.length) { paintStrokes(); askStrokes(); } });
  $("#fit").addEventListener("change", () => strokes.length && askStrokes());
  for (const figure of ["x", "o"]) $(`#sample-${figure}`).addEventListener("click", () => { sample = { figure, number: sample.number + 1 }; askSample(); });
  $("#samples").addEventListener("input", (event) => { shownValue(event.target); askSample(); });
  $("#samples").addEventListener("change", () => say({ do: "set", variation: variation() }));
  $("#test-next").addEventListener("click", () => { $("#test-number").value = Math.floor(Math.random() * about.tests); askTest(); });
  $("#test-number").addEventListener("change", askTest);
  $("#file").addEventListener("change", (event) => { askFile(event.target.files[0]); event.target.value = ""; });
  const drop = $("#drop");
  for (const name of ["dragover", "drop"]) document.addEventListener(name, (event) => event.preventDefault());
  document.addEventListener("dragover", () => drop.classList.add("over"));
  document.addEventListener("dragleave", (event) => event.relatedTarget || drop.classList.remove("over"));
  document.addEventListener("drop", (event) => { drop.classList.remove("over"); askFile(event.dataTransfer.files[0]); });
  $("#which").addEventListener("change", () => look($("#which :checked").value));
}

function look(network) { ask((id) => ({ do: "look", id, network })); }

// ---------- what the network makes of it

let colours;

function readColours() {
  const style = getComputedStyle(document.documentElement);
  const rgb = (name) => [1, 3, 5].map((i) => parseInt(style.getPropertyValue(name).trim().slice(i, i + 2), 16));
  const [negative, zero, positive] = ["--negative", "--zero", "--positive"].map(rgb);
  colours = Uint32Array.from({ length: 255 }, (_, i) => {
    const share = Math.abs(i - 127) / 127, end = i < 127 ? negative : positive;
    return packed(...zero.map((value, c) => Math.round(value + share * (end[c] - value))));
  });
}

// A pixel in the memory order of a canvas, which is little-endian wherever browsers run.
const packed = (red, green, blue) => ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;

function paint(canvas, width, height, colourOf) {
  if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
  const context = canvas.getContext("2d"), image = context.createImageData(width, height), pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < pixels.length; i++) pixels[i] = colourOf(i);
  context.putImageData(image, 0, 0);
}

// A row of small canvases, rebuilt only when its shape changes.
function row(index, key, make) {
  const rows = $("#rows");
  let element = rows.children[index];
  if (!element || element.dataset.key !== key) {
    const fresh = document.createElement("div");
    fresh.className = "stage";
    fresh.dataset.key = key;
    make(fresh);
    if (element) element.replaceWith(fresh); else rows.append(fresh);
    element = fresh;
  }
  return element;
}

function makeRow(element, title, what, count, width, height, side, withScale) {
  const heading = document.createElement("h3");
  heading.append(title);
  const quiet = Object.assign(document.createElement("span"), { className: "quiet", textContent: what });
  heading.append(quiet);
  if (withScale) {
    const scale = Object.assign(document.createElement("span"), { className: "scale" });
    scale.append(document.createElement("b"), document.createElement("i"), document.createElement("b"));
    for (const b of scale.querySelectorAll("b")) b.style.fontWeight = "400";
    heading.append(scale);
  }
  const maps = Object.assign(document.createElement("div"), { className: "maps" });
  maps.setAttribute("role", "img");
  const pixel = Math.max(1, Math.floor(side / Math.max(width, height)));
  for (let k = 0; k < count; k++) {
    const canvas = document.createElement("canvas");
    canvas.style.width = `${pixel * width}px`;
    canvas.style.height = `${pixel * height}px`;
    maps.append(canvas);
  }
  // Wrap into lines of equal length.
  const each = pixel * width + 6, lines = Math.ceil((count * each) / Math.max(each, $("#rows").clientWidth));
  maps.style.maxWidth = `${Math.ceil(count / lines) * each}px`;
  element.append(heading, maps);
}

function label(element, words, peak, values) {
  const ends = element.querySelectorAll(".scale b");
  if (ends.length) {
    const positive = !values.some((value) => value < 0);
    element.querySelector(".scale").classList.toggle("positive", positive);
    ends[0].textContent = positive ? "0" : number(peak === null ? null : -peak);
    ends[1].textContent = number(peak);
  }
  const maps = element.querySelector(".maps"), name = values ? `${words}; largest magnitude ${number(peak)}` : words;
  if (maps.getAttribute("aria-label") !== name) maps.setAttribute("aria-label", name);
}

function number(value) {
  if (value === null || value === undefined) return "NaN";
  const size = Math.abs(value);
  return (size !== 0 && (size >= 1000 || size < 0.01) ? value.toExponential(1) : value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : 2)).replace("-", "−");
}

const sideOf = (size) => (size >= 24 ? 66 : size >= 12 ? 50 : size >= 6 ? 40 : 32);

function draw(header, data) {
  const [height, width, channels] = header.picture;
  let offset = 0, index = 0;
  const picture = data.subarray(0, (offset = height * width * channels));
  const pixel = (i) => (channels === 1 ? packed(picture[i], picture[i], picture[i]) : packed(picture[3 * i], picture[3 * i + 1], picture[3 * i + 2]));
  const input = row(index++, `input ${height} ${width}`, (element) => makeRow(element, "input", `${width}×${height}${channels === 3 ? " in colour" : ""}`, 1, width, height, 132, false));
  label(input, "the picture as the network sees it");
  paint(input.querySelector("canvas"), width, height, pixel);
  if (!strokes.length && header.id !== 0) showOnCanvas(input.querySelector("canvas"));
  offset += drawFilters(index, header.filters, new Int8Array(data.buffer, data.byteOffset + offset));
  index++;
  for (const stage of header.stages) {
    const [h, w, k] = stage.shape, values = new Int8Array(data.buffer, data.byteOffset + offset, h * w * k);
    offset += h * w * k;
    drawStage(index++, stage, values);
  }
  while ($("#rows").children.length > index) $("#rows").lastChild.remove();
  const left = $("#left-out");
  left.hidden = header.stages.length === header.total;
  if (!left.hidden) left.textContent = `${header.stages.length} of ${header.total} stages: norms are left out first, then stages inside blocks.`;
  showOverlay(header, data.subarray(offset));
  showVotes(header);
}

const rgbOf = (overlay, name) => `rgb(${overlay.colours[about.classes.indexOf(name)]})`;

// The mask and the boxes over the picture.
function showOverlay({ overlay, picture }, mask) {
  const canvas = $("#overlay"), context = canvas.getContext("2d"), size = canvas.width;
  context.clearRect(0, 0, size, size);
  if (!overlay) return;
  if (overlay.mask.length) {
    const [height, width] = overlay.mask, small = document.createElement("canvas");
    // The class that stands for nothing stays clear.
    paint(small, width, height, (i) => (mask[i] !== overlay.clear && overlay.colours[mask[i]] ? (packed(...overlay.colours[mask[i]]) & 0xffffff) | (170 << 24) : 0));
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, size, size);
  }
  const [height, width] = picture;
  context.lineWidth = 4;
  context.font = "22px system-ui, sans-serif";
  for (const { box: [top, left, bottom, right], class: name, score } of overlay.boxes) {
    const x = (left / width) * size, y = (top / height) * size;
    context.strokeStyle = context.fillStyle = rgbOf(overlay, name);
    context.strokeRect(x, y, ((right - left) / width) * size, ((bottom - top) / height) * size);
    context.fillText(`${named(name)} ${Math.round(100 * score)} %`, x + 2, y > 30 ? y - 8 : y + 26);
  }
  context.strokeStyle = context.fillStyle = "#e7298a";
  for (const points of overlay.points) {
    const at = points.map(([y, x]) => [(x / width) * size, (y / height) * size]);
    for (const [one, other] of overlay.lines) {
      context.beginPath();
      context.moveTo(...at[one]);
      context.lineTo(...at[other]);
      context.stroke();
    }
    for (const [x, y] of at) context.fillRect(x - 4, y - 4, 8, 8);
  }
}

function drawFilters(index, { of, shape, peak }, values) {
  const [h, w, c, k] = shape;
  const element = row(index, `filters ${shape}`, (element) =>
    makeRow(element, "filters", k ? `of ${of || "the first convolution"}, ${k} of ${w}×${h}${c === 3 ? " in colour" : ""}` : "none that can be shown as pictures", k, w, h, 42, c === 1));
  label(element, `the first ${k} filters, ${w} by ${h}, of ${of || "the first convolution"}`, peak, values.subarray(0, h * w * c * k));
  element.querySelectorAll("canvas").forEach((canvas, n) =>
    paint(canvas, w, h, c === 1 ? (i) => colours[values[i * k + n] + 127] : (i) => packed(...[0, 1, 2].map((channel) => values[(i * c + channel) * k + n] + 128))));
  return h * w * c * k;
}

function drawStage(index, stage, values) {
  const [h, w, k] = stage.shape, [height, width] = stage.pixels, neurons = height === 1 && width === 1;
  const some = k < stage.channels ? `${k} of ${stage.channels}` : `${k}`;
  const what = neurons ? `${stage.what}, ${some}` : `${stage.what}, ${some} ${stage.channels === 1 ? "map" : "maps"} of ${width}×${height}`;
  const element = row(index, `${stage.name} ${stage.shape} ${stage.channels}`, (element) =>
    neurons ? makeRow(element, stage.name, what, 1, k, 1, Math.min(16 * k, $("#rows").clientWidth - 6), true) : makeRow(element, stage.name, what, k, w, h, sideOf(Math.max(h, w)), true));
  label(element, `${stage.name}: ${what}`, stage.peak, values);
  const canvases = element.querySelectorAll("canvas");
  if (neurons) { paint(canvases[0], k, 1, (i) => colours[values[i] + 127]); canvases[0].style.height = "16px"; return; }
  canvases.forEach((canvas, n) => paint(canvas, w, h, (i) => colours[values[i * k + n] + 127]));
}

function showOnCanvas(small) {
  const canvas = $("#canvas"), context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.fillStyle = "#000";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
}

const named = (name) => (about.pen !== null && name.length === 1 ? name.toUpperCase() : name);

function showVotes(header) {
  $("#network").textContent = header.which === "trained" ? `${header.network}, step ${header.step.toLocaleString("en")}` : header.network;
  for (const input of document.querySelectorAll("#which input")) input.checked = input.value === header.which;
  const bars = $("#bars"), best = header.votes.find((vote) => vote.class === header.best);
  while (bars.children.length > header.votes.length) bars.lastChild.remove();
  header.votes.forEach((vote, i) => {
    const line = bars.children[i] || bars.appendChild(document.createElement("tr"));
    if (!line.children.length) {
      line.append(Object.assign(document.createElement("th"), { scope: "row" }), ...[0, 1, 2].map(() => document.createElement("td")));
      line.children[1].append(Object.assign(document.createElement("div"), { className: "bar" }));
    }
    line.className = vote.class === header.best ? "best" : "";
    line.children[0].textContent = line.children[0].title = named(vote.class);
    if (header.overlay) {
      line.children[0].prepend(Object.assign(document.createElement("span"), { className: "swatch" }));
      line.children[0].firstChild.style.background = rgbOf(header.overlay, vote.class);
    }
    line.children[3].hidden = !!header.overlay;
    line.children[1].firstChild.style.width = `${100 * (vote.probability ?? 0)}%`;
    line.children[2].textContent = vote.probability === null ? "–" : `${(100 * vote.probability).toFixed(1)} %`;
    line.children[3].textContent = number(vote.vote);
  });
  const verdict = $("#verdict"), name = named(header.best);
  const text = header.overlay ? header.overlay.said : best.probability === null ? "no vote: the weights are no longer finite" : `${name}, ${best.probability > 0.9999 ? "over 99.99" : (100 * best.probability).toFixed(best.probability > 0.999 ? 2 : 1)} %`;
  if (verdict.firstChild?.textContent !== text || verdict.dataset.truth !== (header.truth ?? "")) {
    verdict.replaceChildren(text);
    verdict.dataset.truth = header.truth ?? "";
    if (header.truth) {
      const right = header.truth === header.best;
      verdict.append(Object.assign(document.createElement("small"), { className: right ? "right" : "wrong", textContent: right ? "✓ right" : `✗ wrong: it is ${named(header.truth)}` }));
    }
  }
  $("#note").textContent = header.note || "";
}

// ---------- training

function showTraining(message) {
  const settings = $("#settings"), first = !training;
  if (!first && training.status !== message.status) announce(`training: ${message.status}, step ${message.step}`);
  training = message;
  for (const [name, value] of Object.entries(message.settings)) {
    const input = settings.elements[name];
    // Keep what the user is typing, or has typed wrongly.
    if (first || (document.activeElement !== input && !$("#training-problem").textContent)) input.value = Array.isArray(value) ? value.join(", ") : value;
  }
  const rate = $("#rate");
  if (first || document.activeElement !== rate) rate.value = Math.log10(message.rate);
  showRate(message.rate);
  const words = { waiting: "not started", reading: "reading the pictures …", compiling: "compiling …", paused: "paused", training: "training", stopped: "stopped, see the message below" };
  const last = message.points.at(-1);
  $("#status").textContent = [words[message.status], `step ${message.step.toLocaleString("en")}`, message.parameters ? `${message.parameters.toLocaleString("en")} weights` : "", message.status === "paused" && !message.step && message.seconds ? `compiled in ${message.seconds.toFixed(1)} s` : ""].filter(Boolean).join(" · ");
  if (message.message) problem("train", message.message);
  else if (message.status === "training" || message.status === "compiling") problem("train", "");
  $("[data-how=start]").disabled = message.status === "training";
  $("[data-how=pause]").disabled = message.status !== "training";
  $("#loss-now").textContent = last ? number(last[1]) : "";
  $("#accuracy-now").textContent = last && last[2] !== null ? `${(100 * last[2]).toFixed(1)} %` : "";
  curve($("#loss"), message.points.map(([step, loss]) => [step, loss]), null, number, "loss");
  curve($("#accuracy"), message.points.map(([step, , accuracy]) => [step, accuracy]), 1, (value) => `${Math.round(100 * value)} %`, "accuracy");
}

function curve(svg, given, top, words, name) {
  const data = given.filter(([, value]) => value !== null), width = svg.clientWidth || 600, [left, right, low, high] = [44, width - 8, 166, 10];
  const largest = top ?? Math.max(0.1, ...data.map(([, value]) => value)), last = Math.max(1, ...data.map(([step]) => step));
  const x = (step) => left + ((right - left) * step) / last, y = (value) => low - ((low - high) * value) / largest;
  const make = (tag, attributes, text) => {
    const element = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const parts = [];
  for (const share of [0, 0.5, 1]) {
    parts.push(make("line", { class: "grid", x1: left, x2: right, y1: y(share * largest), y2: y(share * largest) }));
    parts.push(make("text", { x: left - 6, y: y(share * largest) + 4, "text-anchor": "end" }, words(share * largest)));
    if (data.length) parts.push(make("text", { x: left + share * (right - left), y: low + 16, "text-anchor": share === 1 ? "end" : share ? "middle" : "start" }, Math.round(share * last).toLocaleString("en")));
  }
  if (data.length > 1) parts.push(make("polyline", { class: "curve", points: data.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ") }));
  if (data.length) parts.push(make("circle", { cx: x(data.at(-1)[0]), cy: y(data.at(-1)[1]), r: 3.5 }));
  else parts.push(make("text", { x: (left + right) / 2, y: (low + high) / 2 - 14, "text-anchor": "middle" }, "nothing yet: press Start to train"));
  svg.setAttribute("viewBox", `0 0 ${width} 190`);
  svg.replaceChildren(...parts);
  svg.setAttribute("aria-label", data.length ? `${name} ${words(data.at(-1)[1])} at step ${data.at(-1)[0]}` : `${name} against step, nothing yet`);
}

function showRate(rate) {
  const text = String(Number(rate.toPrecision(2)));
  $("#rate-shown").textContent = text;
  $("#rate").setAttribute("aria-valuetext", text);
}

function numbers(text) {
  const parts = text.split(/[\s,;]+/).filter(Boolean);
  if (!parts.every((part) => /^\d{1,6}$/.test(part))) throw new Error(`“${text}” is not a list of whole numbers such as 8, 16`);
  return parts.map(Number);
}

function sendSettings() {
  try {
    const elements = $("#settings").elements, settings = {};
    for (const name of Object.keys(training.settings)) {
      const value = elements[name].value;
      settings[name] = Array.isArray(training.settings[name]) ? numbers(value) : name === "rounding" ? value : Number.isInteger(Number(value || NaN)) ? Number(value) : value;
    }
    problem("set", "");
    say({ do: "set", settings });
  } catch (error) {
    problem("set", error.message);
  }
}

function listenToTraining() {
  for (const button of document.querySelectorAll("[data-how]")) button.addEventListener("click", () => {
    say({ do: "train", how: button.dataset.how });
    if (about.run && button.dataset.how !== "pause") look("trained");
  });
  $("#settings").addEventListener("submit", (event) => event.preventDefault());
  $("#settings").addEventListener("change", (event) => { if (event.target.id !== "rate") sendSettings(); });
  $("#rate").addEventListener("input", (event) => {
    const rate = Number((10 ** Number(event.target.value)).toPrecision(2));
    showRate(rate);
    say({ do: "set", rate });
  });
}

readColours();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readColours(); if (about) look($("#which :checked").value === "run" && about.run ? "run" : "trained"); });
listenToPicture();
listenToTraining();
connect();
