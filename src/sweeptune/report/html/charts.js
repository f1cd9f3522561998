// The two large drawings, and what all drawings share. Each takes its host and a width, and is drawn again when that
// changes or a method is hidden.

const held = { point: null }; // shows the tip of the point that has the keyboard's focus again
const hidden = new Set();
const shown = (method) => !hidden.has(method);
const trialOf = new Map(data.trials.map((t) => [t.n, t]));
const bestOf = new Map(data.arms.filter((a) => a.trial !== null).map((a) => [a.method, a.trial]));
const completed = data.trials.filter(
  (t) => t.s === "completed" && t.l !== undefined && (t.k === "trial" || t.k === "baseline"),
);

function describe(t) {
  return [
    `trial ${t.n}, ${t.m}${t.k === "baseline" ? " (baseline)" : ""}`,
    [
      t.x,
      t.l === undefined ? null : `eval loss ${figure(t.l, 4)}`,
      [t.g === undefined ? null : `${figure(t.g, 2)} GiB`, t.v === undefined ? null : `${figure(t.v, 0)} tokens/s`]
        .filter(Boolean)
        .join(", "),
      t.f ? "on the Pareto front" : null,
      t.s === "completed" ? null : t.s,
    ],
  ];
}

// The point under the pointer, or close to it.
function nearest(plot, points, event) {
  const box = plot.root.getBoundingClientRect(),
    k = plot.root.viewBox.baseVal.width / box.width;
  const [x, y] = [(event.clientX - box.left) * k, (event.clientY - box.top) * k];
  let best = null,
    least = 26 ** 2;
  for (const p of points) {
    const d = (p.x - x) ** 2 + (p.y - y) ** 2;
    if (d < least) [best, least] = [p, d];
  }
  return best;
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
    const [head, lines] = describe(found.trial),
      box = plot.root.getBoundingClientRect();
    const k = box.width / plot.root.viewBox.baseVal.width;
    ring.setAttribute("d", shape(0, found.x, found.y, found.r + 3));
    showTip(
      box.left + found.x * k,
      box.top + found.y * k,
      head,
      lines,
      focus ? "Enter copies the command" : "Click copies the command",
    );
  };
  const leave = () => {
    hideTip();
    ring.removeAttribute("d");
  };
  plot.root.addEventListener("pointermove", (event) => {
    const found = nearest(plot, points, event);
    plot.root.classList.toggle("over", Boolean(found));
    if (found) point(found);
    else leave();
  });
  plot.root.addEventListener("pointerleave", leave);
  plot.root.addEventListener("click", (event) => {
    const found = nearest(plot, points, event);
    if (found) {
      point(found);
      pick(found.trial);
    }
  });
  order.forEach((p, place) => {
    if (!p.node) return;
    p.node.setAttribute("tabindex", place === 0 ? "0" : "-1");
    p.node.setAttribute("role", "button");
    p.node.addEventListener("focus", () => {
      if (p.node.matches(":focus-visible")) held.point = () => point(p, true);
      point(p, true);
    });
    p.node.addEventListener("blur", () => {
      held.point = null;
      leave();
    });
    p.node.setAttribute("aria-label", describe(p.trial).flat().filter(Boolean).join(", ") + ": copy its command");
  });
  plot.root.addEventListener("keydown", (event) => {
    const now = order.findIndex((p) => p.node === document.activeElement);
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -order.length, End: order.length }[
      event.key
    ];
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
    plot.root.append(
      svg("rect", {
        x: X(over),
        y: plot.top,
        width: plot.right - X(over),
        height: plot.bottom - plot.top,
        class: "beyond",
      }),
      svg("line", { x1: X(over), x2: X(over), y1: plot.top, y2: plot.bottom, class: "limit" }),
      svg(
        "text",
        { x: X(over) - 6, y: plot.top + 12, "text-anchor": "end", class: "limit-word" },
        `limit ${brief(over)}`,
      ),
    );
  }
  if (above !== undefined && above < Y.high && above > Y.low) {
    plot.root.append(
      svg("line", { x1: plot.left, x2: plot.right, y1: Y(above), y2: Y(above), class: "limit" }),
      svg("text", { x: plot.left + 4, y: Y(above) - 5, class: "limit-word" }, `limit ${brief(above)}`),
    );
  }
}

