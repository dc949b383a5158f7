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

const query = { blob: null, image: null, truth: null, rows: null, pending: null, answer: null };
const FROM = { given: "given by you", file: "from the file", release: "the release’s default", estimated: "estimated", assumed: "assumed" };
const KINDS = { equirectangular: "panorama", rectilinear: "photograph", cylindrical: "sweep on a cylinder" };
let map = null;
let layers = null;

function chosen(name) { return document.querySelector(`input[name=${name}]:checked`).value; }
function choose(name, value) { document.querySelector(`input[name=${name}][value=${value}]`).checked = true; }

function parameters() {
  const asked = new URLSearchParams({ k: Math.min(K, served.count), surface: "true" });
  asked.set("heading", chosen("heading") === "given" ? $("heading").value : chosen("heading"));
  asked.set("fov", chosen("fov") === "given" ? $("fov").value : "auto");
  if ($("projection").value !== "auto") asked.set("projection", $("projection").value);
  if (query.rows) asked.set("rows", query.rows);
  if (query.truth) asked.set("true", query.truth.join(","));
  return asked;
}

const localize = reportingErrors("localize", async () => {
  query.pending?.abort();
  query.pending = new AbortController();
  showPicture();
  $("localize-status").textContent = "Searching…";
  try {
    const response = await request(`v1/localize?${parameters()}`, {
      method: "POST", body: query.blob, signal: query.pending.signal,
      headers: { "Content-Type": query.blob.type || "application/octet-stream" },
    });
    query.answer = await response.json();
  } catch (error) {
    if (error.name !== "AbortError") clearAnswer();
    throw error;
  }
  const { release, matches } = query.answer;
  $("localize-status").textContent = matches.length
    ? `The ${matches.length} most likely of ${served.count.toLocaleString("en")} tiles, from release ${release}.`
    : "No tile was found.";
  describeQuery(query.answer.query);
  describeFix(query.answer.fix);
  showBest(query.answer);
  list(matches);
  showPicture();
  plot(query.answer);
});

function clearAnswer() {
  query.answer = null;
  for (const id of ["fix", "best", "map", "no-map"]) $(id).hidden = true;
  for (const id of ["file-says", "warnings", "matches"]) $(id).replaceChildren();
  layers?.clearLayers();
}

// A panorama is drawn with north in the middle, if its bearing is known; a photograph as it is.
function showPicture() {
  $("heading-value").textContent = degrees(Number($("heading").value));
  $("fov-value").textContent = `${$("fov").value}°`;
  if (!query.image) return;
  const known = query.answer?.query;
  const isWhole = known ? known.fov >= 360 : query.image.width >= 2 * query.image.height;
  const given = chosen("heading") === "given" ? Number($("heading").value) : null;
  const bearing = given ?? query.answer?.fix?.heading?.degrees ?? known?.heading ?? null;
  draw($("picture"), query.image, isWhole && bearing !== null ? bearing / 360 : 0);
  $("picture-compass").hidden = !(isWhole && bearing !== null);
  $("picture-caption").textContent = !isWhole ? ""
    : bearing === null ? "The panorama as it is in the file."
      : "The panorama, turned so that north is in the middle if its bearing is right.";
}

const openPicture = reportingErrors("localize", async (blob, { truth = null, rows = null, heading = null, fov = null } = {}) => {
  clearAnswer();
  Object.assign(query, { blob, truth, rows, image: null });
  choose("heading", heading === null ? "auto" : "given");
  choose("fov", fov === null ? "auto" : "given");
  $("heading").value = heading ?? 0;
  $("fov").value = fov ?? 70;
  $("projection").value = fov === 360 ? "equirectangular" : "auto";
  $("query").hidden = false;
  $("picture").hidden = false;
  let undisplayed = null;
  try { query.image = await toImage(blob, "picture"); } catch (error) { undisplayed = error; $("picture").hidden = true; }
  await localize();
  if (undisplayed && !$("localize-error").textContent) $("localize-error").textContent = undisplayed.message;
});

// What the service has read from the file or was told, and where each value comes from.
function describeQuery(known) {
  const rows = [
    ["Bearing", known.heading === null ? "unknown: every bearing was tried"
      : `${degrees(known.heading)}${known.heading_spread ? ` ± ${Math.round(known.heading_spread)}°` : ""}, ${FROM[known.heading_origin]}`],
    ["Field of view", `${Math.round(known.fov)}°, ${FROM[known.fov_origin]}`],
    ["Kind", `${KINDS[known.projection]}, ${FROM[known.projection_origin]}`],
  ];
  if (known.position) {
    rows.push(["Position", `${known.position.latitude.toFixed(6)}, ${known.position.longitude.toFixed(6)}, in the file; the search does not use it`]);
  }
  if (known.pitch || known.roll) rows.push(["Camera", `pitched by ${Math.round(known.pitch)}°, rolled by ${Math.round(known.roll)}°`]);
  $("file-says").replaceChildren(...rows.flatMap(([name, value]) => [
    Object.assign(document.createElement("dt"), { textContent: name }),
    Object.assign(document.createElement("dd"), { textContent: value }),
  ]));
  $("warnings").replaceChildren(...known.warnings.map((text) => Object.assign(document.createElement("li"), { textContent: text })));
}

