// Curves: one chart for each number, one line for each source. Hover, touch or arrow keys read values off.
const hiddenSources = new Set();
const HEIGHT = 210, LEFT = 52, RIGHT = 10, TOP = 8, BOTTOM = 22;

function ticks(low, high, wanted) {
  const span = high - low || Math.abs(high) || 1;
  const rough = span / wanted, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(n => n * power).find(n => n >= rough);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) found.push(value);
  return found;
}
function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(1).replace("e+", "e");
  return String(Number(value.toPrecision(4)));
}
const said = value => value === null ? "not finite" : short(value);
// An exponential mean without the pull of its start (Kingma and Ba 2015, section 3).
function smoothed(values, weight) {
  let mean = 0, total = 0;
  return values.map(value => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return mean / total;
  });
}

class Chart {
  constructor(spec) {
    this.spec = spec;
    this.at = null;
    this.read = make("div", {class: "read"});
    this.svg = draw("svg", {tabindex: "0", role: "img", "aria-label": spec.name + ": arrow keys read values"});
    this.element = make("div", {class: "chart"}, make("h3", {}, spec.name), this.read, this.svg);
    this.svg.addEventListener("pointermove", event => this.point(event.clientX - this.svg.getBoundingClientRect().left));
    this.svg.addEventListener("pointerdown", event => this.point(event.clientX - this.svg.getBoundingClientRect().left));
    this.svg.addEventListener("pointerleave", () => this.show(null));
    this.svg.addEventListener("blur", () => this.show(null));
    this.svg.addEventListener("keydown", event => {
      const move = {ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity}[event.key];
      if (move === undefined) return;
      event.preventDefault();
      const here = this.at === null ? (move > 0 ? -1 : this.steps.length) : this.steps.indexOf(this.at);
      this.show(this.steps[Math.min(this.steps.length - 1, Math.max(0, here + move))]);
    });
  }
  lines() { return this.spec.lines.filter(line => !hiddenSources.has(line.source)); }
  render() {
    const weight = Number(byId("smoothing").value), wantsLog = byId("log").checked;
    const lines = this.lines(), width = Math.max(200, this.svg.clientWidth);
    const values = lines.flatMap(line => line.values).filter(value => value !== null);
    this.svg.replaceChildren();
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.steps = [...new Set(lines.flatMap(line => line.steps))].sort((a, b) => a - b);
    if (!values.length) return;
    const log = wantsLog && Math.min(...values) > 0, scale = log ? Math.log10 : value => value;
    const own = lines.map(line => line.values.length > 20 ? smoothed(line.values, weight) : line.values);
    let low = scale(Math.min(...values)), high = scale(Math.max(...values));
    const margin = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
    low -= margin; high += margin;
    if (!log && Math.min(...values) >= 0) low = Math.max(0, low);
    const first = this.steps[0], last = this.steps[this.steps.length - 1];
    this.x = step => LEFT + (width - LEFT - RIGHT) * (step - first) / (last - first || 1);
    this.y = value => TOP + (HEIGHT - TOP - BOTTOM) * (1 - (scale(value) - low) / (high - low));
    for (const tick of ticks(low, high, 5)) {
      const value = log ? 10 ** tick : tick, y = this.y(value);
      this.svg.append(draw("line", {class: "grid", x1: LEFT, x2: width - RIGHT, y1: y, y2: y}),
        draw("text", {x: LEFT - 6, y: y + 4, "text-anchor": "end"}, short(value)));
    }
    for (const tick of ticks(first, last, width < 360 ? 3 : 5)) {
      this.svg.append(draw("text", {x: this.x(tick), y: HEIGHT - 6, "text-anchor": "middle"}, short(tick)));
    }
    lines.forEach((line, index) => {
      const group = draw("g", {class: "c" + line.source % 8});
      if (own[index] !== line.values && weight > 0) group.append(draw("path", {class: "raw", d: this.path(line.steps, line.values)}));
      const dash = line.source >= 8 ? "6 3" : null;
      group.append(draw("path", {class: "smooth", d: this.path(line.steps, own[index]), "stroke-dasharray": dash}));
      line.values.forEach((value, n) => {
        if (value === null) group.append(draw("circle", {class: "bad", cx: this.x(line.steps[n]), cy: TOP + 6, r: 4}));
      });
      this.svg.append(group);
    });
    this.cross = draw("g");
    this.svg.append(this.cross);
    this.show(this.at);
  }
  path(steps, values) {
    let d = "", pen = "M";
    values.forEach((value, index) => {
      if (value === null) { pen = "M"; return; }
      d += `${pen}${this.x(steps[index]).toFixed(1)} ${this.y(value).toFixed(1)}`;
      pen = "L";
    });
    return d;
  }
  point(x) {
    if (!this.steps.length || !this.x) return;
    this.show(this.steps.reduce((best, step) => Math.abs(this.x(step) - x) < Math.abs(this.x(best) - x) ? step : best));
  }
  show(step) {
    this.at = step;
    this.read.replaceChildren();
    if (this.cross) this.cross.replaceChildren();
    if (step === null || !this.cross) { this.read.append(this.latest()); return; }
    this.read.append(make("span", {}, `step ${step} `));
    this.cross.append(draw("line", {class: "cross", x1: this.x(step), x2: this.x(step), y1: TOP, y2: HEIGHT - BOTTOM}));
    for (const line of this.lines()) {
      const index = line.steps.indexOf(step);
      if (index < 0) continue;
      const value = line.values[index];
      this.read.append(this.value(line, said(value)));
      if (value !== null) {
        this.cross.append(draw("circle", {class: "c" + line.source % 8, fill: "currentColor", cx: this.x(step), cy: this.y(value), r: 4}));
      }
    }
  }
  latest() {
    const parts = this.lines().map(line => this.value(line, said(line.values[line.values.length - 1])));
    return make("span", {}, "last ", ...parts);
  }
  value(line, words) {
    const name = data.sources.length > 1 ? data.sources[line.source].name + " " : "";
    return make("span", {}, make("i", {class: "dot c" + line.source % 8}), name + words + " ");
  }
}

if (data.charts.length) {
  const charts = data.charts.map(spec => new Chart(spec));
  byId("charts").append(...charts.map(chart => chart.element));
  const all = () => charts.forEach(chart => chart.render());
  if (data.sources.length > 1) {
    data.sources.forEach((source, number) => {
      if (!data.charts.some(chart => chart.lines.some(line => line.source === number))) return;
      const button = make("button", {"aria-pressed": "true"}, make("i", {class: "dot c" + number % 8}), source.name);
      button.addEventListener("click", () => {
        if (!hiddenSources.delete(number)) hiddenSources.add(number);
        button.setAttribute("aria-pressed", String(!hiddenSources.has(number)));
        all();
      });
      byId("legend").append(button);
    });
  }
  byId("smoothing").addEventListener("input", all);
  byId("log").addEventListener("change", all);
  new ResizeObserver(all).observe(byId("charts"));
}
