// The other drawings: pairs, memory by phase, effects of settings, predictions. Each takes its host and a width.

/** Differences with their intervals: what the verdict is made of. */
function pairs(host, width) {
  const able = data.pairs.filter((p) => p.low !== null && p.high !== null);
  if (!able.length) return empty(host, data.pairs.length ? "No pair has an interval yet." : "");
  const row = 30,
    top = 8,
    bottom = 44,
    left = Math.min(width * 0.42, 34 + 8 * Math.max(...able.map((p) => `${p.a} \u2212 ${p.b}`.length)));
  const right = width < 520 ? 12 : 96,
    height = top + able.length * row + bottom;
  const reach = [...able.flatMap((p) => [p.low, p.high]), -data.margin, data.margin, 0];
  const X = scale(ends(reach, 0.05), [left, width - right]),
    floor = height - bottom;
  const root = svg("svg", {
    class: "plot",
    viewBox: `0 0 ${width} ${height}`,
    height,
    role: "img",
    "aria-label": "Difference of each pair of methods with its interval; the table below has the figures",
  });
  root.append(
    svg("rect", {
      x: X(-data.margin),
      width: X(data.margin) - X(-data.margin),
      y: top,
      height: floor - top,
      class: "margin",
    }),
    svg("line", { x1: X(0), x2: X(0), y1: top, y2: floor, class: "axis" }),
    svg("line", { x1: left, x2: width - right, y1: floor, y2: floor, class: "axis" }),
  );
  const marks = ticks(X, Math.max(2, (width - left) / 130)),
    word = aligned(marks);
  for (const value of marks)
    root.append(svg("text", { x: X(value), y: floor + 17, "text-anchor": "middle" }, word(value)));
  root.append(
    svg(
      "text",
      { x: width - right, y: height - 4, "text-anchor": "end", class: "strong" },
      "difference of the loss, nat",
    ),
  );
  able.forEach((p, place) => {
    const y = top + (place + 0.5) * row,
      kind = p.word === "better" || p.word === "worse" ? tone(p.difference < 0 ? p.a : p.b) : "m6";
    root.append(
      svg("text", { x: left - 10, y: y + 4, "text-anchor": "end", class: "strong" }, `${p.a} \u2212 ${p.b}`),
      svg("line", { x1: X(p.low), x2: X(p.high), y1: y, y2: y, class: `stroke ${kind}`, "stroke-width": 2.5 }),
      ...[p.low, p.high].map((v) =>
        svg("line", { x1: X(v), x2: X(v), y1: y - 5, y2: y + 5, class: `stroke ${kind}`, "stroke-width": 2 }),
      ),
      svg("path", {
        d: shape(p.word === "undecided" ? 3 : p.word === "tied" ? 1 : 0, X(p.difference), y, 5),
        class: `dot fill ${kind}`,
      }),
    );
    if (right > 20) root.append(svg("text", { x: width - right + 14, y: y + 4, class: "strong" }, p.word));
  });
  host.replaceChildren(
    el(
      "figure",
      {},
      root,
      el(
        "figcaption",
        {},
        "Left of 0 the first method has the lower loss. " +
          `Shaded: \u00b1${brief(data.margin)} nat, which counts as no difference.`,
      ),
    ),
  );
}

function phases(host, width) {
  const own = data.phases.filter((p) => shown(p.method));
  if (!own.length) return empty(host, "No record says how memory was used.");
  const sum = (phase) => phase.pieces.reduce((total, [, size]) => total + size, 0);
  const most = Math.max(...data.phases.flatMap((p) => p.phases.map(sum)));
  const kinds = [...new Set(own.flatMap((p) => p.phases.flatMap((f) => f.pieces.map(([kind]) => kind))))];
  const fit = Math.max(1, Math.min(own.length, Math.floor((width + 32) / 340)));
  const columns = Math.ceil(own.length / Math.ceil(own.length / fit)),
    each = (width - 32 * (columns - 1)) / columns;
  const panels = own.map(({ method, phases: list }) => {
    const row = 24,
      left = 72,
      right = 44,
      height = list.length * row + 8,
      X = scale([0, most], [left, each - right]);
    const root = svg("svg", {
      class: "plot",
      viewBox: `0 0 ${each} ${height}`,
      height,
      role: "img",
      "aria-label":
        `Peak memory of ${method} by phase: ` + list.map((f) => `${f.phase} ${figure(sum(f), 2)} GiB`).join(", "),
    });
    const limit = data.limits.peak_memory_gib;
    list.forEach((phase, place) => {
      const y = place * row + 4;
      let at = 0;
      root.append(svg("text", { x: left - 8, y: y + 12, "text-anchor": "end" }, phase.phase));
      for (const [kind, size] of phase.pieces) {
        root.append(
          svg("rect", {
            x: X(at),
            width: Math.max(0, X(at + size) - X(at)),
            y,
            height: row - 8,
            class: `p${kinds.indexOf(kind) % 3} ${tone(method)}`,
          }),
        );
        at += size;
      }
      root.append(svg("text", { x: X(at) + 6, y: y + 12, class: "strong" }, figure(at, 2)));
    });
    if (limit !== undefined && limit <= most)
      root.append(svg("line", { x1: X(limit), x2: X(limit), y1: 0, y2: height, class: "limit" }));
    const name = el("h3", {}, el("span", { class: "mark" }, mark(method)), method);
    return el("div", {}, name, root);
  });
  const key =
    kinds.length > 1
      ? kinds.map((kind, place) => [el("span", { class: `swatch p${place}`, "aria-hidden": "true" }), kind]).flat()
      : [kinds[0]];
  const grid = el("div", { class: "panels" }, ...panels);
  grid.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
  host.replaceChildren(
    el("figure", {}, grid, el("figcaption", {}, "Peak of each phase in GiB, of the best configuration: ", ...key)),
  );
}

