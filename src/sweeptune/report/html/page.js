// The page: sections are drawn when they come near, and again when their width or the choice of methods changes.

const PARTS = { pareto, curves, pairs, phases, effects, predicted, trials };
const kept = {
  get(key) {
    try {
      return localStorage.getItem("sweeptune-" + key);
    } catch {
      return null;
    }
  },
  set(key, value) {
    try {
      localStorage.setItem("sweeptune-" + key, value);
    } catch {
      /* a browser may refuse */
    }
  },
};

function theme() {
  const buttons = [
    ["auto", "Auto"],
    ["light", "Light"],
    ["dark", "Dark"],
  ].map(([key, label]) =>
    el(
      "button",
      {
        type: "button",
        "data-key": key,
        onclick: () => {
          kept.set("theme", key);
          apply(key);
        },
      },
      label,
    ),
  );
  function apply(key) {
    if (key === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = key;
    buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.key === key)));
  }
  const known = kept.get("theme");
  apply(["light", "dark"].includes(known) ? known : "auto");
  return el("div", { class: "group", role: "group", "aria-label": "Colours" }, ...buttons);
}

/** While a study runs the file is written again and again; the page looks, and can be told not to. */
function live() {
  if (document.documentElement.dataset.live !== "1") return null;
  let timer = 0;
  const button = el("button", {
    type: "button",
    class: "button",
    onclick: () => set(button.getAttribute("aria-pressed") !== "true"),
  });
  function set(on) {
    kept.set("live", on ? "on" : "off");
    button.setAttribute("aria-pressed", String(on));
    button.textContent = on ? "Refreshing every 10 s: pause" : "Paused: refresh again";
    clearInterval(timer);
    if (on)
      timer = setInterval(() => {
        // Not under somebody's hands: a filter that was set would be forgotten.
        const busy = [...document.querySelectorAll(".tools :is(input, select)")].some((field) => field.value);
        if (tip.hidden && !busy && !document.hidden) location.reload();
      }, 10000);
  }
  set(kept.get("live") !== "off");
  return button;
}

function legend() {
  const host = document.querySelector("[data-legend]");
  if (data.methods.length < 2) return;
  host.setAttribute("role", "group");
  host.setAttribute("aria-label", "Methods in the drawings");
  host.append(
    ...data.methods.map((method) => {
      const button = el(
        "button",
        {
          type: "button",
          class: "button",
          "aria-pressed": "true",
          onclick: () => {
            if (!hidden.delete(method)) hidden.add(method);
            button.setAttribute("aria-pressed", String(shown(method)));
            drawn.forEach((draw) => draw());
          },
        },
        el("span", { class: "mark", "aria-hidden": "true" }, mark(method)),
        el("span", { class: "label" }, method),
      );
      return button;
    }),
  );
}

const drawn = new Map();
function mount(section) {
  const part = PARTS[section.dataset.part],
    host = el("div", { class: "host" });
  section.querySelector("h2").after(host);
  let width = 0;
  const draw = () => {
    width = host.clientWidth;
    if (width) part(host, width);
  };
  const begin = () => {
    if (drawn.has(section)) return;
    drawn.set(section, section.dataset.part === "trials" ? () => {} : draw);
    draw();
    if (section.dataset.part === "trials") return; // it needs no width, and drawing it again would forget its filters
    new ResizeObserver(() => {
      if (Math.abs(host.clientWidth - width) > 1) draw();
    }).observe(host);
  };
  new IntersectionObserver(
    (entries, observer) => {
      if (entries.some((entry) => entry.isIntersecting)) {
        observer.disconnect();
        begin();
      }
    },
    { rootMargin: "300px 0px" },
  ).observe(section);
  addEventListener("beforeprint", () => {
    if (drawn.has(section)) drawn.get(section)();
    else begin();
  });
}

function sections() {
  const all = [...document.querySelectorAll("main section[data-title]")];
  const links = [el("a", { href: "#verdict" }, "Verdict")];
  for (const section of all) {
    // A section without anything in it, such as failures of a study that had none, is left out.
    if (!section.dataset.part && !section.querySelector("table")) {
      section.remove();
      continue;
    }
    if (
      (section.id === "pairs" && !data.pairs.length) ||
      (section.id === "predicted" && !data.predictions.length) ||
      (section.id === "phases" && !data.phases.length)
    ) {
      section.remove();
      continue;
    }
    const known = section.querySelector("h2"),
      id = known ? known.id : "h-" + section.id;
    if (!known) section.prepend(el("h2", { id }, section.dataset.title));
    section.setAttribute("aria-labelledby", id);
    links.push(el("a", { href: "#" + section.id }, section.dataset.short || section.dataset.title));
    if (section.dataset.part) mount(section);
  }
  const nav = document.querySelector("[data-nav]");
  nav.append(...links);
  nav.hidden = false;
  const seen = new IntersectionObserver(
    (entries) => {
      const now = entries.filter((entry) => entry.isIntersecting).map((entry) => "#" + entry.target.id)[0];
      if (!now) return;
      links.forEach((link) => {
        if (link.hash === now) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
      });
    },
    { rootMargin: "-15% 0px -75% 0px" },
  );
  document.querySelectorAll("main section[id]").forEach((section) => seen.observe(section));
}

function copyArm(arm) {
  const button = copyButton(arm.command);
  button.setAttribute("aria-label", `Copy the command of ${arm.method}`);
  button.setAttribute("title", "Copy the command");
  return button;
}

function texts() {
  document
    .querySelectorAll("[data-method]")
    .forEach((node) => node.append(mark(data.methods[Number(node.dataset.method)])));
  document.querySelectorAll("[data-arm]").forEach((node) => node.append(copyArm(data.arms[Number(node.dataset.arm)])));
  const commands = data.words.map((word) => word.command).filter(Boolean);
  document
    .querySelectorAll("#verdict code.command")
    .forEach((node, place) => node.after(" ", copyButton(commands[place])));
  document.querySelectorAll("table[data-table]").forEach(enhance);
}

document.querySelector("[data-switches]").append(...[live(), theme()].filter(Boolean));
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  held.point = null;
  hideTip();
});
// A point that the keyboard reaches is scrolled into view, and its tip goes with it; a mouse leaves its point behind.
addEventListener("scroll", () => (held.point ? held.point() : hideTip()), { passive: true });
texts();
// A browser lays out for the paper only after this event, so the width of a page is set here, before anything is drawn.
addEventListener("beforeprint", () => document.documentElement.classList.add("paper"));
sections();
addEventListener("afterprint", () => {
  document.documentElement.classList.remove("paper");
  drawn.forEach((draw) => draw());
});
legend();
