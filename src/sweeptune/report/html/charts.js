// The drawings. Each takes its host and a width, and is drawn again when that changes or a method is hidden.

const hidden = new Set();
const shown = (method) => !hidden.has(method);
const trialOf = new Map(data.trials.map((t) => [t.n, t]));
const bestOf = new Map(data.arms.filter((a) => a.trial !== null).map((a) => [a.method, a.trial]));
const completed = data.trials.filter((t) => t.s === "completed" && t.l !== undefined && (t.k === "trial" || t.k === "baseline"));

function describe(t) {
  return [`trial ${t.n}, ${t.m}${t.k === "baseline" ? " (baseline)" : ""}`, [t.x,
    t.l === undefined ? null : `eval loss ${figure(t.l, 4)}`,
    [t.g === undefined ? null : `${figure(t.g, 2)} GiB`, t.v === undefined ? null : `${figure(t.v, 0)} tokens/s`]
      .filter(Boolean).join(", "),
    t.f ? "on the Pareto front" : null, t.s === "completed" ? null : t.s]];
}

/** Points that answer to the pointer, to arrow keys and to Enter; `points` are {x, y, r, trial}. */
function interactive(plot, points, host) {
  if (!points.length) return;
  const ring = svg("path", { class: "hot" });
  const picked = el("div", { class: "picked" });
  const order = [...points].sort((a, b) => a.x - b.x || a.y - b.y);
  const pick = (t) => {
    copy(t.c, `Command of trial ${t.n}`);
    picked.replaceChildren(el("span", {}, `trial ${t.n}`), el("code", { class: "command" }, t.c), copyButton(t.c));
  };
  const point = (found, focus) => {
    const [head, lines] = describe(found.trial), box = plot.root.getBoundingClientRect();
    const k = box.width / plot.root.viewBox.baseVal.width;
    ring.setAttribute("d", shape(0, found.x, found.y, found.r + 3));
    showTip(box.left + found.x * k, box.top + found.y * k, head, lines, focus ? "Enter copies the command" : "Click copies the command");
  };
  const leave = () => { hideTip(); ring.removeAttribute("d"); };
  const nearest = (event) => {
    const box = plot.root.getBoundingClientRect(), k = plot.root.viewBox.baseVal.width / box.width;
    const [x, y] = [(event.clientX - box.left) * k, (event.clientY - box.top) * k];
    let best = null, least = 26 ** 2;
    for (const p of points) {
      const d = (p.x - x) ** 2 + (p.y - y) ** 2;
      if (d < least) [best, least] = [p, d];
    }
    return best;
  };
  plot.root.addEventListener("pointermove", (event) => {
    const found = nearest(event);
    plot.root.classList.toggle("over", Boolean(found));
    if (found) point(found); else leave();
  });
  plot.root.addEventListener("pointerleave", leave);
  plot.root.addEventListener("click", (event) => { const found = nearest(event); if (found) { point(found); pick(found.trial); } });
  order.forEach((p, place) => {
    if (!p.node) return;
    p.node.setAttribute("tabindex", place === 0 ? "0" : "-1");
    p.node.setAttribute("role", "button");
    p.node.addEventListener("focus", () => point(p, true));
    p.node.addEventListener("blur", leave);
    p.node.setAttribute("aria-label", describe(p.trial).flat().filter(Boolean).join(", ") + ": copy its command");
  });
  plot.root.addEventListener("keydown", (event) => {
    const now = order.findIndex((p) => p.node === document.activeElement);
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -order.length, End: order.length }[event.key];
    if (now < 0) return;
    if (step) {
      const next = order[Math.max(0, Math.min(order.length - 1, now + step))];
      order[now].node.setAttribute("tabindex", "-1");
      next.node.setAttribute("tabindex", "0");
      next.node.focus();
      event.preventDefault();
    } else if (event.key === "Enter" || event.key === " ") {
      pick(order[now].trial);
      event.preventDefault();
    } else if (event.key === "Escape") leave();
  });
  plot.root.append(ring);
  host.append(picked);
}

const figureOf = (plot, caption) => el("figure", {}, plot.root, el("figcaption", {}, caption));
const empty = (host, text) => host.replaceChildren(el("p", { class: "notes" }, text));

