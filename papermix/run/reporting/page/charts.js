// What is drawn of the settings that the table shows: curves, heat map, fronts.

function ticks(low, high, log) {
  const out = [];
  if (log) {
    const parts = high / low > 300 ? [1] : [1, 2, 5];
    for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++) {
      out.push(...parts.map((m) => m * 10 ** e).filter((v) => v >= low && v <= high));
    }
  }
  if (out.length > 1) return out;
  const raw = (high - low) / 5, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
  return Array.from({ length: 12 }, (_, i) => (Math.ceil(low / step) + i) * step).filter((v) => v <= high);
}

function scale({ values, log }, from, to) {
  // values to pixels, a little room at both ends
  const [forth, back] = log ? [Math.log10, (v) => 10 ** v] : [(v) => v, (v) => v], all = values.map(forth);
  const least = all.reduce((a, b) => Math.min(a, b)), most = all.reduce((a, b) => Math.max(a, b));
  const room = (most - least) * 0.04 || Math.abs(most) * 0.05 || 1, low = least - room, high = most + room;
  return Object.assign((v) => from + ((forth(v) - low) / (high - low)) * (to - from), { ticks: ticks(back(low), back(high), log) });
}

function axes(width, height, x, y, title) {
  // x, y: {values, log, text, label}; at(event): the pointer's place in the picture's own pixels
  const box = { left: 66, right: width - 36, top: 12, bottom: height - 40 };
  const X = scale(x, box.left, box.right), Y = scale(y, box.bottom, box.top);
  const svg = el("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title, tabindex: 0 },
    ...Y.ticks.map((v) => el("line", { class: "grid", x1: box.left, x2: box.right, y1: Y(v), y2: Y(v) })),
    ...Y.ticks.map((v) => el("text", { x: box.left - 8, y: Y(v) + 4, "text-anchor": "end" }, y.text(v))),
    ...X.ticks.map((v) => el("text", { x: X(v), y: box.bottom + 18, "text-anchor": "middle" }, x.text(v))),
    el("text", { x: (box.left + box.right) / 2, y: height - 4, "text-anchor": "middle" }, x.label));
  const at = (event) => {
    const rect = svg.getBoundingClientRect();
    return [((event.clientX - rect.left) / rect.width) * width, ((event.clientY - rect.top) / rect.height) * height];
  };
  return { svg, X, Y, box, at };
}

// ---- curves -------------------------------------------------------------------------------------------------------------

function lines(group) {
  // [step, value] of each seed, and of their mean at the steps that all of them have; null where a value is no number
  const runs = group.runs.filter((run) => run.curves[state.curve]);
  const each = runs.map(({ curves }) => DATA.steps[curves[state.curve][0]].map((step, i) => [step, curves[state.curve][1][i]]));
  if (each.length < 2) return { group, mean: each[0] ?? [], each: [] };
  const maps = each.map((line) => new Map(line));
  const joint = each[0].map(([step]) => [step, maps.map((m) => m.get(step))]).filter(([, v]) => !v.includes(undefined));
  return { group, each, mean: joint.map(([step, v]) => [step, v.includes(null) ? null : mean(v)]) };
}

