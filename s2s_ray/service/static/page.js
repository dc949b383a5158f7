// The page of the service: asks the same paths as any other client, and says in words what went wrong.

const $ = (id) => document.getElementById(id);
const settings = JSON.parse(document.querySelector("meta[name=base-map]").content);
const K = 8;
let token = sessionStorage.getItem("s2s-token") || "";

class Refusal extends Error {}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (fault) {
    if (fault.name === "AbortError") throw fault;
    throw new Refusal("The service cannot be reached. Is it running, and is this page from it?");
  }
  if (answer.ok) return answer;
  if (answer.status === 401) $("access").hidden = false;
  const text = await answer.text();
  let sentence;
  try { sentence = JSON.parse(text).error; } catch { /* the proxy answers in plain text */ }
  const wait = answer.headers.get("Retry-After");
  throw new Refusal((sentence || `The service answered ${answer.status}: ${text.slice(0, 200) || answer.statusText}.`)
    + (wait && answer.status === 503 ? ` (In ${wait} s it may go.)` : ""));
}

const pictures = new Map();  // by path: promises of blobs, since an <img> cannot send a token
function picture(path) {
  if (!pictures.has(path)) {
    const blob = ask(path).then((answer) => answer.blob());
    blob.catch(() => pictures.delete(path));
    pictures.set(path, blob);
  }
  return pictures.get(path);
}

function show(image, path) {
  picture(path).then((blob) => { image.src = URL.createObjectURL(blob); }).catch(() => { image.hidden = true; });
}

function degrees(value) {
  const names = ["N", "NE", "E", "SE", "S", "SW", "W", "NW"];
  const turned = ((value % 360) + 360) % 360;
  return `${names[Math.round(turned / 45) % 8]} ${Math.round(turned)}°`;
}

function metres(value) {
  return value < 1000 ? `${Math.round(value)} m` : `${(value / 1000).toFixed(1)} km`;
}

// Draw an image of the whole horizon moved to the right by a part of its width.
function draw(canvas, image, part) {
  canvas.width = Math.min(image.width, 1600);
  canvas.height = Math.round((canvas.width * image.height) / image.width);
  const context = canvas.getContext("2d");
  const shift = (((part % 1) + 1) % 1) * canvas.width;
  for (const left of [shift - canvas.width, shift]) context.drawImage(image, left, 0, canvas.width, canvas.height);
}

async function toImage(blob, what) {
  try { return await createImageBitmap(blob); } catch {
    throw new Refusal(`This browser cannot show the ${what}; the service may still read it, as TIFF for example.`);
  }
}

function failing(id, work) {
  return async (...parameters) => {
    $(`${id}-error`).textContent = "";
    try { await work(...parameters); } catch (fault) {
      if (fault.name === "AbortError") return;
      $(`${id}-status`).textContent = "";
      $(`${id}-error`).textContent = fault instanceof Refusal ? fault.message : `Something in this page failed: ${fault.message}`;
    }
  };
}

// ---- localisation

const query = { blob: null, image: null, truth: null, rows: null, asked: null };
let map = null;
let markers = null;

const localize = failing("localize", async () => {
  query.asked?.abort();
  query.asked = new AbortController();
  const heading = Number($("heading").value);
  $("heading-value").textContent = degrees(heading);
  if (query.image) draw($("panorama"), query.image, heading / 360);
  $("localize-status").textContent = "Searching…";
  const parameters = new URLSearchParams({ heading });
  if (served.count < K) parameters.set("k", served.count); else parameters.set("k", K);
  if (query.rows) parameters.set("rows", query.rows);
  if (query.truth) parameters.set("true", query.truth.join(","));
  const answer = await ask(`v1/localize?${parameters}`, {
    method: "POST", body: query.blob, signal: query.asked.signal,
    headers: { "Content-Type": query.blob.type || "application/octet-stream" },
  });
  const { release, matches } = await answer.json();
  $("localize-status").textContent = matches.length
    ? `${matches.length} most likely of ${served.count.toLocaleString("en")} tiles, from release ${release}.`
    : "No tile was found.";
  list(matches);
  plot(matches);
});