/** Where a study limits what an axis shows: a line, and the forbidden side shaded. */
function limits(plot, x, y) {
  const { X, Y } = plot;
  const [over, above] = [data.limits[x], data.limits[y]];
  if (over !== undefined && over < X.high && over > X.low) {
    plot.root.append(svg("rect", { x: X(over), y: plot.top, width: plot.right - X(over), height: plot.bottom - plot.top, class: "beyond" }),
      svg("line", { x1: X(over), x2: X(over), y1: plot.top, y2: plot.bottom, class: "limit" }),
      svg("text", { x: X(over) - 6, y: plot.top + 12, "text-anchor": "end", class: "limit-word" }, `limit ${brief(over)}`));
  }
  if (above !== undefined && above < Y.high && above > Y.low) {
    plot.root.append(svg("line", { x1: plot.left, x2: plot.right, y1: Y(above), y2: Y(above), class: "limit" }),
      svg("text", { x: plot.left + 4, y: Y(above) - 5, class: "limit-word" }, `limit ${brief(above)}`));
  }
}

function pareto(host, width) {
  const all = completed.filter((t) => t.g !== undefined);
  const able = all.filter((t) => shown(t.m));
  if (!able.length) return empty(host, all.length ? "All methods are hidden." : "No trial has completed with a measured memory yet.");
  const high = Math.max(fence(able.map((t) => t.l)), ...able.filter((t) => t.f).map((t) => t.l));
  const kept = able.filter((t) => t.l <= high);
  const limit = data.limits.peak_memory_gib, xs = kept.map((t) => t.g);
  const [low, most] = spread(xs), near = limit !== undefined && limit > low && limit < most + (most - low || 1) * 1.5;
  const plot = axes(width, Math.round(Math.max(280, Math.min(400, width * 0.68))),
    { ends: ends(near ? [...xs, limit * 1.02] : xs), name: "peak memory, GiB" },
    { ends: ends(kept.map((t) => t.l)), name: "eval loss" }, "Eval loss against peak memory, a point for each trial");
  limits(plot, "peak_memory_gib", "eval_loss");
  const plain = [...data.objectives].sort().join() === "eval_loss,peak_memory_gib";
  const front = kept.filter((t) => t.f).sort((a, b) => a.g - b.g);
  if (plain && front.length && !hidden.size) {
    const steps = front.map((t, i) => (i ? `H${plot.X(t.g).toFixed(1)}V${plot.Y(t.l).toFixed(1)}`
      : `M${plot.X(t.g).toFixed(1)} ${plot.top}V${plot.Y(t.l).toFixed(1)}`));
    plot.root.append(svg("path", { d: steps.join("") + `H${plot.right}`, class: "front" }));
  }
  const speeds = all.map((t) => t.v || 0), fastest = Math.max(...speeds) || 1;
  // Area says speed; large ones are drawn first, so that they cover nothing.
  const small = Math.max(0.4, Math.min(1, Math.sqrt(150 / kept.length)));
  const points = kept.map((t) => ({ x: plot.X(t.g), y: plot.Y(t.l), r: small * (3 + 6 * Math.sqrt((t.v || 0) / fastest)), trial: t }))
    .sort((a, b) => b.r - a.r);
  for (const p of points) {
    p.node = svg("path", { d: shape(index(p.trial.m), p.x, p.y, p.r), class: `dot fill ${tone(p.trial.m)}`, opacity: p.trial.e ? 0.55 + 0.3 * small : 0.25 });
    plot.root.append(p.node);
  }
  for (const p of points.filter((q) => q.trial.f)) plot.root.append(svg("path", { d: shape(index(p.trial.m), p.x, p.y, p.r + 2), class: "ring" }));
  const out = able.length - kept.length;
  host.replaceChildren(figureOf(plot, "The larger, the more tokens/s" + (front.length ? "; outlined: the Pareto front" : "")
    + (kept.some((t) => !t.e) ? "; pale: breaks a limit" : "") + (out ? `; ${out} far higher ${out === 1 ? "loss is" : "losses are"} not drawn` : "") + "."));
  interactive(plot, points, host);
}

