// Contact sheets: every prompt with each source's picture at the slider's step.
const subjectRows = data.sheets.subject, priorRows = data.sheets.prior, evaluatedRows = data.sheets.evaluated;
const allShots = [...subjectRows, ...priorRows].flatMap(row => row.cells).flatMap(cell => cell.shots);
const allSteps = [...new Set(allShots.map(shot => shot[0]))].sort((a, b) => a - b);

// What has no picture of a step shows the one before it, or its first.
function shotAt(cell, step) {
  return cell.shots.filter(shot => shot[0] <= step).pop() || cell.shots[0];
}
// What stands under a picture: whose it is where there are several, and which step where that is not the slider's.
function sourceTag(source, words) {
  if (data.sources.length < 2 || source === null) return make("span", {}, words);
  return make("span", {}, make("i", {class: "dot c" + source % 8}), data.sources[source].name + (words && ", " + words));
}
function shotButton(row, cell, shot, words, shared) {
  const what = `${row.label}, ${shared ? "" : data.sources[cell.source].name + ", "}${shot[1]}`;
  const button = make("button", {class: "shot", title: what}, picture(shot[2], what));
  if (data.sources.length > 1 || words) button.append(sourceTag(shared ? null : cell.source, words));
  button.addEventListener("click", () => openCompare({row: row, cell: cell, step: shot[0]}));
  return button;
}
// `shotsOf` gives the shots of a cell with their words, and whether it stands for all runs of the row.
function laySheet(host, rows, shotsOf) {
  if (!host) return;
  let most = 1;
  host.replaceChildren(...rows.map(row => {
    const shots = row.cells.flatMap(cell => shotsOf(cell, row).map(([shot, words, shared]) => shotButton(row, cell, shot, words, shared)));
    most = Math.max(most, shots.length);
    return make("div", {class: "cell"}, make("div", {class: "shots"}, ...shots), make("p", {}, row.label));
  }));
  host.style.setProperty("--cell", `${Math.min(most, 6) * 110 + 40}px`);
}
function showStep() {
  const slider = byId("step"), all = byId("all-steps");
  const step = slider ? allSteps[Number(slider.value)] : Infinity;
  if (slider) byId("step-name").textContent = step === allSteps[0] ? "before" : "step " + step;
  laySheet(byId("subject-sheet"), subjectRows, cell => {
    if (all && all.checked) return cell.shots.map(shot => [shot, shot[1]]);
    const shot = shotAt(cell, step);
    return [[shot, shot[0] === step ? "" : "step " + shot[0]]];
  });
  laySheet(byId("prior-sheet"), priorRows, (cell, row) => {
    const first = cell.shots[0], then = shotAt(cell, Math.max(step, allSteps[1] ?? 0));
    // Runs of one base begin with the same picture: it stands there once.
    const alike = row.cells.filter(other => other.shots[0][2] === first[2] && other.shots[0][1] === "before");
    const before = alike.length < 2 ? [[first, first[1]]] : alike[0] === cell ? [[first, "before", true]] : [];
    return first === then ? before : [...before, [then, then[1]]];
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
laySheet(byId("evaluated-sheet"), evaluatedRows, cell => [[cell.shots[0], ""]]);
if (byId("step")) {
  byId("step").max = String(allSteps.length - 1);
  byId("step").value = String(allSteps.length - 1);
  byId("step").addEventListener("input", showStep);
  byId("all-steps").addEventListener("change", showStep);
  byId("step").disabled = allSteps.length < 2;
}
