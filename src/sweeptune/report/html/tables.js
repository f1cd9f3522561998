// Tables that sort and export. Those without a script are here already; the one of all trials is made here.

/** A field of a CSV file; what a spreadsheet would take for a formula begins with an apostrophe. */
function field(value) {
  let text = value === undefined || value === null ? "" : String(value);
  if (typeof value !== "number" && /^[=+\-@\t\r]/.test(text) && !/^[+-]?[\d.,]+ ?%?$/.test(text)) text = "'" + text;
  return /[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
}
function save(name, rows) {
  const text = rows.map((row) => row.map(field).join(",")).join("\n") + "\n";
  const link = el("a", { href: URL.createObjectURL(new Blob(["\ufeff", text], { type: "text/csv" })), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
const fileName = (part) => `${data.name.replace(/[^\w.-]+/g, "_") || "study"}-${part}.csv`;

/** Unknown values stay last, whichever way it goes. */
function compare(a, b, down) {
  const none = (v) => v === null || v === undefined || v === "";
  if (none(a) || none(b)) return none(a) - none(b);
  const order =
    typeof a === "number" && typeof b === "number"
      ? a - b
      : String(a).localeCompare(String(b), "en", { numeric: true });
  return down ? -order : order;
}
function sortButton(head, heads, sort) {
  const button = el(
    "button",
    {
      type: "button",
      onclick: () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        sort(down);
      },
    },
    ...head.childNodes,
  );
  head.replaceChildren(button);
}
function cellText(cell) {
  const copy = cell.cloneNode(true);
  copy.querySelectorAll("br").forEach((br) => br.replaceWith(" "));
  copy.querySelectorAll("small, .tag").forEach((part) => part.prepend(" "));
  copy.querySelectorAll("button").forEach((button) => button.remove());
  return copy.textContent
    .trim()
    .replace(/\u2212/g, "-")
    .replace(/^\u2013$/, "");
}
function enhance(table) {
  const heads = [...table.tHead.rows[0].cells],
    body = table.tBodies[0];
  const texts = heads.map((head) => head.textContent);
  const value = (row, place) => {
    const cell = row.cells[place];
    return cell.dataset.v === undefined
      ? cellText(cell)
      : isNaN(cell.dataset.v)
        ? cell.dataset.v
        : Number(cell.dataset.v);
  };
  if (body.rows.length > 1)
    heads.forEach((head, place) =>
      sortButton(head, heads, (down) => {
        body.append(...[...body.rows].sort((a, b) => compare(value(a, place), value(b, place), down)));
      }),
    );
  table.caption.append(
    el(
      "button",
      {
        type: "button",
        class: "button small",
        onclick: () =>
          save(
            fileName(table.dataset.table),
            table.dataset.table === "methods"
              ? methodRows()
              : [texts, ...[...body.rows].map((row) => [...row.cells].map(cellText))],
          ),
      },
      "CSV",
    ),
  );
}
/** The methods with a column for each figure: on the page several share a cell. */
function methodRows() {
  const keys = [
    "method",
    "trial",
    "settings",
    "loss",
    "half",
    "seeds",
    "search",
    "bits",
    "peak",
    "peak_high",
    "speed",
    "mfu",
    "trainable",
    "hours",
    "tuning",
    "trials",
    "tokens",
  ];
  const names = {
    loss: data.split ? `${data.split} loss` : "judged loss",
    half: "95 % interval, half",
    search: "search eval loss",
    bits: "bits per byte",
    peak: "peak memory GiB",
    peak_high: "highest peak memory GiB",
    speed: "tokens/s",
    hours: "one training, hours",
    tuning: "its tuning, hours",
  };
  const apart = ["difference", "low", "high", "word"],
    ratios = ["peak", "speed", "trainable", "hours"],
    named = (key) => names[key] || key,
    delta = (arm) => arm.delta || {};
  return [
    [...keys.map(named), "against", ...apart, ...ratios.map((key) => named(key) + " ratio"), "command"],
    ...data.arms.map((arm) => [
      ...keys.map((key) => arm[key]),
      arm.against,
      ...apart.map((key) => (delta(arm).loss || {})[key]),
      ...ratios.map((key) => delta(arm)[key]),
      arm.command,
    ]),
  ];
}

const COLUMNS_ALL = [
  ["trial", "num", (t) => t.n, (v) => String(v)],
  ["method", "", (t) => t.m],
  ["settings", "wrap", (t) => t.x],
  ["status", "", (t) => (t.k === "misfit" ? "not run" : t.k === "duplicate" ? "duplicate" : t.s)],
  ["eval loss", "num", (t) => t.l, (v) => figure(v, 4)],
  ["bits/byte", "num", (t) => t.b, (v) => figure(v, 3)],
  ["peak GiB", "num", (t) => t.g, (v) => figure(v, 2)],
  ["predicted GiB", "num", (t) => t.q, (v) => figure(v, 2)],
  ["tokens/s", "num", (t) => t.v, (v, t) => (t.o ? "~" : "") + figure(v, 0)],
  ["tokens", "num", (t) => t.t, counted],
  ["time", "num", (t) => t.d, clock],
  ["reason", "wrap long", (t) => t.r],
];
// A study that predicts nothing has no column for it.
const COLUMNS = COLUMNS_ALL.filter(([name, , get]) => name !== "predicted GiB" || data.trials.some((t) => get(t)));
const STEP = 100;

function trials(host) {
  const state = { by: COLUMNS[0][2], down: false, most: STEP, method: "", status: "", text: "" };
  const status = COLUMNS[3][2],
    body = el("tbody"),
    note = el("p", { class: "notes" });
  const more = el("button", {
    type: "button",
    class: "button",
    onclick: () => {
      state.most += 10 * STEP;
      draw();
    },
  });
  const found = () =>
    data.trials
      .filter(
        (t) =>
          (!state.method || t.m === state.method) &&
          (!state.status || status(t) === state.status) &&
          (!state.text || `${t.n} ${t.m} ${t.x} ${status(t)} ${t.r || ""}`.toLowerCase().includes(state.text)),
      )
      .sort((a, b) => compare(state.by(a), state.by(b), state.down));
  function row(t) {
    const cells = COLUMNS.map(([name, css, get, form]) => {
      const value = get(t),
        text = value === undefined ? "\u2013" : form ? form(value, t) : value;
      if (name === "trial") return el("th", { scope: "row", class: css }, text);
      if (name === "method")
        return el(
          "td",
          {},
          el("span", { class: "mark" }, mark(t.m)),
          text,
          t.f ? el("span", { class: "tag" }, "front") : null,
          t.k === "baseline" ? el("span", { class: "tag" }, "baseline") : null,
        );
      return el("td", { class: css }, text === "" ? "\u2013" : text);
    });
    cells.splice(-1, 0, el("td", { class: "offer" }, t.c ? copyButton(t.c) : null));
    return el("tr", { class: t.s === "completed" ? null : "failed" }, ...cells);
  }
  function draw() {
    const all = found();
    body.replaceChildren(...all.slice(0, state.most).map(row));
    more.hidden = all.length <= state.most;
    more.textContent = `Show ${Math.min(10 * STEP, all.length - state.most)} more`;
    const count = figure(Math.min(all.length, state.most), 0);
    note.textContent = `${count} of ${figure(data.trials.length, 0)} trials shown`;
  }
  const choose = (label, values, key) =>
    el(
      "select",
      {
        "aria-label": label,
        onchange: (event) => {
          state[key] = event.target.value;
          draw();
        },
      },
      el("option", { value: "" }, label),
      ...values.map((value) => el("option", { value }, value)),
    );
  const tools = el(
    "div",
    { class: "tools" },
    choose("All methods", data.methods, "method"),
    choose("All endings", [...new Set(data.trials.map(status))], "status"),
    el("input", {
      type: "search",
      placeholder: "Filter",
      "aria-label": "Filter by text",
      oninput: (event) => {
        state.text = event.target.value.toLowerCase();
        draw();
      },
    }),
    el("button", { type: "button", class: "button", onclick: () => exportTrials(found()) }, "CSV"),
  );
  const heads = COLUMNS.map(([name, css]) => el("th", { scope: "col", class: css }, name));
  heads.forEach((head, place) =>
    sortButton(head, heads, (down) => {
      Object.assign(state, { by: COLUMNS[place][2], down });
      draw();
    }),
  );
  heads[0].setAttribute("aria-sort", "ascending");
  const row0 = el("tr", {}, ...heads);
  heads[heads.length - 1].before(el("th", { scope: "col", class: "offer" }, "command"));
  const table = el("table", {}, el("caption", {}, "Every trial of the search"), el("thead", {}, row0), body);
  host.replaceChildren(tools, el("div", { class: "wide full" }, table), note, more);
  draw();
}
function exportTrials(list) {
  const keys = [...new Set(data.trials.flatMap((t) => Object.keys(t.p)))];
  const rows = list.map((t) => [
    ...COLUMNS.map(([, , get]) => get(t)),
    t.f ? 1 : 0,
    ...keys.map((key) => t.p[key]),
    t.c,
  ]);
  save(fileName("trials"), [[...COLUMNS.map(([name]) => name), "pareto", ...keys, "command"], ...rows]);
}