function curves(rows) {
  const metric = state.section.curves[state.curve], usable = (v) => finite(v) && (!state.log || v > 0);
  const shown = rows.map(lines).filter((line) => line.mean.length).slice(0, state.count);
  const every = shown.flatMap((line) => [line.mean, ...line.each]).flat().filter(([, v]) => usable(v));
  if (!every.length) return [el("p", { class: "quiet" }, "No curve to draw.")];
  const number = (v) => (Math.abs(v) >= 1e4 ? quantity(v) : digits(v, 3)), text = (v) => (metric.share ? `${digits(100 * v, 3)} %` : number(v));
  const title = `${label(metric.name)} over optimizer steps, ${shown.length} settings; arrow keys move through the steps`;
  const x = { values: every.map(([s]) => s), text: quantity, label: "optimizer steps" };
  const chart = axes(760, 380, x, { values: every.map(([, v]) => v), log: state.log, text }, title), { svg, X, Y } = chart;
  const joined = (line, i) => i > 0 && usable(line[i - 1][1]);
  const point = ([s, v], i, line) => (usable(v) ? `${joined(line, i) ? "L" : "M"}${X(s).toFixed(1)},${Y(v).toFixed(1)}${joined(line, i) ? "" : "h0"}` : "");
  const path = (kind, line, more) => el("path", { class: `curve ${kind}`, d: line.map(point).join(""), ...more });
  const list = el("ol", { class: "legend", "aria-label": "legend" });
  for (const [i, line] of shown.entries()) {
    const kind = `c${i % 8}${i >= 8 ? " dashed" : ""}`, name = line.group.name;
    const dim = (on) => () => shown.forEach((other) => other.drawn.classList.toggle("dim", on && other !== line));
    line.drawn = el("g", {}, ...line.each.map((one) => path(`single ${kind}`, one)), path(kind, line.mean, { "data-key": line.group.key }));
    line.value = el("span", { class: "value" });
    const swatch = el("svg", { viewBox: "0 0 24 14", width: 24, "aria-hidden": "true" }, el("path", { class: `curve ${kind}`, d: "M1,9H23" }));
    list.append(el("li", { onpointerenter: dim(true), onpointerleave: dim(false) }, swatch, el("span", { title: name }, short(name, 90)), line.value));
    svg.append(line.drawn);
  }
  follow(chart, shown, metric, list);
  const note = `The first ${shown.length} of ${rows.length} settings in the table's order; thin lines are single seeds.`;
  return [el("div", { class: "chart" }, svg, list), rows.length > shown.length ? el("p", { class: "quiet" }, note) : ""];
}

function follow({ svg, X, box, at }, shown, metric, list) {
  // the legend has the values at the step under the pointer, or where the arrow keys have gone; else at the end
  const head = el("span", { class: "value" }), cursor = el("line", { class: "cursor", y1: box.top, y2: box.bottom, visibility: "hidden" });
  list.prepend(el("li", { class: "quiet" }, el("span"), el("span"), head));
  svg.append(cursor);
  const steps = [...new Set(shown.flatMap((line) => line.mean.map(([s]) => s)))].sort((a, b) => a - b), last = steps.length - 1;
  let place = last;
  const move = (to, mark = true) => {
    place = Math.max(0, Math.min(last, to));
    head.textContent = `step ${steps[place]}`;
    for (const line of shown) {
      const until = line.mean.filter(([s]) => s <= steps[place]).at(-1);
      line.value.textContent = until ? metricText(metric, until[1]) || "nan" : "";
    }
    const now = { x1: X(steps[place]), x2: X(steps[place]), visibility: mark ? "visible" : "hidden" };
    for (const [name, value] of Object.entries(now)) cursor.setAttribute(name, value);
  };
  const nearest = (x) => steps.reduce((best, s, i) => (Math.abs(X(s) - x) < Math.abs(X(steps[best]) - x) ? i : best), 0);
  svg.addEventListener("pointermove", (event) => move(nearest(at(event)[0])));
  svg.addEventListener("pointerleave", () => move(last, false));
  svg.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    move(to);
  });
  move(last, false);
}

// ---- heat map -----------------------------------------------------------------------------------------------------------

function heat(rows) {
  const { section, x, y } = state, metric = section.metrics[state.metric];
  if (!x || !y || x === y) return [el("p", { class: "quiet" }, "Choose two parameters.")];
  const number = (v) => v !== "" && !Number.isNaN(Number(v));
  const order = (key) => [...new Set(rows.map((g) => g.setting[key]))].sort((a, b) => (number(a) && number(b) ? a - b : compare(a, b)));
  const inside = (a, b) => rows.filter((g) => g.setting[x] === a && g.setting[y] === b && measured(g).length);
  const across = order(x), grid = order(y).map((b) => [b, across.map((a) => inside(a, b))]);
  const value = (groups) => mean(groups.map((g) => mean(measured(g)))), all = grid.flatMap(([, cells]) => cells.map(value)).filter(finite);
  const low = Math.min(...all), high = Math.max(...all);
  const good = (v) => (!finite(v) || high === low ? 0 : metric.mode === "max" ? (v - low) / (high - low) : (high - v) / (high - low));
  const cell = (groups, where) => {
    const v = value(groups), runs = groups.flatMap(measured);
    const told = groups.length > 1 ? `mean of ${groups.length} settings ${metricText(metric, v)}` : withSpread(metric, runs);
    const title = groups.length ? `${where}: ${told}, ${runs.length} runs` : `${where}: no run`;
    const td = el("td", { class: good(v) > 0.55 ? "strong" : null, title }, metricText(metric, v));
    td.style.setProperty("--share", `${8 + 84 * good(v)}%`);
    return td;
  };
  const head = [el("th", {}, `${y} \\ ${x}`), ...across.map((a) => el("th", { scope: "col", class: "number" }, a || "-"))];
  const body = grid.map(([b, cells]) => el("tr", {}, el("th", { scope: "row" }, b || "-"), ...cells.map((g, i) => cell(g, `${x}=${across[i]} ${y}=${b}`))));
  const caption = el("caption", {}, `Mean ${label(metric.name)} over seeds; the stronger the colour, the better.`);
  return [el("div", { class: "scroll" }, el("table", { class: "heat" }, caption, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...body)))];
}