const opened = failing("localize", async (blob, { truth = null, rows = null, heading = 0 } = {}) => {
  Object.assign(query, { blob, truth, rows, image: null });
  $("heading").value = heading;
  $("query").hidden = false;
  $("panorama").hidden = false;
  $("matches").replaceChildren();
  markers?.clearLayers();
  let unseen = null;
  try { query.image = await toImage(blob, "panorama"); } catch (fault) { unseen = fault; $("panorama").hidden = true; }
  await localize();
  if (unseen && !$("localize-error").textContent) $("localize-error").textContent = unseen.message;
});

function isRight(match) { return match.distance_m !== null && match.distance_m < 1; }

function list(matches) {
  $("matches").replaceChildren(...matches.map((match) => {
    const item = document.createElement("li");
    item.tabIndex = 0;
    item.className = isRight(match) ? "right" : "";
    const rank = document.createElement("b");
    rank.textContent = match.rank;
    const image = document.createElement("img");
    image.alt = `Tile ${match.id}`;
    show(image, `v1/thumbnail?id=${encodeURIComponent(match.id)}&release=${encodeURIComponent(served.release)}`);
    const words = document.createElement("div");
    const place = match.latitude === null ? "position not known" : `${match.latitude.toFixed(6)}, ${match.longitude.toFixed(6)}`;
    const lines = [match.id, place, `descriptor distance ${match.descriptor_distance.toFixed(3)}`];
    if (match.distance_m !== null) lines.splice(1, 0, `${metres(match.distance_m)} from the true place`);
    words.append(...lines.map((text) => Object.assign(document.createElement("p"), { textContent: text })));
    item.append(rank, image, words);
    const go = () => { if (map && match.latitude !== null) map.setView([match.latitude, match.longitude], 18); };
    item.addEventListener("click", go);
    item.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); go(); } });
    return item;
  }));
}

function plot(matches) {
  const placed = matches.filter((match) => match.latitude !== null && match.longitude !== null);
  const why = !window.L ? "There is no map: its library is not installed (make setup fetches it)."
    : placed.length ? "" : "There is no map: the tiles of this index have no positions.";
  $("no-map").textContent = why;
  $("no-map").hidden = !why;
  $("map").hidden = Boolean(why);
  if (why) return;
  if (!map) {
    map = L.map("map", { attributionControl: Boolean(settings.url), zoomSnap: 0.5, maxZoom: 20 });
    if (settings.url) L.tileLayer(settings.url, { attribution: settings.attribution, maxNativeZoom: 19, maxZoom: 20 }).addTo(map);
    L.control.scale({ imperial: false }).addTo(map);
    markers = L.layerGroup().addTo(map);
  }
  markers.clearLayers();
  const points = placed.map((match) => [match.latitude, match.longitude]);
  for (const match of [...placed].reverse()) {
    const pin = document.createElement("div");
    pin.className = `pin${isRight(match) ? " right" : ""}`;
    pin.style.height = "100%";
    const image = document.createElement("img");
    image.alt = "";
    show(image, `v1/thumbnail?id=${encodeURIComponent(match.id)}&release=${encodeURIComponent(served.release)}`);
    const rank = document.createElement("b");
    rank.textContent = match.rank;
    pin.append(image, rank);
    const side = match.rank === 1 ? 64 : 44;
    const icon = L.divIcon({ html: pin, className: "", iconSize: [side, side] });
    L.marker([match.latitude, match.longitude], { icon, title: `${match.rank}: ${match.id}`, alt: `Match ${match.rank}`, zIndexOffset: 1000 - match.rank })
      .addTo(markers);
  }
  if (query.truth) {
    points.push(query.truth);
    const icon = L.divIcon({ className: "truth", iconSize: [80, 80] });
    L.marker(query.truth, { icon, title: "True place", alt: "True place", interactive: false }).addTo(markers);
  }
  map.invalidateSize();
  map.fitBounds(L.latLngBounds(points).pad(0.2), { animate: false, maxZoom: 18 });
}