/** Loss against each swept setting: a row a setting, a panel a method. */
function effects(host) {
  const able = completed.filter((t) => shown(t.m));
  const keys = [...new Set(able.flatMap((t) => Object.keys(t.p)))];
  const high = fence(able.map((t) => t.l)),
    kept = able.filter((t) => t.l <= high);
  const rows = [];
  for (const key of keys) {
    const panels = data.methods
      .map((method) => [method, kept.filter((t) => t.m === method && t.p[key] !== undefined)])
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
  host.append(
    el(
      "p",
      { class: "notes" },
      "Outlined: the method's best. Bars: the median of a value." +
        (out ? ` ${out} far higher losses are not drawn.` : "") +
        " Settings vary together, so a slope here is no proof of a cause.",
    ),
  );
}
function effect(cell, key, method, own, reach) {
  const numbers = own.every((t) => typeof t.p[key] === "number");
  const values = [...new Map(own.map((t) => [JSON.stringify(t.p[key]), t.p[key]])).values()];
  values.sort(numbers ? (a, b) => a - b : undefined);
  const [low, high] = [values[0], values[values.length - 1]];
  // A few values that come again are places side by side; rates that were drawn once each lie on a scale.
  const steps = !numbers || (values.length <= 6 && values.length < own.length);
  const log = !steps && low > 0 && high / low > 20;
  const place = new Map(values.map((v, i) => [JSON.stringify(v), i]));
  const at = (t) => (steps ? place.get(JSON.stringify(t.p[key])) : t.p[key]);
  const x = steps
    ? { ends: [-0.6, values.length - 0.4], ticks: values.map((_, i) => i), form: (i) => brief(values[i]) }
    : { ends: log ? [low / 1.15, high * 1.15] : ends([low, high]), log };
  const width = Math.max(220, cell.clientWidth),
    plot = axes(width, 190, { ...x, name: "" }, { ends: reach, name: method }, `Eval loss of ${method} against ${key}`);
  const points = own.map((t) => ({ x: plot.X(at(t)), y: plot.Y(t.l), r: 3.5, trial: t }));
  if (steps && values.length < own.length)
    values.forEach((value, i) => {
      const losses = own
        .filter((t) => at(t) === i)
        .map((t) => t.l)
        .sort((a, b) => a - b);
      const middle = (losses[(losses.length - 1) >> 1] + losses[losses.length >> 1]) / 2;
      plot.root.append(
        svg("line", {
          x1: plot.X(i - 0.3),
          x2: plot.X(i + 0.3),
          y1: plot.Y(middle),
          y2: plot.Y(middle),
          class: `stroke ${tone(method)}`,
          "stroke-width": 2,
        }),
      );
    });
  for (const p of points) {
    p.node = svg("path", { d: shape(index(method), p.x, p.y, p.r), class: `dot fill ${tone(method)}`, opacity: 0.7 });
    plot.root.append(p.node);
    if (bestOf.get(method) === p.trial.n)
      plot.root.append(svg("path", { d: shape(index(method), p.x, p.y, p.r + 2.5), class: "ring" }));
  }
  cell.replaceChildren(plot.root);
  interactive(plot, points, cell);
}

function predicted(host, width) {
  const able = data.predictions.filter((p) => shown(p.m) && trialOf.has(p.n));
  const measured = able.filter((p) => p.measured !== null),
    gone = able.filter((p) => p.measured === null);
  if (!measured.length) return empty(host, "Nothing was predicted and measured.");
  const side = Math.min(width, 460),
    reach = ends([...measured.flatMap((p) => [p.predicted, p.measured]), ...gone.map((p) => p.predicted)]);
  const plot = axes(
    side,
    Math.round(side * 0.8),
    { ends: reach, name: "predicted, GiB" },
    { ends: reach, name: "measured, GiB" },
    "Measured against predicted peak memory, a point for each kind of configuration",
  );
  limits(plot, "peak_memory_gib", "peak_memory_gib");
  plot.root.append(
    svg("line", {
      x1: plot.X(reach[0]),
      y1: plot.Y(reach[0]),
      x2: plot.X(reach[1]),
      y2: plot.Y(reach[1]),
      class: "same",
    }),
  );
  const points = able.map((p) => ({
    x: plot.X(p.predicted),
    y: p.measured === null ? plot.top + 6 : plot.Y(p.measured),
    r: 4.5,
    trial: trialOf.get(p.n),
    p,
  }));
  for (const p of points) {
    p.node = svg("path", {
      d: shape(index(p.p.m), p.x, p.y, p.r),
      class: `${p.p.measured === null ? "ring" : "dot fill"} ${tone(p.p.m)}`,
      opacity: 0.8,
    });
    plot.root.append(p.node);
  }
  const figureHere = figureOf(
    plot,
    "On the line: as predicted" + (gone.length ? "; hollow, at the top: ran out of memory." : "."),
  );
  figureHere.style.maxWidth = side + "px";
  host.replaceChildren(figureHere);
  interactive(plot, points, host);
}