function curves(host, width) {
  const own = data.curves.map(([n, x, y]) => ({ trial: trialOf.get(n), x, y })).filter((c) => shown(c.trial.m));
  if (!own.length) return empty(host, data.curves.length ? "All methods are hidden." : "No trial was evaluated more than once.");
  const values = own.flatMap((c) => c.y), ultimate = own.map((c) => c.y[c.y.length - 1]);
  const high = Math.max(Math.min(Math.max(...own.map((c) => c.y[0])), spread(values)[1]), fence(ultimate));
  const low = spread(values)[0], air = (high - low || 1) * 0.06;
  const plot = axes(width, Math.round(Math.max(280, Math.min(400, width * 0.68))),
    { ends: [0, spread(own.flatMap((c) => c.x))[1]], name: "tokens", form: counted },
    { ends: [low - air, high + air], name: "eval loss" }, "Eval loss over tokens, a line for each trial");
  const clip = "clip-curves";
  plot.root.append(svg("clipPath", { id: clip }, svg("rect", { x: plot.left, y: plot.top, width: plot.right - plot.left + 1, height: plot.bottom - plot.top })));
  const path = (c) => c.x.map((x, i) => `${i ? "L" : "M"}${plot.X(x).toFixed(1)} ${plot.Y(c.y[i]).toFixed(1)}`).join("");
  const faint = Math.max(0.18, Math.min(0.6, 16 / own.length));
  for (const method of data.methods) {  // one path for a method's trials: thousands of elements would be slow
    const lines = own.filter((c) => c.trial.m === method);
    if (!lines.length) continue;
    plot.root.append(svg("path", { d: lines.map(path).join(""), class: `lines stroke ${tone(method)}`, opacity: faint, "clip-path": `url(#${clip})` }));
  }
  const points = own.flatMap((c) => c.x.map((x, i) => ({ x: plot.X(x), y: plot.Y(c.y[i]), r: 3, trial: c.trial, line: c, i })))
    .filter((p) => p.y >= plot.top);
  const chosen = own.filter((c) => bestOf.get(c.trial.m) === c.trial.n);
  for (const c of chosen) {
    plot.root.append(svg("path", { d: path(c), class: `best stroke ${tone(c.trial.m)}`, "clip-path": `url(#${clip})` }));
    const p = { x: plot.X(c.x[c.x.length - 1]), y: plot.Y(c.y[c.y.length - 1]), r: 5 };
    p.node = svg("path", { d: shape(index(c.trial.m), p.x, p.y, p.r), class: `dot fill ${tone(c.trial.m)}` });
    plot.root.append(p.node);
    points.push({ ...p, trial: c.trial, line: c });
  }
  host.replaceChildren(figureOf(plot, "Strong: the best of each method" + (own.length > chosen.length ? `; thin: ${own.length - chosen.length} other trials.` : ".")));
  const hot = svg("path", { class: `hot`, "clip-path": `url(#${clip})` });
  plot.root.append(hot);
  const keyed = points.filter((p) => p.node), rest = points.filter((p) => !p.node);
  interactive(plot, [...keyed, ...rest], host);
  plot.root.addEventListener("pointermove", (event) => {
    const box = plot.root.getBoundingClientRect(), k = width / box.width;
    const [x, y] = [(event.clientX - box.left) * k, (event.clientY - box.top) * k];
    let best = null, least = 26 ** 2;
    for (const p of points) { const d = (p.x - x) ** 2 + (p.y - y) ** 2; if (d < least) [best, least] = [p, d]; }
    if (best) hot.setAttribute("d", path(best.line)); else hot.removeAttribute("d");
  });
  plot.root.addEventListener("pointerleave", () => hot.removeAttribute("d"));
}

/** Differences with their intervals: what the verdict is made of. */
function pairs(host, width) {
  const able = data.pairs.filter((p) => p.low !== null && p.high !== null);
  if (!able.length) return empty(host, data.pairs.length ? "No pair has an interval yet." : "");
  const row = 30, top = 8, bottom = 44, left = Math.min(width * 0.42, 34 + 8 * Math.max(...able.map((p) => `${p.a} \u2212 ${p.b}`.length)));
  const right = width < 520 ? 12 : 96, height = top + able.length * row + bottom;
  const reach = [...able.flatMap((p) => [p.low, p.high]), -data.margin, data.margin, 0];
  const X = scale(ends(reach, 0.05), [left, width - right]), floor = height - bottom;
  const root = svg("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, height, role: "img",
    "aria-label": "Difference of each pair of methods with its interval; the table below has the figures" });
  root.append(svg("rect", { x: X(-data.margin), width: X(data.margin) - X(-data.margin), y: top, height: floor - top, class: "margin" }),
    svg("line", { x1: X(0), x2: X(0), y1: top, y2: floor, class: "axis" }),
    svg("line", { x1: left, x2: width - right, y1: floor, y2: floor, class: "axis" }));
  const marks = ticks(X, Math.max(2, (width - left) / 130)), word = aligned(marks);
  for (const value of marks) root.append(svg("text", { x: X(value), y: floor + 17, "text-anchor": "middle" }, word(value)));
  root.append(svg("text", { x: width - right, y: height - 4, "text-anchor": "end", class: "strong" }, "difference of the loss, nat"));
  able.forEach((p, place) => {
    const y = top + (place + 0.5) * row, kind = p.word === "better" || p.word === "worse" ? tone(p.difference < 0 ? p.a : p.b) : "m6";
    root.append(svg("text", { x: left - 10, y: y + 4, "text-anchor": "end", class: "strong" }, `${p.a} \u2212 ${p.b}`),
      svg("line", { x1: X(p.low), x2: X(p.high), y1: y, y2: y, class: `stroke ${kind}`, "stroke-width": 2.5 }),
      ...[p.low, p.high].map((v) => svg("line", { x1: X(v), x2: X(v), y1: y - 5, y2: y + 5, class: `stroke ${kind}`, "stroke-width": 2 })),
      svg("path", { d: shape(p.word === "undecided" ? 3 : p.word === "tied" ? 1 : 0, X(p.difference), y, 5), class: `dot fill ${kind}` }));
    if (right > 20) root.append(svg("text", { x: width - right + 14, y: y + 4, class: "strong" }, p.word));
  });
  host.replaceChildren(el("figure", {}, root, el("figcaption", {},
    `Left of 0 the first method has the lower loss. Shaded: \u00b1${brief(data.margin)} nat, which counts as no difference.`)));
}