// ---- synthesis

const view = { street: null };

function turn() {
  const towards = Number($("turn").value);
  $("turn-value").textContent = degrees(towards);
  if (view.street) draw($("street"), view.street, -towards / 360);
  $("street-compass").replaceChildren(...[-180, -90, 0, 90, 180].map((offset) => {
    const mark = document.createElement("span");
    mark.textContent = degrees(towards + offset);
    return mark;
  }));
}

function fromBase64(text, type) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return createImageBitmap(new Blob([bytes], { type }));
}

const synthesize = failing("synthesize", async (blob) => {
  $("synthesize-status").textContent = "Drawing…";
  $("drawn").hidden = true;
  const answer = await ask("v1/synthesize", {
    method: "POST", body: blob,
    headers: { "Content-Type": blob.type || "application/octet-stream", Accept: "application/json" },
  });
  const { release, images: [image] } = await answer.json();
  view.street = await fromBase64(image.street, image.content_type);
  draw($("polar"), await fromBase64(image.polar, image.content_type), 0);
  $("tile").src = URL.createObjectURL(blob);
  $("drawn").hidden = false;
  $("turn").value = 0;
  turn();
  $("synthesize-status").textContent = `Drawn by release ${release}.`;
});

// ---- files, examples, start

function takesFiles(input, handle) {
  const zone = input.closest(".drop");
  input.addEventListener("change", () => { if (input.files[0]) handle(input.files[0]); input.value = ""; });
  for (const name of ["dragover", "dragleave", "drop"]) {
    zone.addEventListener(name, (event) => {
      event.preventDefault();
      zone.classList.toggle("over", name === "dragover");
      if (name === "drop" && event.dataTransfer.files[0]) handle(event.dataTransfer.files[0]);
    });
  }
}

function exampleButton(place, kind, open) {
  const button = document.createElement("button");
  button.type = "button";
  const image = document.createElement("img");
  image.alt = `${kind === "street" ? "Panorama" : "Tile"} of ${place.id}`;
  show(image, place[kind]);
  button.append(image);
  button.addEventListener("click", async () => open(await picture(place[kind]), place));
  return button;
}

const served = { release: "", count: 0 };

async function start() {
  try {
    const model = await (await ask("v1/model")).json();
    Object.assign(served, { release: model.release, count: model.index.count });
    $("served").textContent = `release ${model.release} · ${model.index.count.toLocaleString("en")} tiles · ${model.width} × ${model.height} px`;
    const { examples } = await (await ask("v1/examples")).json();
    const panoramas = examples.map((place) => exampleButton(place, "street", (blob) => opened(blob, {
      rows: "0,1", truth: place.latitude === null ? null : [place.latitude, place.longitude],
    })));
    $("panorama-examples").replaceChildren(...panoramas);
    $("tile-examples").replaceChildren(...examples.map((place) => exampleButton(place, "tile", synthesize)));
    for (const id of ["panorama-examples", "tile-examples"]) $(id).hidden = !examples.length;
  } catch (fault) {
    $("served").textContent = fault.message;
  }
}

takesFiles($("panorama-file"), (file) => opened(file));
takesFiles($("tile-file"), synthesize);
let pause = 0;
$("heading").addEventListener("input", () => {
  const heading = Number($("heading").value);
  $("heading-value").textContent = degrees(heading);
  if (query.image) draw($("panorama"), query.image, heading / 360);
  clearTimeout(pause);
  pause = setTimeout(localize, 250);
});
$("turn").addEventListener("input", turn);
$("use-token").addEventListener("click", () => {
  token = $("token").value.trim();
  sessionStorage.setItem("s2s-token", token);
  start();
});
start();
