"use strict";
// The table of settings (runs equal up to the seed): sorted, filtered, opened to single runs.
// Every text of a run enters the page as text, never as HTML.

const DATA = JSON.parse(document.getElementById("data").textContent);
const COSTS = {
  parameters: "parameters", density: "density", effective_flops: "FLOPs per example", wall_seconds: "time", peak_memory_bytes: "peak memory",
};
const MOST_KEYS = 6; // more parameters than this stand in one column, as overrides
const state = {
  section: null, metric: 0, sort: null, down: true, text: "", filters: new Map(), open: new Set(), // the table
  curve: 0, count: 8, log: false, x: "", y: "", // what is drawn
};
const parts = {}; // elements that are filled anew

// ---- elements and numbers -----------------------------------------------------------------------------------------------

const DRAWN = new Set(["svg", "g", "path", "line", "circle", "text", "title"]);

function el(tag, attributes = {}, ...children) {
  const node = DRAWN.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

const option = (value, text, chosen) => el("option", { value, selected: chosen ? "" : null }, text);
const picker = (text, options, onchange) => el("label", {}, text, el("select", { "aria-label": text, onchange }, ...options));

const finite = (value) => typeof value === "number" && Number.isFinite(value);
const digits = (value, count) => String(Number(value.toPrecision(count)));
const label = (name) => name.replaceAll("/", " ").replaceAll("_", " ");
const short = (text, most) => (text.length <= most ? text : `${text.slice(0, most / 2)} … ${text.slice(-most / 2)}`);
const mean = (values) => (values.length ? values.reduce((sum, v) => sum + Number(v), 0) / values.length : null);

function spread(values) {
  const middle = mean(values);
  if (values.length < 2 || !finite(middle)) return null;
  return Math.sqrt(values.reduce((sum, v) => sum + (v - middle) ** 2, 0) / (values.length - 1));
}

function quantity(value) {
  for (const [unit, size] of [["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (Math.abs(value) >= size) return `${digits(value / size, 3)} ${unit}`;
  }
  return digits(value, 3);
}

function duration(seconds) {
  const s = Math.round(seconds), two = (v) => String(v).padStart(2, "0");
  if (s < 60) return `${s} s`;
  return s < 3600 ? `${Math.floor(s / 60)} min ${two(s % 60)} s` : `${Math.floor(s / 3600)} h ${two(Math.floor((s % 3600) / 60))} min`;
}

function metricText(metric, value) {
  if (value === null) return "";
  if (!finite(value)) return String(value).toLowerCase();
  return metric.share ? `${(100 * value).toFixed(2)} %` : digits(value, 4);
}

function withSpread(metric, values) {
  const std = spread(values);
  return metricText(metric, mean(values)) + (std === null ? "" : ` ± ${metricText(metric, std)}`);
}

function costText(name, value) {
  if (value === null) return "";
  if (name === "density") return `${digits(100 * value, 3)} %`;
  return name === "wall_seconds" ? duration(value) : quantity(value) + (name.endsWith("bytes") ? "B" : "");
}

const measured = (group) => group.runs.map((run) => run.values[state.metric]).filter((value) => value !== null);

function cost(group, name) {
  const found = group.runs.map((run) => run.costs[name]);
  return found.every(finite) ? mean(found) : null;
}

// ---- columns ------------------------------------------------------------------------------------------------------------

function columns() {
  // text and value of a group, run: text of a single run, scale: from a value to the unit shown
  const { groups, keys, metrics } = state.section, metric = metrics[state.metric], percent = metric.share ? 100 : 1;
  const settings = new Set(groups.map((g) => JSON.stringify(g.setting)));
  const one = keys.length === 0 || keys.length > MOST_KEYS || settings.size < groups.length;
  const number = (text) => (text !== "" && !Number.isNaN(Number(text)) ? Number(text) : text);
  const own = one
    ? [{ id: "setting", wide: true, text: (g) => g.name, value: (g) => g.name }]
    : keys.map((key) => ({ id: key, text: (g) => g.setting[key], value: (g) => number(g.setting[key]) }));
  const costly = (name) => COSTS[name] !== label(metric.name) && groups.some((g) => cost(g, name) !== null);
  const costs = Object.keys(COSTS).filter(costly).map((name) => ({
    id: COSTS[name], number: true, scale: name === "density" ? 100 : 1,
    text: (g) => costText(name, cost(g, name)), value: (g) => cost(g, name), run: (r) => costText(name, r.costs[name]),
  }));
  const all = [
    ...own,
    { id: "seeds", number: true, text: (g) => String(g.runs.length), value: (g) => g.runs.length },
    {
      id: label(metric.name), number: true, metric: true, scale: percent,
      text: (g) => withSpread(metric, measured(g)), value: (g) => mean(measured(g)), run: (r) => metricText(metric, r.values[state.metric]),
    },
    ...costs,
  ];
  if (state.metric === 0 && groups.some((g) => g.published.length)) {
    const told = (g) => g.published.map(([value, source]) => `${metricText(metric, value)} (${source})`).join(", ");
    all.push({ id: "published", text: told, value: (g) => (g.published.length ? g.published[0][0] : null), scale: percent });
  }
  return all;
}

// ---- which rows, in which order -----------------------------------------------------------------------------------------

function matches(column, group, wanted) {
  const value = column.value(group), text = column.text(group).toLowerCase();
  const found = wanted.match(/^(<=|>=|<|>|=)\s*(-?[\d.]+(?:e[-+]?\d+)?)\s*([kMGT]?)%?$/);
  if (found && finite(value)) {
    const have = value * (column.scale ?? 1), limit = Number(found[2]) * { "": 1, k: 1e3, M: 1e6, G: 1e9, T: 1e12 }[found[3]];
    const same = Math.abs(have - limit) <= 1e-9 * Math.abs(limit);
    return { "<": have < limit, ">": have > limit, "<=": have <= limit, ">=": have >= limit, "=": same }[found[1]];
  }
  if (/^[<>]/.test(wanted)) return false;
  return wanted.startsWith("=") ? text === wanted.slice(1).trim().toLowerCase() : text.includes(wanted.toLowerCase());
}

function compare(a, b) {
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
}

function visible() {
  const all = columns(), words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = state.section.groups.filter((group) => {
    const text = [group.name, group.paper, ...group.tags, ...group.runs.map((run) => run.folder)].join(" ").toLowerCase();
    if (!words.every((word) => text.includes(word))) return false;
    return all.every((c) => !state.filters.get(c.id) || matches(c, group, state.filters.get(c.id)));
  });
  const by = all.find((c) => c.id === state.sort), blank = (v) => v === null || v === "" || Number.isNaN(v);
  const order = ([a], [b]) => blank(a) - blank(b) || (state.down ? compare(b, a) : compare(a, b));
  return rows.map((group) => [by.value(group), group]).sort(order).map(([, group]) => group);
}

// ---- the table's parts --------------------------------------------------------------------------------------------------

function tableHead() {
  const sort = (c) => {
    state.down = state.sort === c.id ? !state.down : Boolean(c.number);
    state.sort = c.id;
    draw();
  };
  const filter = (c, text) => {
    state.filters.set(c.id, text.trim());
    draw();
  };
  const head = columns().map((c) => {
    const button = el("button", { type: "button", onclick: () => sort(c) }, c.id);
    return el("th", { scope: "col", class: c.number ? "number" : null, "data-column": c.id }, button);
  });
  const filters = columns().map((c) => {
    const hint = { "aria-label": `filter ${c.id}`, placeholder: c.number ? "> <" : "", value: state.filters.get(c.id) ?? "" };
    return el("th", {}, el("input", { ...hint, oninput: (event) => filter(c, event.target.value) }));
  });
  return el("thead", {}, el("tr", {}, ...head), el("tr", { class: "filters" }, ...filters));
}

function tableRows(group, all) {
  const open = state.open.has(group.key);
  const turn = () => {
    if (open) state.open.delete(group.key);
    else state.open.add(group.key);
    drawTable(visible());
    parts.table.querySelector(`[data-key="${group.key}"] .open`).focus();
  };
  const name = { "aria-expanded": String(open), "aria-label": `runs of ${group.name}` };
  const toggle = el("button", { type: "button", class: "open", ...name, onclick: turn });
  const cells = all.map((c, i) => {
    if (i > 0) return el("td", { class: c.number ? "number" : null }, c.text(group));
    return el("th", { scope: "row", class: c.wide ? "wide" : null }, el("span", {}, toggle, el("span", {}, c.text(group))));
  });
  const own = (run) => all.slice(1).map((c) => el("td", { class: "number" }, c.run ? c.run(run) : ""));
  const runs = group.runs.flatMap((run) => [
    el("tr", { class: "run" }, el("th", { scope: "row" }, `seed ${run.seed}`), ...own(run)),
    el("tr", { class: "where" }, el("td", { colspan: all.length }, el("code", {}, run.folder), " · ", el("code", {}, run.command))),
  ]);
  return [el("tr", { class: "setting", "data-key": group.key, title: group.name }, ...cells), ...(open ? runs : [])];
}

function drawTable(rows) {
  const total = state.section.groups.length, all = columns();
  parts.table.tBodies[0].replaceChildren(...rows.flatMap((group) => tableRows(group, all)));
  parts.count.textContent = rows.length === total ? `${total} settings` : `${rows.length} of ${total} settings`;
  for (const th of parts.table.tHead.rows[0].cells) {
    if (th.dataset.column === state.sort) th.setAttribute("aria-sort", state.down ? "descending" : "ascending");
    else th.removeAttribute("aria-sort");
  }
}