function percent(probability) { return `${Math.round(100 * probability)}%`; }

function describeFix(fix) {
  $("fix").hidden = !fix;
  if (!fix) return;
  const { position, heading, peaks } = fix;
  const place = `${position.latitude.toFixed(6)}, ${position.longitude.toFixed(6)}`;
  $("fix").className = fix.in_region === false ? "outside" : "";
  $("fix-position").textContent = fix.in_region === false
    ? `This picture was probably not taken in this region (${percent(1 - fix.in_region_probability)}). The closest position is ${place}.`
    : position.radius_m === null ? `Most likely ${place}.` : `Within ${metres(position.radius_m)} of ${place}.`;
  const lines = [];
  if (position.radius_m !== null) lines.push(`The circles hold the true position in 68% (${metres(position.radius_m)}) and 95% (${metres(position.radius_95_m)}) of cases.`);
  if (heading) lines.push(`The middle of the picture looks ${degrees(heading.degrees)}${!heading.spread ? "" : `, give or take ${Math.round(heading.spread)}°`}.`);
  if (fix.confidence !== null) lines.push(`Confidence ${percent(fix.confidence)} that this is right within ${metres(fix.confidence_m)}.`);
  if (fix.in_region) lines.push(`Taken in this region: ${percent(fix.in_region_probability)}.`);
  if (fix.distance_m !== null && fix.distance_m !== undefined) lines.push(`${metres(fix.distance_m)} from ${origin()}.`);
  if (peaks.length > 1) lines.push(`Other places are possible: ${peaks.slice(1).map((peak) => `${peak.latitude.toFixed(5)}, ${peak.longitude.toFixed(5)}${peak.probability === null ? "" : ` (${percent(peak.probability)})`}`).join("; ")}.`);
  if (!fix.calibrated) lines.push("This release was published without a calibration, so there is no radius and no confidence.");
  $("fix-details").replaceChildren(...lines.map((text) => Object.assign(document.createElement("li"), { textContent: text })));
}

// The part of the horizon around a bearing as an SVG path around the origin, north up.
function wedge(bearing, width, radius) {
  if (width >= 360) return `M0 0L${radius * Math.sin(bearing * Math.PI / 180)} ${-radius * Math.cos(bearing * Math.PI / 180)}`;
  const [from, to] = [bearing - width / 2, bearing + width / 2].map((angle) => (angle * Math.PI) / 180);
  return `M0 0L${radius * Math.sin(from)} ${-radius * Math.cos(from)}A${radius} ${radius} 0 ${width > 180 ? 1 : 0} 1 ${radius * Math.sin(to)} ${-radius * Math.cos(to)}Z`;
}

function showBest({ matches, query: known, fix }) {
  $("best").hidden = !matches.length;
  if (!matches.length) return;
  const bearing = matches[0].heading ?? fix?.heading?.degrees ?? known.heading;
  $("best-tile").hidden = false;
  show($("best-tile"), `v1/thumbnail?id=${encodeURIComponent(matches[0].id)}#${encodeURIComponent(served.release)}`);
  $("best-wedge").querySelector("path").setAttribute("d", bearing === null ? "" : wedge(bearing, known.fov, 0.95));
}

// Distances count from the position in the file if the true one is not known.
function origin() { return query.truth ? "the true position" : "the position in the file"; }

function isRight(match) { return query.truth !== null && match.distance_m !== null && match.distance_m < 1; }

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
    if (match.distance_m !== null) lines.splice(1, 0, `${metres(match.distance_m)} from ${origin()}`);
    details.append(...lines.map((text) => Object.assign(document.createElement("p"), { textContent: text })));
    item.append(rank, image, details);
    const showOnMap = () => { if (map && match.latitude !== null) map.setView([match.latitude, match.longitude], 18); };
    item.addEventListener("click", showOnMap);
    item.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); showOnMap(); } });
    return item;
  }));
}

// The point some metres from another one, in a direction; exact enough for drawing.
function beyond([latitude, longitude], bearing, distance) {
  const angle = (bearing * Math.PI) / 180;
  const degree = 111320;
  return [latitude + (distance * Math.cos(angle)) / degree,
    longitude + (distance * Math.sin(angle)) / (degree * Math.max(0.01, Math.cos((latitude * Math.PI) / 180)))];
}

function plot({ matches, fix, surface, query: known }) {
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
    layers = L.layerGroup().addTo(map);
  }
  layers.clearLayers();
  const points = [];
  if (surface) plotSurface(surface);
  if (fix) points.push(...plotFix(fix, known));
  plotMatches(placed, Boolean(fix));
  const truth = query.truth ?? (known.position ? [known.position.latitude, known.position.longitude] : null);
  if (truth) {
    const title = query.truth ? "True position" : "Position in the file";
    points.push(truth);
    L.marker(truth, { icon: L.divIcon({ className: "truth", iconSize: [22, 22] }), title, alt: title, interactive: false }).addTo(layers);
  }
  if (!fix) points.push(...placed.map((match) => [match.latitude, match.longitude]));
  map.invalidateSize();
  map.fitBounds(L.latLngBounds(points).pad(0.2), { animate: false, maxZoom: 18 });
}

