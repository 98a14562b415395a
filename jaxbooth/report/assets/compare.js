// A photo and a sample side by side, zoomed and moved together, so that the same part of both is seen.
const view = {rows: [], row: 0, cell: 0, step: 0, photo: 0, set: null, zoom: 1, x: 0, y: 0};

function openCompare(target) {
  const own = [...subjectRows, ...priorRows];
  view.rows = target.row && evaluatedRows.includes(target.row) ? evaluatedRows : own;
  const has = row => row.cells.some(cell => cell.source === target.source);
  view.row = target.row ? view.rows.indexOf(target.row) : Math.max(0, view.rows.findIndex(has));
  const cells = view.rows[view.row]?.cells ?? [];
  view.cell = Math.max(0, target.cell ? cells.indexOf(target.cell) : cells.findIndex(cell => cell.source === target.source));
  view.step = target.step ?? allSteps[allSteps.length - 1] ?? 0;
  view.photo = target.photo ?? view.photo;
  view.set = target.set ?? null;
  Object.assign(view, {zoom: 1, x: 0, y: 0});
  byId("zoom").value = "1";
  showCompare();
  byId("compare").showModal();
}
function currentCell() {
  const cells = view.rows[view.row]?.cells ?? [];
  return cells[Math.min(view.cell, cells.length - 1)];
}
function currentPhotos() {
  return data.photos[currentCell()?.photos ?? view.set] ?? [];
}
function showCompare() {
  const row = view.rows[view.row], cell = currentCell(), photos = currentPhotos();
  const [left, right] = [byId("photo-pane"), byId("shot-pane")];
  left.replaceChildren();
  right.replaceChildren();
  if (photos.length) {
    view.photo %= photos.length;
    left.append(picture(photos[view.photo], "photo"));
  }
  byId("photo-name").textContent = photos.length ? `photo ${view.photo + 1} of ${photos.length}` : "no photo";
  if (cell) {
    const shot = shotAt(cell, view.step);
    right.append(picture(shot[2], row.label));
    byId("shot-name").textContent = `${row.label}, ${data.sources[cell.source].name}, ${shot[1]}`;
    byId("compare-step").max = String(cell.shots.length - 1);
    byId("compare-step").value = String(cell.shots.indexOf(shot));
  } else byId("shot-name").textContent = "no sample";
  byId("next-photo").hidden = photos.length < 2;
  byId("next-source").hidden = !row || row.cells.length < 2;
  byId("compare-step").parentElement.hidden = !cell || cell.shots.length < 2;
  byId("next-prompt").hidden = byId("previous-prompt").hidden = view.rows.length < 2;
  place();
}
function place() {
  const room = (view.zoom - 1) / 2;
  view.x = Math.max(-room, Math.min(room, view.x));
  view.y = Math.max(-room, Math.min(room, view.y));
  for (const image of document.querySelectorAll(".pane img")) {
    image.style.transform = `translate(${view.x * 100}%,${view.y * 100}%) scale(${view.zoom})`;
  }
}
function zoomTo(zoom) {
  const next = Math.max(1, Math.min(8, zoom));
  view.x *= next / view.zoom;
  view.y *= next / view.zoom;
  view.zoom = next;
  byId("zoom").value = String(next);
  place();
}
function turn(name, by, count) {
  view[name] = (view[name] + by + count) % count;
  showCompare();
}
byId("close").addEventListener("click", () => byId("compare").close());
byId("zoom").addEventListener("input", () => zoomTo(Number(byId("zoom").value)));
byId("next-photo").addEventListener("click", () => turn("photo", 1, currentPhotos().length));
byId("next-source").addEventListener("click", () => turn("cell", 1, view.rows[view.row].cells.length));
byId("next-prompt").addEventListener("click", () => turn("row", 1, view.rows.length));
byId("previous-prompt").addEventListener("click", () => turn("row", -1, view.rows.length));
byId("compare-step").addEventListener("input", () => {
  view.step = currentCell().shots[Number(byId("compare-step").value)][0];
  showCompare();
});
for (const pane of document.querySelectorAll(".pane")) {
  pane.addEventListener("pointerdown", event => pane.setPointerCapture(event.pointerId));
  pane.addEventListener("pointermove", event => {
    if (!event.buttons) return;
    view.x += event.movementX / pane.clientWidth;
    view.y += event.movementY / pane.clientHeight;
    place();
  });
  pane.addEventListener("wheel", event => {
    event.preventDefault();
    zoomTo(view.zoom * (event.deltaY < 0 ? 1.15 : 1 / 1.15));
  }, {passive: false});
  pane.addEventListener("dblclick", () => zoomTo(view.zoom > 1 ? 1 : 3));
}
byId("compare").addEventListener("keydown", event => {
  if (event.target.matches("input") && event.key.startsWith("Arrow")) return;
  const move = {ArrowLeft: [0.1, 0], ArrowRight: [-0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1]}[event.key];
  if (move) {
    event.preventDefault();
    view.x += move[0];
    view.y += move[1];
    place();
  } else if (event.key === "+" || event.key === "=") zoomTo(view.zoom * 1.25);
  else if (event.key === "-") zoomTo(view.zoom / 1.25);
});
showStep();
