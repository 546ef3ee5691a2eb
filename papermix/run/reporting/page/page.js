// The page: pictures, comparisons with papers, what was left out, and the controls of it all.

const BLANK = "data:image/gif;base64,R0lGODlhAQABAAAAACw=";

function gallery(rows) {
  // a picture is decoded when it comes near the screen
  const near = new IntersectionObserver((seen) => {
    for (const { target } of seen.filter((entry) => entry.isIntersecting)) {
      target.src = target.picture.uri;
      near.unobserve(target);
    }
  }, { rootMargin: "400px" });
  const shown = (picture, told) => {
    const image = el("img", { src: BLANK, alt: `${picture.name} of ${told}`, width: picture.width, height: picture.height });
    image.picture = picture;
    image.style.aspectRatio = `${picture.width} / ${picture.height}`;
    near.observe(image);
    return el("figure", {}, image, el("figcaption", {}, `${told}: ${picture.name}`));
  };
  return rows.flatMap((group) => group.runs.flatMap((run) => run.pictures.map((p) => shown(p, `${group.name}, seed ${run.seed}`))));
}

function paper({ title, url, cited, header, rows }) {
  const look = (name) => ({ class: ["published", "measured", "seeds", "difference"].includes(name) ? "number" : null });
  const cell = (text, i, row) => {
    const mark = header[i] === "published" && row.published ? el("span", { class: "tag" }, "published") : null;
    return el("td", look(header[i]), text, mark);
  };
  const head = el("tr", {}, ...header.map((name) => el("th", { scope: "col", ...look(name) }, name)));
  const body = rows.map((row) => el("tr", {}, ...row.cells.map((text, i) => cell(text, i, row))));
  const table = el("table", {}, el("thead", {}, head), el("tbody", {}, ...body));
  return [el("h3", {}, url ? el("a", { href: url }, title) : title), el("p", { class: "quiet" }, cited), el("div", { class: "scroll" }, table)];
}

function leftOut() {
  const runs = DATA.left.map(([folder, why]) => el("li", {}, el("code", {}, folder), ` ${why}`));
  return el("ul", {}, ...runs, ...DATA.notes.map((note) => el("li", {}, note)));
}

// ---- controls -----------------------------------------------------------------------------------------------------------

function draw() {
  const rows = visible();
  drawTable(rows);
  for (const [name, make] of Object.entries({ curves, heat, fronts, pictures: gallery })) parts[name]?.replaceChildren(...make(rows));
}

const set = (name, read) => (event) => {
  state[name] = read(event.target);
  draw();
};

const block = (id, title, ...content) => el("section", { id, "aria-label": title }, el("h2", {}, title), ...content);
const place = (name, look = null) => (parts[name] = el("div", { class: look }));

function topControls(section) {
  const name = (s) => `${s.dataset}: ${label(s.metrics[0].name)} (${s.groups.length} settings)`;
  const runs = DATA.sections.map((s, i) => option(i, name(s), s === section));
  const metrics = section.metrics.map((m, i) => option(i, label(m.name), i === state.metric));
  const search = { type: "search", id: "search", value: state.text, placeholder: "words in names, tags, folders" };
  parts.count = el("span", { role: "status" });
  return el("div", { class: "controls" },
    DATA.sections.length > 1 ? picker("runs", runs, (event) => show(DATA.sections[event.target.value])) : null,
    picker("metric", metrics, (event) => show(section, Number(event.target.value))),
    el("label", {}, "search", el("input", { ...search, oninput: set("text", (input) => input.value) })),
    parts.count);
}

function settingsBlock(section) {
  const help = "Mean ± standard deviation over seeds; ▸ shows the single runs. Filters take a part of the text, =text, or > < >= <= with a "
    + "number in the column's unit (time in seconds); what is drawn below follows the table.";
  parts.table = el("table", { id: "table" }, tableHead(), el("tbody"));
  const shared = section.shared.length ? el("p", { class: "quiet" }, "All with ", el("code", {}, section.shared.join(" "))) : null;
  const scroll = el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "table of settings" }, parts.table);
  const title = `${section.dataset}: ${label(section.metrics[state.metric].name)}`;
  return block("settings", title, shared ?? "", scroll, el("p", { class: "quiet" }, help));
}

function curvesBlock(section) {
  const number = (select) => Number(select.value);
  const names = section.curves.map((c, i) => option(i, label(c.name), i === state.curve));
  const counts = [4, 8, 16].map((n) => option(n, `first ${n}`, n === state.count));
  const log = el("input", { type: "checkbox", checked: state.log ? "" : null, onchange: set("log", (input) => input.checked) });
  const controls = [picker("curve", names, set("curve", number)), picker("settings", counts, set("count", number))];
  const check = el("label", { class: "check" }, log, "logarithmic");
  return block("curves", "Training curves", el("div", { class: "controls" }, ...controls, check), place("curves"));
}

function heatBlock({ keys }) {
  const axis = (name, text) => {
    const options = keys.map((key) => option(key, key, state[name] === key));
    return picker(text, [option("", "choose", !state[name]), ...options], set(name, (select) => select.value));
  };
  return block("heat", "Heat map", el("div", { class: "controls" }, axis("y", "rows"), axis("x", "columns")), place("heat"));
}

function show(section, metric = 0) {
  const [y, x] = section.keys.length === 2 ? section.keys : ["", ""];
  if (section !== state.section) Object.assign(state, { section, filters: new Map(), open: new Set(), curve: 0, x, y });
  Object.assign(state, { metric, down: section.metrics[metric].mode === "max" });
  state.sort = columns().find((c) => c.metric).id;
  for (const name of Object.keys(parts)) delete parts[name];
  const pictured = section.groups.some((g) => g.runs.some((r) => r.pictures.length));
  document.getElementById("main").replaceChildren(
    topControls(section),
    settingsBlock(section),
    section.curves.length ? curvesBlock(section) : "",
    section.keys.length >= 2 ? heatBlock(section) : "",
    section.costs.length ? block("fronts", "What it costs", place("fronts", "panels")) : "",
    pictured ? block("pictures", "Pictures", place("pictures", "gallery")) : "",
    DATA.papers.length ? block("papers", "Published and measured", ...DATA.papers.flatMap(paper)) : "",
    DATA.left.length + DATA.notes.length ? block("left", "Left out", leftOut()) : "",
  );
  draw();
}

document.getElementById("summary").textContent = DATA.summary;
document.getElementById("command").textContent = DATA.command;
show(DATA.sections.reduce((most, s) => (s.groups.length > most.groups.length ? s : most)));
