"use strict";
// Elements, scales and marks. Texts of users only ever become text nodes or attribute values, never markup.

const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// Figures

const MINUS = "\u2212";
const writers = []; // a formatter takes long to make
function digits(value, places) {
  writers[places] ??= new Intl.NumberFormat("en-US", { minimumFractionDigits: places, maximumFractionDigits: places });
  return writers[places].format(value);
}
function figure(value, places) {
  return value === undefined || value === null ? "\u2013" : digits(value, places).replace("-", MINUS);
}
/** Three digits that count: 1.18e-4, 0.05, 4096. */
function brief(value) {
  if (typeof value !== "number") return Array.isArray(value) ? value.map(brief).join(",") : String(value);
  if (value === 0 || Number.isInteger(value)) return Math.abs(value) < 1e6 ? String(value) : value.toExponential();
  if (Math.abs(value) >= 1e-3) return String(Number(value.toPrecision(3)));
  return value.toExponential(2).replace(/\.?0*e/, "e");
}
function counted(value) {
  for (const [size, unit] of [
    [1e9, "B"],
    [1e6, "M"],
    [1e3, "K"],
  ]) {
    if (value >= size) return Number((value / size).toPrecision(3)) + " " + unit;
  }
  return String(value);
}
function clock(seconds) {
  const whole = Math.round(seconds),
    two = (n) => String(n).padStart(2, "0");
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

// Scales

function scale([low, high], [from, to], log) {
  const f = log ? Math.log : (x) => x,
    span = f(high) - f(low) || 1;
  const at = (value) => from + ((f(value) - f(low)) / span) * (to - from);
  return Object.assign(at, { low, high, log });
}
function ticks(at, most) {
  if (at.log) {
    const found = [];
    for (let e = Math.floor(Math.log10(at.low)); e <= Math.ceil(Math.log10(at.high)); e++) found.push(10 ** e);
    const inside = found.filter((v) => v >= at.low * 0.999 && v <= at.high * 1.001);
    if (inside.length > 1) return inside;
    return [at.low, at.high].map((v) => Number(v.toPrecision(2)));
  }
  const rough = (at.high - at.low) / Math.max(1, most),
    power = 10 ** Math.floor(Math.log10(rough || 1));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999) || power;
  const found = [];
  for (let i = Math.ceil(at.low / step - 1e-9); i * step <= at.high + step * 1e-9; i++) {
    found.push(Number((i * step).toPrecision(12)));
  }
  return found.length > 1 || most > 20 ? found : ticks(at, most * 1.6); // one figure is no scale
}
/** As many decimals for all ticks of an axis as the finest needs. */
function aligned(values) {
  const places = Math.max(...values.map((v) => (String(Number(v.toPrecision(6))).split(".")[1] || "").length));
  return values.every((v) => v === 0 || Math.abs(v) >= 1e-3) && Math.max(...values.map(Math.abs)) < 1e6
    ? (v) => figure(v, places)
    : (v) => brief(v).replace("-", MINUS);
}
/** The values' range with a little air; alike values get some, too. */
function ends(values, air = 0.06) {
  const low = Math.min(...values),
    high = Math.max(...values);
  const more = (high - low || Math.abs(high) || 1) * air;
  return [low - more, high + more];
}
/** Above this many a value would squeeze all others (Tukey's fence, as the drawing on the terminal has it). */
function fence(values) {
  const sorted = [...values].sort((a, b) => a - b);
  if (sorted.length < 8) return sorted[sorted.length - 1];
  const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
  return at(0.75) + 1.5 * (at(0.75) - at(0.25));
}
const spread = (list) => list.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);

// Marks: each method has a colour and a shape, so that neither alone has to tell.