function phases(host, width) {
  const own = data.phases.filter((p) => shown(p.method));
  if (!own.length) return empty(host, "No record says how memory was used.");
  const sum = (phase) => phase.pieces.reduce((total, [, size]) => total + size, 0);
  const most = Math.max(...data.phases.flatMap((p) => p.phases.map(sum)));
  const kinds = [...new Set(own.flatMap((p) => p.phases.flatMap((f) => f.pieces.map(([kind]) => kind))))];
  const fit = Math.max(1, Math.min(own.length, Math.floor((width + 32) / 340)));
  const columns = Math.ceil(own.length / Math.ceil(own.length / fit)), each = (width - 32 * (columns - 1)) / columns;
  const panels = own.map(({ method, phases: list }) => {
    const row = 24, left = 72, right = 44, height = list.length * row + 8, X = scale([0, most], [left, each - right]);
    const root = svg("svg", { class: "plot", viewBox: `0 0 ${each} ${height}`, height, role: "img",
      "aria-label": `Peak memory of ${method} by phase: ` + list.map((f) => `${f.phase} ${figure(sum(f), 2)} GiB`).join(", ") });
    const limit = data.limits.peak_memory_gib;
    list.forEach((phase, place) => {
      const y = place * row + 4;
      let at = 0;
      root.append(svg("text", { x: left - 8, y: y + 12, "text-anchor": "end" }, phase.phase));
      for (const [kind, size] of phase.pieces) {
        root.append(svg("rect", { x: X(at), width: Math.max(0, X(at + size) - X(at)), y, height: row - 8, class: `p${kinds.indexOf(kind) % 3} ${tone(method)}` }));
        at += size;
      }
      root.append(svg("text", { x: X(at) + 6, y: y + 12, class: "strong" }, figure(at, 2)));
    });
    if (limit !== undefined && limit <= most) root.append(svg("line", { x1: X(limit), x2: X(limit), y1: 0, y2: height, class: "limit" }));
    const name = el("h3", {}, el("span", { class: "mark" }, mark(method)), method);
    return el("div", {}, name, root);
  });
  const key = kinds.length > 1 ? kinds.map((kind, place) => [el("span", { class: `swatch p${place}`, "aria-hidden": "true" }), kind]).flat() : [kinds[0]];
  const grid = el("div", { class: "panels" }, ...panels);
  grid.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
  host.replaceChildren(el("figure", {}, grid, el("figcaption", {}, "Peak of each phase in GiB, of the best configuration: ", ...key)));
}