function pareto(host, width) {
  const all = completed.filter((t) => t.g !== undefined);
  const able = all.filter((t) => shown(t.m));
  if (!able.length)
    return empty(host, all.length ? "All methods are hidden." : "No trial has completed with a measured memory yet.");
  const high = Math.max(fence(able.map((t) => t.l)), ...able.filter((t) => t.f).map((t) => t.l));
  const kept = able.filter((t) => t.l <= high);
  const limit = data.limits.peak_memory_gib,
    xs = kept.map((t) => t.g);
  const [low, most] = spread(xs),
    near = limit !== undefined && limit > low && limit < most + (most - low || 1) * 1.5;
  const plot = axes(
    width,
    Math.round(Math.max(280, Math.min(400, width * 0.68))),
    { ends: ends(near ? [...xs, limit * 1.02] : xs), name: "peak memory, GiB" },
    { ends: ends(kept.map((t) => t.l)), name: "eval loss" },
    "Eval loss against peak memory, a point for each trial",
  );
  limits(plot, "peak_memory_gib", "eval_loss");
  const plain = [...data.objectives].sort().join() === "eval_loss,peak_memory_gib";
  const front = kept.filter((t) => t.f).sort((a, b) => a.g - b.g);
  if (plain && front.length && !hidden.size) {
    const steps = front.map((t, i) =>
      i
        ? `H${plot.X(t.g).toFixed(1)}V${plot.Y(t.l).toFixed(1)}`
        : `M${plot.X(t.g).toFixed(1)} ${plot.top}V${plot.Y(t.l).toFixed(1)}`,
    );
    plot.root.append(svg("path", { d: steps.join("") + `H${plot.right}`, class: "front" }));
  }
  const speeds = all.map((t) => t.v || 0),
    fastest = Math.max(...speeds) || 1;
  // Area says speed; large ones are drawn first, so that they cover nothing.
  const small = Math.max(0.4, Math.min(1, Math.sqrt(150 / kept.length)));
  const points = kept
    .map((t) => ({ x: plot.X(t.g), y: plot.Y(t.l), r: small * (3 + 6 * Math.sqrt((t.v || 0) / fastest)), trial: t }))
    .sort((a, b) => b.r - a.r);
  for (const p of points) {
    p.node = svg("path", {
      d: shape(index(p.trial.m), p.x, p.y, p.r),
      class: `dot fill ${tone(p.trial.m)}`,
      opacity: p.trial.e ? 0.55 + 0.3 * small : 0.25,
    });
    plot.root.append(p.node);
  }
  for (const p of points.filter((q) => q.trial.f))
    plot.root.append(svg("path", { d: shape(index(p.trial.m), p.x, p.y, p.r + 2), class: "ring" }));
  const out = able.length - kept.length;
  host.replaceChildren(
    figureOf(
      plot,
      "The larger, the more tokens/s" +
        (front.length ? "; outlined: the Pareto front" : "") +
        (kept.some((t) => !t.e) ? "; pale: breaks a limit" : "") +
        (out ? `; ${out} far higher ${out === 1 ? "loss is" : "losses are"} not drawn` : "") +
        ".",
    ),
  );
  interactive(plot, points, host);
}

function curves(host, width) {
  const own = data.curves.map(([n, x, y]) => ({ trial: trialOf.get(n), x, y })).filter((c) => shown(c.trial.m));
  if (!own.length)
    return empty(host, data.curves.length ? "All methods are hidden." : "No trial was evaluated more than once.");
  const values = own.flatMap((c) => c.y),
    ultimate = own.map((c) => c.y[c.y.length - 1]);
  const [low, most] = spread(values);
  const high = Math.min(most, Math.max(...own.map((c) => c.y[0]), fence(ultimate)));
  const air = (high - low || 1) * 0.06;
  const plot = axes(
    width,
    Math.round(Math.max(280, Math.min(400, width * 0.68))),
    { ends: [0, spread(own.flatMap((c) => c.x))[1]], name: "tokens", form: counted },
    { ends: [low - air, high + air], name: "eval loss" },
    "Eval loss over tokens, a line for each trial",
  );
  const clip = "clip-curves";
  plot.root.append(
    svg(
      "clipPath",
      { id: clip },
      svg("rect", { x: plot.left, y: plot.top, width: plot.right - plot.left + 1, height: plot.bottom - plot.top }),
    ),
  );
  const path = (c) =>
    c.x.map((x, i) => `${i ? "L" : "M"}${plot.X(x).toFixed(1)} ${plot.Y(c.y[i]).toFixed(1)}`).join("");
  const faint = Math.max(0.18, Math.min(0.6, 16 / own.length));
  for (const method of data.methods) {
    // one path for a method's trials: thousands of elements would be slow
    const lines = own.filter((c) => c.trial.m === method);
    if (!lines.length) continue;
    plot.root.append(
      svg("path", {
        d: lines.map(path).join(""),
        class: `lines stroke ${tone(method)}`,
        opacity: faint,
        "clip-path": `url(#${clip})`,
      }),
    );
  }
  const points = own
    .flatMap((c) => c.x.map((x, i) => ({ x: plot.X(x), y: plot.Y(c.y[i]), r: 3, trial: c.trial, line: c, i })))
    .filter((p) => p.y >= plot.top);
  const chosen = own.filter((c) => bestOf.get(c.trial.m) === c.trial.n);
  for (const c of chosen) {
    plot.root.append(
      svg("path", { d: path(c), class: `best stroke ${tone(c.trial.m)}`, "clip-path": `url(#${clip})` }),
    );
    const p = { x: plot.X(c.x[c.x.length - 1]), y: plot.Y(c.y[c.y.length - 1]), r: 5 };
    p.node = svg("path", { d: shape(index(c.trial.m), p.x, p.y, p.r), class: `dot fill ${tone(c.trial.m)}` });
    plot.root.append(p.node);
    points.push({ ...p, trial: c.trial, line: c });
  }
  host.replaceChildren(
    figureOf(
      plot,
      "Strong: the best of each method" +
        (own.length > chosen.length ? `; thin: ${own.length - chosen.length} other trials.` : "."),
    ),
  );
  const hot = svg("path", { class: `hot`, "clip-path": `url(#${clip})` });
  plot.root.append(hot);
  const keyed = points.filter((p) => p.node),
    rest = points.filter((p) => !p.node);
  interactive(plot, [...keyed, ...rest], host);
  plot.root.addEventListener("pointermove", (event) => {
    const best = nearest(plot, points, event);
    if (best) hot.setAttribute("d", path(best.line));
    else hot.removeAttribute("d");
  });
  plot.root.addEventListener("pointerleave", () => hot.removeAttribute("d"));
}