const index = (method) => data.methods.indexOf(method);
const tone = (method) => "m" + (index(method) % 7);
function shape(place, x, y, r) {
  const n = (v) => v.toFixed(1),
    at = (dx, dy) => `${n(x + dx * r)} ${n(y + dy * r)}`;
  const polygon = (points) => "M" + points.map(([dx, dy]) => at(dx, dy)).join("L") + "Z";
  switch (place % 7) {
    case 0:
      return `M${at(-1, 0)}a${n(r)} ${n(r)} 0 1 0 ${n(2 * r)} 0a${n(r)} ${n(r)} 0 1 0 ${n(-2 * r)} 0Z`;
    case 1:
      return polygon([
        [-0.88, -0.88],
        [0.88, -0.88],
        [0.88, 0.88],
        [-0.88, 0.88],
      ]);
    case 2:
      return polygon([
        [0, -1.2],
        [1.1, 0.8],
        [-1.1, 0.8],
      ]);
    case 3:
      return polygon([
        [0, -1.3],
        [1.3, 0],
        [0, 1.3],
        [-1.3, 0],
      ]);
    case 4:
      return polygon([
        [0, 1.2],
        [1.1, -0.8],
        [-1.1, -0.8],
      ]);
    case 5:
      return polygon([
        [-0.4, -1.15],
        [0.4, -1.15],
        [0.4, -0.4],
        [1.15, -0.4],
        [1.15, 0.4],
        [0.4, 0.4],
        [0.4, 1.15],
        [-0.4, 1.15],
        [-0.4, 0.4],
        [-1.15, 0.4],
        [-1.15, -0.4],
        [-0.4, -0.4],
      ]);
    default:
      return polygon([
        [-0.5, -1.05],
        [0.5, -1.05],
        [1.1, 0],
        [0.5, 1.05],
        [-0.5, 1.05],
        [-1.1, 0],
      ]);
  }
}
function mark(method) {
  const place = index(method);
  return svg(
    "svg",
    { width: 14, height: 14, viewBox: "0 0 14 14", "aria-hidden": "true", class: tone(method) },
    svg("path", { d: shape(place, 7, 7, 5), class: "fill" }),
  );
}

// Tips, and what is said to everyone

const tip = document.querySelector("[data-tip]"),
  said = document.querySelector("[data-said]");
let quiet = 0;
function say(text) {
  said.textContent = text;
  clearTimeout(quiet);
  quiet = setTimeout(() => {
    said.textContent = "";
  }, 2500);
}
function showTip(x, y, head, lines, more) {
  tip.replaceChildren(
    el("b", {}, head),
    ...lines.filter(Boolean).map((line) => el("div", {}, line)),
    more ? el("div", { class: "more" }, more) : "",
  );
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = x + 14 + box.width > innerWidth ? x - 14 - box.width : x + 14;
  // Above, where there is room: below the point the command that was copied is shown.
  const top = y - 14 - box.height < 8 ? y + 14 : y - 14 - box.height;
  tip.style.left = Math.max(8, Math.min(left, innerWidth - box.width - 8)) + "px";
  tip.style.top = Math.max(8, Math.min(top, innerHeight - box.height - 8)) + "px";
}
const hideTip = () => {
  tip.hidden = true;
};
async function copy(text, what = "Command") {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = el("textarea", { readonly: true, "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    if (!done) return say("The browser does not allow copying");
  }
  say(what + " copied");
}
const copyButton = (text, label = "Copy") =>
  el("button", { type: "button", class: "button small", onclick: () => copy(text) }, label);

/** A plot's axes. Returns the svg, its inner group and the two scales. */
function axes(width, height, x, y, name) {
  const left = 52,
    right = 14,
    top = 24,
    bottom = 40;
  const X = scale(x.ends, [left, width - right], x.log),
    Y = scale(y.ends, [height - bottom, top], y.log);
  const root = svg("svg", {
    class: "plot",
    viewBox: `0 0 ${width} ${height}`,
    height,
    role: "group",
    "aria-label": name,
  });
  const levels = y.ticks || ticks(Y, Math.max(2, height / 60)),
    level = y.form || aligned(levels);
  for (const value of levels) {
    root.append(
      svg("line", { x1: left, x2: width - right, y1: Y(value), y2: Y(value), class: "grid" }),
      svg("text", { x: left - 8, y: Y(value) + 4, "text-anchor": "end" }, level(value)),
    );
  }
  const marks = x.ticks || ticks(X, Math.max(3, width / 80)),
    word = x.form || (x.log ? brief : aligned(marks));
  let edge = -Infinity;
  marks.forEach((value) => {
    const far = X(value) > width - 30,
      text = word(value),
      begin = far ? width - 7 * text.length : X(value) - 3.5 * text.length;
    root.append(
      svg("line", { x1: X(value), x2: X(value), y1: height - bottom, y2: height - bottom + 4, class: "axis" }),
    );
    if (begin < edge + 5) return; // its tick stays, its word would lie on the one before it
    edge = begin + 7 * text.length;
    root.append(
      svg(
        "text",
        { x: far ? width : X(value), y: height - bottom + 17, "text-anchor": far ? "end" : "middle" },
        text,
      ),
    );
  });
  root.append(
    svg("line", { x1: left, x2: width - right, y1: height - bottom, y2: height - bottom, class: "axis" }),
    svg("text", { x: 0, y: 12, class: "strong" }, y.name),
    svg("text", { x: width - right, y: height - 4, "text-anchor": "end", class: "strong" }, x.name),
  );
  return { root, X, Y, left, right: width - right, top, bottom: height - bottom };
}
