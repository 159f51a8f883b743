// The live view of the cache.  State comes in the trait `state`; buttons send messages.
// Text is set with textContent only: names of models are not ours to trust.

// A screen reader that is told every change is told nothing.
const ANNOUNCE_MS = 4000;
const AGE_MS = 5000;

function make(tag, parent, properties = {}, attributes = {}) {
  const node = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  parent.append(node);
  return node;
}

function put(node, text) {
  // Unchanged nodes are left alone, so that selections and readers are not disturbed.
  if (node.textContent !== String(text)) node.textContent = text;
}

function resize(parent, count, create) {
  while (parent.children.length > count) parent.lastElementChild.remove();
  while (parent.children.length < count) create(parent);
}

function ago(seconds) {
  if (seconds < 10) return "just now";
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= length) return `${Math.round(seconds / length)} ${unit} ago`;
  }
  return `${10 * Math.floor(seconds / 10)} s ago`;
}

function build(el, send) {
  const root = make("section", el, { className: "erllama-cache" }, { "aria-label": "Cache" });
  const head = make("div", root, { className: "erllama-head" });
  make("strong", head, { textContent: "Cache" });
  const parts = { models: make("span", head, { className: "erllama-models" }) };
  parts.pause = make("button", head, { type: "button" });
  parts.counters = make("dl", root, { className: "erllama-counters" });
  parts.tiers = make("div", root, { className: "erllama-tiers" });
  const scroll = make("div", root, { className: "erllama-scroll" });
  const table = make("table", scroll);
  parts.caption = make("caption", table);
  parts.heads = make("tr", make("thead", table));
  parts.rows = make("tbody", table);
  parts.pager = make("div", root, { className: "erllama-pager" });
  parts.back = make("button", parts.pager, { type: "button", textContent: "Newer" });
  parts.place = make("span", parts.pager);
  parts.on = make("button", parts.pager, { type: "button", textContent: "Older" });
  parts.spoken = make("p", root, { className: "erllama-spoken" },
    { role: "status", "aria-live": "polite" });
  return parts;
}

function drawCounters(list, counters) {
  resize(list, counters.length, (parent) => {
    const pair = make("div", parent);
    make("dt", pair);
    make("dd", pair);
  });
  counters.forEach(([name, value], at) => {
    put(list.children[at].children[0], name);
    put(list.children[at].children[1], value);
  });
}

function drawTiers(list, tiers) {
  resize(list, tiers.length, (parent) => {
    const tier = make("div", parent, { className: "erllama-tier" });
    make("span", tier);
    const bar = make("div", tier, { className: "erllama-bar" },
      { role: "meter", "aria-valuemin": 0, "aria-valuemax": 100 });
    make("div", bar);
    make("span", tier);
  });
  tiers.forEach((tier, at) => {
    const [name, bar, text] = list.children[at].children;
    put(name, tier.name);
    put(text, tier.text);
    bar.setAttribute("aria-label", `${tier.name} in use`);
    bar.setAttribute("aria-valuenow", Math.round(100 * tier.share));
    bar.setAttribute("aria-valuetext", tier.text);
    bar.firstElementChild.style.width = `${Math.min(100, 100 * tier.share)}%`;
  });
}

function drawRows(parts, state) {
  resize(parts.heads, state.heads.length, (parent) => make("th", parent, {}, { scope: "col" }));
  state.heads.forEach((text, at) => put(parts.heads.children[at], text));
  resize(parts.rows, state.rows.length, (parent) => {
    const row = make("tr", parent);
    state.heads.forEach((_, at) =>
      at === 0 ? make("th", row, {}, { scope: "row" }) : make("td", row));
  });
  const now = Date.now() / 1000;
  state.rows.forEach((cells, at) => {
    const row = parts.rows.children[at];
    cells.forEach((cell, column) => {
      const isTime = column === cells.length - 1;
      put(row.children[column], isTime ? ago(now - cell) : cell);
      row.children[column].className = typeof cell === "number" && !isTime ? "erllama-number" : "";
    });
  });
  state.heads.forEach((_, at) => {
    const isNumber = state.rows.length > 0 && at < state.heads.length - 1 &&
      typeof state.rows[0][at] === "number";
    parts.heads.children[at].className = isNumber ? "erllama-number" : "";
  });
}

function drawPager(parts, state) {
  const last = state.first + state.rows.length;
  put(parts.caption, state.row_count === 0
    ? "No rows yet: what is computed appears here"
    : "Rows, last used first");
  put(parts.place, `${state.first + 1} to ${last} of ${state.row_count}`);
  parts.pager.hidden = state.pages < 2;
  // Not `disabled`: a button that goes dead under the focus throws the reader out.
  parts.back.setAttribute("aria-disabled", state.page === 0);
  parts.on.setAttribute("aria-disabled", state.page >= state.pages - 1);
}

function render({ model, el }) {
  const parts = build(el);
  let spokenAt = 0;
  let timer = null;

  function speak() {
    clearTimeout(timer);
    const wait = spokenAt + ANNOUNCE_MS - Date.now();
    if (wait > 0) {
      timer = setTimeout(speak, wait);
      return;
    }
    const words = model.get("state").words.join(" ");
    if (parts.spoken.textContent !== words) {
      put(parts.spoken, words);
      spokenAt = Date.now();
    }
  }

  function draw() {
    const state = model.get("state");
    put(parts.models, state.models.length ? state.models.join(", ") : "no model is loaded");
    put(parts.pause, state.paused ? "Resume" : "Pause");
    parts.pause.hidden = false;
    drawCounters(parts.counters, state.counters);
    drawTiers(parts.tiers, state.tiers);
    drawRows(parts, state);
    drawPager(parts, state);
    speak();
  }

  // The kernel ended or was restarted: nobody would notice from numbers that stand still.
  function end() {
    put(parts.models, "the kernel has ended; run the cell again");
    parts.pause.hidden = true;
  }

  function turn(by) {
    const state = model.get("state");
    const page = state.page + by;
    if (page >= 0 && page < state.pages) model.send({ page });
  }

  parts.pause.addEventListener("click", () =>
    model.send({ paused: !model.get("state").paused }));
  parts.back.addEventListener("click", () => turn(-1));
  parts.on.addEventListener("click", () => turn(1));
  model.on("change:state", draw);
  model.on("comm_live_update", end);
  const ages = setInterval(() => drawRows(parts, model.get("state")), AGE_MS);
  draw();
  return () => {
    model.off("change:state", draw);
    model.off("comm_live_update", end);
    clearInterval(ages);
    clearTimeout(timer);
  };
}

export default { render };
