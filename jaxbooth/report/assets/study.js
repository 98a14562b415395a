// A blind comparison. `a` and `b` are drawn by lot when the page is made, left and right for each person here.
const ASKED = {
  subject: "Which picture shows the very thing that is in the photos?",
  prompt: "Which picture fits this text better?",
};
let rater = "", order = [], votes = [], shownAt = 0;

// 32 bits of a text (FNV-1a), and numbers in [0, 1) from them (mulberry32): the same person, the same order.
function hash(text) {
  let value = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(text)) value = Math.imul(value ^ byte, 0x01000193);
  return value >>> 0;
}
function generator(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let value = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    value = (value + Math.imul(value ^ (value >>> 7), 61 | value)) ^ value;
    return ((value ^ (value >>> 14)) >>> 0) / 4294967296;
  };
}
function shuffled(items, next) {
  const result = [...items];
  for (let last = result.length - 1; last > 0; last--) {
    const other = Math.floor(next() * (last + 1));
    [result[last], result[other]] = [result[other], result[last]];
  }
  return result;
}
// People with numbers share the parts out evenly, names by their hash. One kind of question comes after the other.
function orderFor(name) {
  const next = generator(hash(data.study + " " + name));
  const part = (/^\d{1,9}$/.test(name) ? Number(name) : hash(name)) % data.parts;
  const mine = data.questions.filter((_, index) => index % data.parts === part);
  return shuffled(["subject", "prompt"], next).flatMap(kind =>
    shuffled(mine.filter(question => question.kind === kind), next).map(question => ({question: question, left: next() < 0.5 ? "a" : "b"})));
}

const slot = name => "jaxbooth-study " + data.study + " " + name;
function keep() {
  try {
    localStorage.setItem(slot(rater), JSON.stringify(votes));
  } catch {
    trouble("This browser keeps nothing: save your votes to a file before you close the page.");
  }
}
function kept(name) {
  try {
    const known = new Set(data.questions.map(question => question.id)), choices = ["a", "b", "undecided"];
    const found = JSON.parse(localStorage.getItem(slot(name)) || "[]");
    return Array.isArray(found) ? found.filter(vote => vote && known.has(vote.question) && choices.includes(vote.choice)) : [];
  } catch {
    return [];
  }
}
function trouble(said) {
  byId("trouble").textContent = said;
  byId("trouble").hidden = false;
}
function show(id) {
  for (const name of ["start", "ask", "end"]) byId(name).hidden = name !== id;
}

function begin() {
  rater = byId("rater").value.trim().toLowerCase();
  if (!rater) return byId("rater").focus();
  order = orderFor(rater);
  const mine = new Set(order.map(item => item.question.id));
  votes = kept(rater).filter(vote => mine.has(vote.question));
  next();
}
function current() {
  const done = new Set(votes.map(vote => vote.question));
  return order.find(item => !done.has(item.question.id));
}
function next() {
  const item = current();
  if (!item) return finish();
  const {question, left} = item, right = left === "a" ? "b" : "a";
  show("ask");
  byId("progress").textContent = `${votes.length + 1} of ${order.length}`;
  byId("bar").firstElementChild.style.width = `${100 * votes.length / order.length}%`;
  byId("question").textContent = ASKED[question.kind];
  byId("reference").replaceChildren(question.kind === "prompt"
    ? make("blockquote", {}, question.prompt)
    : make("div", {class: "strip"}, ...question.photos.map((number, index) => picture(number, `photo ${index + 1}`))));
  byId("left").replaceChildren(picture(question[left], "left picture"), make("span", {}, "← Left"));
  byId("right").replaceChildren(picture(question[right], "right picture"), make("span", {}, "Right →"));
  byId("undo").disabled = votes.length === 0;
  byId("question").focus({preventScroll: true});
  shownAt = Date.now();
}
function vote(side) {
  const item = current();
  if (!item || byId("ask").hidden) return;
  const other = item.left === "a" ? "b" : "a";
  const choice = {left: item.left, right: other, undecided: "undecided"}[side];
  votes.push({question: item.question.id, choice: choice, left: item.left, seconds: Math.round((Date.now() - shownAt) / 100) / 10});
  keep();
  next();
}
function undo() {
  if (!votes.length) return;
  votes.pop();
  keep();
  next();
}
function ballot() {
  return JSON.stringify({format: "jaxbooth votes 1", study: data.study, rater: rater, votes: votes, saved: new Date().toISOString()}, null, 1);
}
function save() {
  const link = make("a", {download: `votes-${data.study.slice(0, 6)}-${rater.replace(/[^\p{L}\p{N}]+/gu, "-")}.json`});
  link.href = URL.createObjectURL(new Blob([ballot()], {type: "application/json"}));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
function finish() {
  show("end");
  byId("counted").textContent = `${votes.length} answers by ${rater}. Save them to a file and send it back.`;
  byId("copy").value = ballot();
  byId("thanks").focus();
}

byId("rater").addEventListener("input", () => {
  const found = kept(byId("rater").value.trim().toLowerCase()).length;
  byId("known").textContent = found ? `${found} answers are kept here: you go on where you stopped.` : "";
});
byId("rater").addEventListener("keydown", event => { if (event.key === "Enter") begin(); });
for (const [id, action] of Object.entries({
  "begin": begin, "left": () => vote("left"), "right": () => vote("right"), "undecided": () => vote("undecided"),
  "undo": undo, "undo-last": undo, "save": save, "save-now": save,
  "again": () => { byId("rater").value = ""; byId("known").textContent = ""; show("start"); byId("rater").focus(); },
})) byId(id).addEventListener("click", action);
document.addEventListener("keydown", event => {
  if (byId("ask").hidden || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  const action = {ArrowLeft: () => vote("left"), ArrowRight: () => vote("right"), ArrowDown: () => vote("undecided"),
    Backspace: undo, u: undo, U: undo}[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});
byId("rater").focus();
