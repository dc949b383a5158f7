// The page of the service. It uses the same API as any other client, and explains what went wrong in words.

const $ = (id) => document.getElementById(id);
const settings = JSON.parse(document.querySelector("meta[name=base-map]").content);
const K = 8;
let token = sessionStorage.getItem("s2s-token") || "";

class ServiceError extends Error {}

async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError("The service cannot be reached. Is it running, and was this page loaded from it?");
  }
  if (response.ok) return response;
  if (response.status === 401) $("access").hidden = false;
  const text = await response.text();
  let sentence;
  try { sentence = JSON.parse(text).error; } catch { /* the proxy responds in plain text */ }
  const wait = response.headers.get("Retry-After");
  throw new ServiceError((sentence || `The service responded with ${response.status}: ${text.slice(0, 200) || response.statusText}.`)
    + (wait && response.status === 503 ? ` Try again in ${wait} s.` : ""));
}

const images = new Map();  // promises of blobs by path and #release, since an <img> cannot send a token
function loadImage(path) {
  if (!images.has(path)) {
    const blob = request(path).then((response) => response.blob());
    blob.catch(() => images.delete(path));
    images.set(path, blob);
  }
  return images.get(path);
}

function show(image, path) {
  loadImage(path).then((blob) => { image.src = URL.createObjectURL(blob); }).catch(() => { image.hidden = true; });
}

function degrees(value) {
  const names = ["N", "NE", "E", "SE", "S", "SW", "W", "NW"];
  const bearing = ((value % 360) + 360) % 360;
  return `${names[Math.round(bearing / 45) % 8]} ${Math.round(bearing)}°`;
}

function metres(value) {
  return value < 1000 ? `${Math.round(value)} m` : `${(value / 1000).toFixed(1)} km`;
}

// Draw an image of the whole horizon, shifted to the right by a fraction of its width.
function draw(canvas, image, fraction) {
  canvas.width = Math.min(image.width, 1600);
  canvas.height = Math.round((canvas.width * image.height) / image.width);
  const context = canvas.getContext("2d");
  const shift = (((fraction % 1) + 1) % 1) * canvas.width;
  for (const left of [shift - canvas.width, shift]) context.drawImage(image, left, 0, canvas.width, canvas.height);
}

async function toImage(blob, what) {
  try { return await createImageBitmap(blob); } catch {
    throw new ServiceError(`This browser cannot display the ${what}, but the service may be able to read it, for example if it is a TIFF.`);
  }
}

function reportingErrors(id, work) {
  return async (...parameters) => {
    $(`${id}-error`).textContent = "";
    try { await work(...parameters); } catch (error) {
      if (error.name === "AbortError") return;
      $(`${id}-status`).textContent = "";
      $(`${id}-error`).textContent = error instanceof ServiceError ? error.message : `This page has a bug: ${error.message}`;
    }
  };
}

// ---- localisation

const query = { blob: null, image: null, truth: null, rows: null, pending: null };
let map = null;
let markers = null;

const localize = reportingErrors("localize", async () => {
  query.pending?.abort();
  query.pending = new AbortController();
  const heading = Number($("heading").value);
  $("heading-value").textContent = degrees(heading);
  if (query.image) draw($("panorama"), query.image, heading / 360);
  $("localize-status").textContent = "Searching…";
  const parameters = new URLSearchParams({ heading });
  if (served.count < K) parameters.set("k", served.count); else parameters.set("k", K);
  if (query.rows) parameters.set("rows", query.rows);
  if (query.truth) parameters.set("true", query.truth.join(","));
  const response = await request(`v1/localize?${parameters}`, {
    method: "POST", body: query.blob, signal: query.pending.signal,
    headers: { "Content-Type": query.blob.type || "application/octet-stream" },
  });
  const { release, matches } = await response.json();
  $("localize-status").textContent = matches.length
    ? `The ${matches.length} most likely of ${served.count.toLocaleString("en")} tiles, from release ${release}.`
    : "No tile was found.";
  list(matches);
  plot(matches);
});