// ---- fronts -------------------------------------------------------------------------------------------------------------

function front(dots, up) {
  // those that no other one beats at the same cost or less
  const better = (a, b) => (up ? a > b : a < b), out = [];
  for (const dot of [...dots].sort((a, b) => a.cost - b.cost || (better(a.value, b.value) ? -1 : 1))) {
    if (!out.length || better(dot.value, out.at(-1).value)) out.push(dot);
  }
  return out;
}

function fronts(rows) {
  return state.section.costs.map((name) => panel(rows, name)).filter(Boolean);
}

function panel(rows, name) {
  const metric = state.section.metrics[state.metric];
  const dot = (group) => ({ group, cost: cost(group, name), value: mean(measured(group)), std: spread(measured(group)) ?? 0 });
  const dots = rows.map(dot).filter((d) => finite(d.cost) && finite(d.value));
  if (dots.length < 2) return null;
  const costs = dots.map((d) => d.cost), log = Math.min(...costs) > 0 && Math.max(...costs) > 5 * Math.min(...costs);
  const best = front(dots, metric.mode === "max"), names = best.slice(0, 4).map((d) => short(d.group.name, 70)).join("; ");
  const told = ({ group, cost }) => `${group.name}: ${withSpread(metric, measured(group))}, ${COSTS[name]} ${costText(name, cost)}, ${group.runs.length} seeds`;
  const title = `${label(metric.name)} against ${COSTS[name]}, ${dots.length} settings, ${best.length} on the front`;
  const y = { values: dots.flatMap((d) => [d.value - d.std, d.value + d.std]), text: (v) => (metric.share ? `${digits(100 * v, 4)} %` : digits(v, 3)) };
  const { svg, X, Y, at } = axes(480, 320, { values: costs, log, text: (v) => costText(name, v), label: COSTS[name] }, y, title);
  const stairs = best.map((d, i) => (i ? `H${X(d.cost)}V${Y(d.value)}` : `M${X(d.cost)},${Y(d.value)}`)).join("");
  const bar = (d) => el("line", { class: "bar", x1: X(d.cost), x2: X(d.cost), y1: Y(d.value - d.std), y2: Y(d.value + d.std) });
  const circle = (d) => {
    const look = best.includes(d) ? { class: "point front", r: 5 } : { class: "point", r: 4 };
    return el("circle", { ...look, cx: X(d.cost), cy: Y(d.value), "data-key": d.group.key }, el("title", {}, told(d)));
  };
  const ring = el("circle", { class: "ring", r: 8, visibility: "hidden" }), output = el("output", {});
  svg.append(el("path", { class: "front-line", d: stairs }), ...dots.map(bar), ...dots.map(circle), ring);
  let now = -1;
  const show = (to) => {
    now = (to + dots.length) % dots.length;
    output.textContent = told(dots[now]);
    for (const [key, value] of Object.entries({ cx: X(dots[now].cost), cy: Y(dots[now].value), visibility: "visible" })) ring.setAttribute(key, value);
  };
  svg.addEventListener("pointermove", (event) => {
    const [x, y] = at(event), far = (d) => (X(d.cost) - x) ** 2 + (Y(d.value) - y) ** 2;
    show(dots.reduce((nearest, d, i) => (far(d) < far(dots[nearest]) ? i : nearest), 0));
  });
  svg.addEventListener("keydown", (event) => {
    if (!event.key.startsWith("Arrow")) return;
    event.preventDefault();
    show(now + (/Right|Down/.test(event.key) ? 1 : -1));
  });
  const more = best.length > 4 ? `; and ${best.length - 4} more` : "";
  return el("figure", {}, svg, output, el("figcaption", {}, `On the front: ${names}${more}.`));
}
