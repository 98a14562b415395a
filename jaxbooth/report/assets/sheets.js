// Contact sheets: every prompt with each source's picture at the slider's step.
const subjectRows = data.sheets.subject, priorRows = data.sheets.prior, evaluatedRows = data.sheets.evaluated;
const allShots = [...subjectRows, ...priorRows].flatMap(row => row.cells).flatMap(cell => cell.shots);
const allSteps = [...new Set(allShots.map(shot => shot[0]))].sort((a, b) => a - b);

// What has no picture of a step shows the one before it, or its first.
function shotAt(cell, step) {
  return cell.shots.filter(shot => shot[0] <= step).pop() || cell.shots[0];
}
function sourceTag(source, shot, named) {
  const name = data.sources.length > 1 ? data.sources[source].name + (named ? ", " : "") : "";
  return make("span", {}, ...(name ? [make("i", {class: "dot c" + source % 8})] : []), name + (named ? shot[1] : ""));
}
function shotButton(row, cell, shot, named) {
  const what = `${row.label}, ${data.sources[cell.source].name}, ${shot[1]}`;
  const button = make("button", {class: "shot", title: what}, picture(shot[2], what));
  if (data.sources.length > 1 || named) button.append(sourceTag(cell.source, shot, named));
  button.addEventListener("click", () => openCompare({row: row, cell: cell, step: shot[0]}));
  return button;
}
function laySheet(host, rows, step, shotsOf) {
  if (!host) return;
  host.replaceChildren(...rows.map(row => {
    const shots = row.cells.flatMap(cell => shotsOf(cell, step).map(([shot, named]) => shotButton(row, cell, shot, named)));
    return make("div", {class: "cell"}, make("div", {class: "shots"}, ...shots), make("p", {}, row.label));
  }));
  const most = Math.max(1, ...rows.map(row => row.cells.reduce((sum, cell) => sum + shotsOf(cell, step).length, 0)));
  host.style.setProperty("--cell", `${Math.min(most, 6) * 110 + 40}px`);
}
function showStep() {
  const slider = byId("step"), all = byId("all-steps");
  const step = slider ? allSteps[Number(slider.value)] : Infinity;
  if (slider) byId("step-name").textContent = step === allSteps[0] ? "before" : "step " + step;
  laySheet(byId("subject-sheet"), subjectRows, step, (cell, at) =>
    all && all.checked ? cell.shots.map(shot => [shot, true]) : [[shotAt(cell, at), shotAt(cell, at)[0] !== at]]);
  laySheet(byId("prior-sheet"), priorRows, step, (cell, at) => {
    const first = cell.shots[0], then = shotAt(cell, Math.max(at, allSteps[1] ?? 0));
    return first === then ? [[first, true]] : [[first, true], [then, true]];
  });
}

if (byId("photos")) {
  const laid = new Set();
  for (const [source, set] of data.shown) {
    if (laid.has(set)) continue;
    laid.add(set);
    const learners = data.shown.filter(other => other[1] === set).map(other => data.sources[other[0]].name);
    const name = learners.length < data.shown.length ? "Photos of " + learners.join(", ") : "Photos";
    byId("photos").append(make("p", {class: "soft"}, name), make("div", {class: "strip"}, ...data.photos[set].map((number, index) => {
      const button = make("button", {class: "shot"}, picture(number, `photo ${index + 1}`));
      button.addEventListener("click", () => openCompare({photo: index, source: source, set: set}));
      return button;
    })));
  }
}
laySheet(byId("evaluated-sheet"), evaluatedRows, 0, cell => [[cell.shots[0], false]]);
if (byId("step")) {
  byId("step").max = String(allSteps.length - 1);
  byId("step").value = String(allSteps.length - 1);
  byId("step").addEventListener("input", showStep);
  byId("all-steps").addEventListener("change", showStep);
  byId("step").disabled = allSteps.length < 2;
}