// How likely each point of the index is, as squares between its neighbours.
function plotSurface({ points, spacing_m }) {
  const renderer = L.canvas();
  const most = Math.max(...points.map((point) => point.probability));
  for (const { latitude, longitude, probability } of points) {
    const half = Math.max(spacing_m ?? 0, 4) / Math.SQRT2;
    const corners = [beyond([latitude, longitude], 225, half), beyond([latitude, longitude], 45, half)];
    L.rectangle(corners, { renderer, stroke: false, fillColor: "#c2410c", fillOpacity: 0.75 * Math.sqrt(probability / most), interactive: false }).addTo(layers);
  }
}

// The circles and the heading of a fix; returns the points that the map should show.
function plotFix({ position, heading, peaks, in_region: inRegion }, known) {
  const centre = [position.latitude, position.longitude];
  const colour = inRegion === false ? "#a3231f" : "#0b6e4f";
  const far = [];
  for (const [radius, style] of [[position.radius_95_m, { dashArray: "4 6", fill: false, weight: 2 }], [position.radius_m, { fillOpacity: 0.12, weight: 2 }]]) {
    if (radius === null) continue;
    L.circle(centre, { radius, color: colour, interactive: false, ...style }).addTo(layers);
    far.push(radius);
  }
  if (heading) {
    const reach = Math.max(25, 1.5 * (position.radius_m ?? 20));
    const width = known.fov < 360 ? known.fov : Math.max(4, 2 * (heading.spread ?? 3));
    const steps = [...Array(17).keys()].map((step) => beyond(centre, heading.degrees + width * (step / 16 - 0.5), reach));
    L.polygon([centre, ...steps], { color: colour, weight: 1, fillOpacity: 0.35, interactive: false, className: "wedge" }).addTo(layers);
    far.push(reach);
  }
  L.circleMarker(centre, { radius: 5, color: "#fff", weight: 2, fillColor: colour, fillOpacity: 1, className: "fix" }).bindTooltip("Position").addTo(layers);
  for (const peak of peaks.slice(1)) {
    L.circleMarker([peak.latitude, peak.longitude], { radius: 7, color: "#7c3aed", weight: 2, fillOpacity: 0.2, className: "peak" })
      .bindTooltip(`Also possible: ${percent(peak.probability)}`).addTo(layers);
  }
  const reach = Math.max(...far, 30);
  return [0, 90, 180, 270].map((bearing) => beyond(centre, bearing, reach)).concat(peaks.slice(1).map((peak) => [peak.latitude, peak.longitude]));
}

function plotMatches(placed, small) {
  for (const match of [...placed].reverse()) {
    const pin = document.createElement("div");
    pin.className = `pin${isRight(match) ? " right" : ""}${small ? " small" : ""}`;
    const rank = document.createElement("b");
    rank.textContent = match.rank;
    if (!small) {
      const image = document.createElement("img");
      image.alt = "";
      show(image, `v1/thumbnail?id=${encodeURIComponent(match.id)}#${encodeURIComponent(served.release)}`);
      pin.append(image);
    }
    pin.append(rank);
    const side = small ? 20 : match.rank === 1 ? 64 : 44;
    const icon = L.divIcon({ html: pin, className: "", iconSize: [side, side] });
    L.marker([match.latitude, match.longitude], { icon, title: `${match.rank}: ${match.id}`, alt: `Match ${match.rank}`, zIndexOffset: 1000 - match.rank })
      .addTo(layers);
  }
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
    const panoramas = examples.map((place) => exampleButton(place, "street", (blob) => openPicture(blob, {
      rows: "0,1", heading: 0, fov: 360, truth: place.latitude === null ? null : [place.latitude, place.longitude],
    })));
    $("picture-examples").replaceChildren(...panoramas);
    $("tile-examples").replaceChildren(...examples.map((place) => exampleButton(place, "tile", synthesize)));
    for (const id of ["picture-examples", "tile-examples"]) $(id).hidden = !examples.length;
  } catch (error) {
    $("served").textContent = error.message;
  }
}

acceptFiles($("picture-file"), (file) => openPicture(file));
acceptFiles($("tile-file"), synthesize);
let pause = 0;
function searchSoon() {
  showPicture();
  clearTimeout(pause);
  pause = setTimeout(localize, 250);
}
for (const name of ["heading", "fov"]) {
  $(name).addEventListener("input", () => { choose(name, "given"); searchSoon(); });
  for (const choice of document.querySelectorAll(`input[name=${name}]`)) choice.addEventListener("change", searchSoon);
}
$("projection").addEventListener("change", searchSoon);
$("turn").addEventListener("input", showDirection);
$("use-token").addEventListener("click", () => {
  token = $("token").value.trim();
  sessionStorage.setItem("s2s-token", token);
  start();
});
start();