/** Loss against each swept setting: a row a setting, a panel a method. */
function effects(host) {
  const able = completed.filter((t) => shown(t.m));
  const keys = [...new Set(able.flatMap((t) => Object.keys(t.p)))];
  const high = fence(able.map((t) => t.l)), kept = able.filter((t) => t.l <= high);
  const rows = [];
  for (const key of keys) {
    const panels = data.methods.map((method) => [method, kept.filter((t) => t.m === method && t.p[key] !== undefined)])
      .filter(([, own]) => own.length > 2 && new Set(own.map((t) => JSON.stringify(t.p[key]))).size > 1);
    if (panels.length) rows.push([key, panels]);
  }
  if (!rows.length) return empty(host, "No method has three completed trials that differ in a setting.");
  const reach = ends(kept.map((t) => t.l));
  host.replaceChildren();
  for (const [key, panels] of rows) {
    const grid = el("div", { class: "panels" });
    host.append(el("h3", {}, key), grid);
    for (const [method, own] of panels) {
      const cell = el("div", {});
      grid.append(cell);
      effect(cell, key, method, own, reach);
    }
  }
  const out = able.length - kept.length;
  host.append(el("p", { class: "notes" }, "Outlined: the method's best. Bars: the median of a value." + (out ? ` ${out} far higher losses are not drawn.` : "")
    + " Settings vary together, so a slope here is no proof of a cause."));
}
function effect(cell, key, method, own, reach) {
  const numbers = own.every((t) => typeof t.p[key] === "number");
  const values = [...new Map(own.map((t) => [JSON.stringify(t.p[key]), t.p[key]])).values()];
  values.sort(numbers ? (a, b) => a - b : undefined);
  const steps = values.length <= 6, low = values[0], high = values[values.length - 1];
  const log = !steps && numbers && low > 0 && high / low > 20;
  const place = new Map(values.map((v, i) => [JSON.stringify(v), i]));
  const at = (t) => (steps || !numbers ? place.get(JSON.stringify(t.p[key])) : t.p[key]);
  const x = steps || !numbers
    ? { ends: [-0.6, values.length - 0.4], ticks: values.map((_, i) => i), form: (i) => brief(values[i]) }
    : { ends: log ? [low / 1.15, high * 1.15] : ends([low, high]), log };
  const width = Math.max(220, cell.clientWidth), plot = axes(width, 190, { ...x, name: "" }, { ends: reach, name: method }, `Eval loss of ${method} against ${key}`);
  const points = own.map((t) => ({ x: plot.X(at(t)), y: plot.Y(t.l), r: 3.5, trial: t }));
  if (steps && values.length < own.length) values.forEach((value, i) => {
    const losses = own.filter((t) => at(t) === i).map((t) => t.l).sort((a, b) => a - b);
    const middle = (losses[(losses.length - 1) >> 1] + losses[losses.length >> 1]) / 2;
    plot.root.append(svg("line", { x1: plot.X(i - 0.3), x2: plot.X(i + 0.3), y1: plot.Y(middle), y2: plot.Y(middle), class: `stroke ${tone(method)}`, "stroke-width": 2 }));
  });
  for (const p of points) {
    p.node = svg("path", { d: shape(index(method), p.x, p.y, p.r), class: `dot fill ${tone(method)}`, opacity: 0.7 });
    plot.root.append(p.node);
    if (bestOf.get(method) === p.trial.n) plot.root.append(svg("path", { d: shape(index(method), p.x, p.y, p.r + 2.5), class: "ring" }));
  }
  cell.replaceChildren(plot.root);
  interactive(plot, points, cell);
}

function predicted(host, width) {
  const able = data.predictions.filter((p) => shown(p.m) && trialOf.has(p.n));
  const measured = able.filter((p) => p.measured !== null), gone = able.filter((p) => p.measured === null);
  if (!measured.length) return empty(host, "Nothing was predicted and measured.");
  const side = Math.min(width, 460), reach = ends([...measured.flatMap((p) => [p.predicted, p.measured]), ...gone.map((p) => p.predicted)]);
  const plot = axes(side, Math.round(side * 0.8), { ends: reach, name: "predicted, GiB" }, { ends: reach, name: "measured, GiB" },
    "Measured against predicted peak memory, a point for each kind of configuration");
  limits(plot, "peak_memory_gib", "peak_memory_gib");
  plot.root.append(svg("line", { x1: plot.X(reach[0]), y1: plot.Y(reach[0]), x2: plot.X(reach[1]), y2: plot.Y(reach[1]), class: "same" }));
  const points = able.map((p) => ({ x: plot.X(p.predicted), y: p.measured === null ? plot.top + 6 : plot.Y(p.measured), r: 4.5, trial: trialOf.get(p.n), p }));
  for (const p of points) {
    p.node = svg("path", { d: shape(index(p.p.m), p.x, p.y, p.r), class: `${p.p.measured === null ? "ring" : "dot fill"} ${tone(p.p.m)}`, opacity: 0.8 });
    plot.root.append(p.node);
  }
  const figureHere = figureOf(plot, "On the line: as predicted" + (gone.length ? "; hollow, at the top: ran out of memory." : "."));
  figureHere.style.maxWidth = side + "px";
  host.replaceChildren(figureHere);
  interactive(plot, points, host);
}