const openPanorama = reportingErrors("localize", async (blob, { truth = null, rows = null, heading = 0 } = {}) => {
  Object.assign(query, { blob, truth, rows, image: null });
  $("heading").value = heading;
  $("query").hidden = false;
  $("panorama").hidden = false;
  $("matches").replaceChildren();
  markers?.clearLayers();
  let undisplayed = null;
  try { query.image = await toImage(blob, "panorama"); } catch (error) { undisplayed = error; $("panorama").hidden = true; }
  await localize();
  if (undisplayed && !$("localize-error").textContent) $("localize-error").textContent = undisplayed.message;
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
    show(image, `v1/thumbnail?id=${encodeURIComponent(match.id)}#${encodeURIComponent(served.release)}`);
    const details = document.createElement("div");
    const position = match.latitude === null ? "unknown position" : `${match.latitude.toFixed(6)}, ${match.longitude.toFixed(6)}`;
    const lines = [match.id, position, `descriptor distance ${match.descriptor_distance.toFixed(3)}`];
    if (match.distance_m !== null) lines.splice(1, 0, `${metres(match.distance_m)} from the true position`);
    details.append(...lines.map((text) => Object.assign(document.createElement("p"), { textContent: text })));
    item.append(rank, image, details);
    const showOnMap = () => { if (map && match.latitude !== null) map.setView([match.latitude, match.longitude], 18); };
    item.addEventListener("click", showOnMap);
    item.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); showOnMap(); } });
    return item;
  }));
}

function plot(matches) {
  const placed = matches.filter((match) => match.latitude !== null && match.longitude !== null);
  const why = !window.L ? "There is no map because its library is not installed (python -m s2s_ray.service.deploy.vendor)."
    : placed.length ? "" : "There is no map because the tiles of this index have no positions.";
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
    show(image, `v1/thumbnail?id=${encodeURIComponent(match.id)}#${encodeURIComponent(served.release)}`);
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
    L.marker(query.truth, { icon, title: "True position", alt: "True position", interactive: false }).addTo(markers);
  }
  map.invalidateSize();
  map.fitBounds(L.latLngBounds(points).pad(0.2), { animate: false, maxZoom: 18 });
}

// ---- synthesis

const view = { street: null };

function showDirection() {
  const direction = Number($("turn").value);
  $("turn-value").textContent = degrees(direction);
  if (view.street) draw($("street"), view.street, -direction / 360);
  $("street-compass").replaceChildren(...[-180, -90, 0, 90, 180].map((offset) => {
    const label = document.createElement("span");
    label.textContent = degrees(direction + offset);
    return label;
  }));
}

function fromBase64(text, type) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return createImageBitmap(new Blob([bytes], { type }));
}

const synthesize = reportingErrors("synthesize", async (blob) => {
  $("synthesize-status").textContent = "Synthesising…";
  $("drawn").hidden = true;
  const response = await request("v1/synthesize", {
    method: "POST", body: blob,
    headers: { "Content-Type": blob.type || "application/octet-stream", Accept: "application/json" },
  });
  const { release, images: [image] } = await response.json();
  view.street = await fromBase64(image.street, image.content_type);
  draw($("polar"), await fromBase64(image.polar, image.content_type), 0);
  $("tile").src = URL.createObjectURL(blob);
  $("drawn").hidden = false;
  $("turn").value = 0;
  showDirection();
  $("synthesize-status").textContent = `Synthesised by release ${release}.`;
});

// ---- files, examples, start

function acceptFiles(input, handle) {
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
  const path = new URL(place[kind], new URL("v1/examples", document.baseURI)).href;
  show(image, path);
  button.append(image);
  button.addEventListener("click", async () => open(await loadImage(path), place));
  return button;
}

const served = { release: "", count: 0 };

async function start() {
  try {
    const model = await (await request("v1/model")).json();
    Object.assign(served, { release: model.release, count: model.index.count });
    $("served").textContent = `release ${model.release} · ${model.index.count.toLocaleString("en")} tiles · ${model.width} × ${model.height} px`;
    const { examples } = await (await request("v1/examples")).json();
    const panoramas = examples.map((place) => exampleButton(place, "street", (blob) => openPanorama(blob, {
      rows: "0,1", truth: place.latitude === null ? null : [place.latitude, place.longitude],
    })));
    $("panorama-examples").replaceChildren(...panoramas);
    $("tile-examples").replaceChildren(...examples.map((place) => exampleButton(place, "tile", synthesize)));
    for (const id of ["panorama-examples", "tile-examples"]) $(id).hidden = !examples.length;
  } catch (error) {
    $("served").textContent = error.message;
  }
}

acceptFiles($("panorama-file"), (file) => openPanorama(file));
acceptFiles($("tile-file"), synthesize);
let pause = 0;
$("heading").addEventListener("input", () => {
  const heading = Number($("heading").value);
  $("heading-value").textContent = degrees(heading);
  if (query.image) draw($("panorama"), query.image, heading / 360);
  clearTimeout(pause);
  pause = setTimeout(localize, 250);
});
$("turn").addEventListener("input", showDirection);
$("use-token").addEventListener("click", () => {
  token = $("token").value.trim();
  sessionStorage.setItem("s2s-token", token);
  start();
});
start();
