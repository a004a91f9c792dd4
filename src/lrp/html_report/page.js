// The report: shows the data according to the state in the URL's hash. All text is inserted as text, never as HTML.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const { classes, models, rows, comparison } = data;
const COUNT = rows.path.length;
const TWO = models.length > 1;
const LETTERS = TWO ? ["A", "B"] : [""];
const imageOf = new Map(data.images.map((image) => [image.row, image]));
const main = document.getElementById("main");

// ---------------------------------------------------------------- creating elements

function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children.flat());
  return node;
}

const said = document.getElementById("said");
function say(sentence) { said.textContent = sentence; }

// ---------------------------------------------------------------- formatting numbers

function percent(value) {
  if (value === null || value === undefined) return "–";
  for (let decimals = 1; decimals < 9; decimals++) {
    const text = (100 * value).toFixed(decimals);
    if (value === 1 || !text.startsWith("100")) return `${text} %`;
  }
  return `${100 * value} %`;
}
const number = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const whole = (value) => value.toLocaleString("en-US");
const share = (s) => (s ? `${(100 * s.value).toFixed(1)} % (${(100 * s.low).toFixed(1)} to ${(100 * s.high).toFixed(1)})` : "–");
const round = (value) => (value === 0 ? "0" : Math.abs(value) < 1e-4 ? value.toExponential(2) : Number(value.toPrecision(3)).toString());
const part = (value) => `${(100 * value).toFixed(1)} %`;
const signed = (value) => (value > 0 ? "+" : "") + round(value).replace("-", "−");
const plural = (count, one, many) => `${whole(count)} ${count === 1 ? one : many}`;
const label = (index) => (index >= 0 ? classes[index] : "–");

// ---------------------------------------------------------------- state in the URL

function read() {
  const [view, query = ""] = location.hash.slice(1).split("?");
  return { view: VIEWS[view] ? view : "overview", at: new URLSearchParams(query) };
}
function link(view, parameters = {}) {
  const kept = Object.entries(parameters).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const query = new URLSearchParams(kept).toString();
  return `#${view}${query ? `?${query}` : ""}`;
}
const entries = (at, ...without) => Object.fromEntries([...at].filter(([key]) => !without.includes(key)));
const modelOf = (at) => (TWO && at.get("model") === "1" ? 1 : 0);

// ---------------------------------------------------------------- filtering photos

function outcome(row, model) {
  const correct = rows.by[model].correct[row];
  return correct < 0 ? "" : correct ? "right" : "wrong";
}

const TESTS = {
  true: (row, value) => rows.true[row] === Number(value),
  predicted: (row, value, model) => rows.by[model].predicted[row] === Number(value),
  result: (row, value, model) => outcome(row, model) === value,
  change: (row, value) => comparison !== null && comparison.outcome[row] === value,
  status: (row, value) => rows.status[row] === value,
  low: (row, value, model) => rows.by[model].confidence[row] !== null && rows.by[model].confidence[row] >= Number(value) / 100,
  high: (row, value, model) => rows.by[model].confidence[row] !== null && rows.by[model].confidence[row] <= Number(value) / 100,
  maps: (row) => imageOf.has(row),
  q: (row, value, model) =>
    [rows.path[row], label(rows.true[row]), label(rows.by[model].predicted[row]), rows.error[row]]
      .join("\n").toLowerCase().includes(value.toLowerCase()),
};

const SORTS = {
  "": ["as in the table", null],
  surest: ["surest first", (row, by) => -(by.confidence[row] ?? -1)],
  unsure: ["least sure first", (row, by) => by.confidence[row] ?? 2],
  doubt: ["true class least likely first", (row, by) => by.true_confidence[row] ?? 2],
  name: ["by name", (row) => rows.file[row].toLowerCase()],
};

function chosen(at) {
  const model = modelOf(at);
  const tests = Object.entries(TESTS).filter(([key]) => (at.get(key) ?? "") !== "");
  const found = [];
  for (let row = 0; row < COUNT; row++)
    if (tests.every(([key, test]) => test(row, at.get(key), model))) found.push(row);
  const by = (SORTS[at.get("sort") ?? ""] ?? SORTS[""])[1];
  if (by) {
    const keys = new Map(found.map((row) => [row, by(row, rows.by[model])]));
    found.sort((a, b) => (keys.get(a) < keys.get(b) ? -1 : keys.get(a) > keys.get(b) ? 1 : a - b));
  }
  return found;
}

// ---------------------------------------------------------------- tables and charts

// columns: [name, whether it is numeric, item -> sort key, item -> cell content]
function table(caption, columns, items, limit = 25) {
  let order = [...items], by = null, down = false;
  const more = el("button", { type: "button", class: "more", onclick: () => { limit = items.length; fill(); } }, `all ${whole(items.length)}`);
  const body = el("tbody");
  const heads = columns.map(([name, numeric, key], i) =>
    el("th", { scope: "col", class: numeric ? "number" : "" },
      el("button", { type: "button", onclick: () => {
        down = by === i ? !down : numeric;
        by = i;
        order.sort((a, b) => {
          const [x, y] = [key(a), key(b)].map((value) => value ?? -Infinity);
          return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
        });
        heads.forEach((head, j) => head.setAttribute("aria-sort", j === i ? (down ? "descending" : "ascending") : "none"));
        fill();
      } }, name)));
  function fill() {
    body.replaceChildren(...order.slice(0, limit).map((item) =>
      el("tr", {}, columns.map(([, numeric, , show]) => el("td", { class: numeric ? "number" : "" }, show(item))))));
    more.hidden = items.length <= limit;
  }
  fill();
  return el("div", { class: "scroll" }, el("table", {}, el("caption", {}, caption), el("thead", {}, el("tr", {}, heads)), body), more);
}

function stripes() {
  const pattern = svg("pattern", { id: "stripes", width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
    svg("rect", { class: "stripe", width: 3, height: 5 }));
  return svg("defs", {}, pattern);
}
const legend = () => el("div", { class: "legend" },
  el("span", {}, el("span", { class: "key" }), "right"), el("span", {}, el("span", { class: "key wrong" }), "wrong"));

function histogram(model) {
  const { edges, right, wrong } = model.histogram;
  const most = Math.max(1, ...right.map((r, i) => r + wrong[i]));
  const [width, height, left, bottom] = [420, 190, 44, 22];
  const x = (v) => left + v * (width - left - 8), y = (v) => height - bottom - (v / most) * (height - bottom - 12);
  const bars = right.flatMap((r, i) => {
    const across = { x: x(edges[i]) + 1, width: x(edges[i + 1]) - x(edges[i]) - 2 };
    const title = svg("title", {}, `confidence ${percent(edges[i])} to ${percent(edges[i + 1])}: ${whole(r)} right, ${whole(wrong[i])} wrong`);
    return [
      svg("rect", { ...across, class: "barright", y: y(r), height: y(0) - y(r) }, title.cloneNode(true)),
      svg("rect", { ...across, class: "barwrong", y: y(r + wrong[i]), height: y(r) - y(r + wrong[i]) }, title),
    ];
  });
  const counts = `${whole(right.reduce((a, b) => a + b, 0))} right and ${whole(wrong.reduce((a, b) => a + b, 0))} wrong`;
  return el("figure", {}, svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Histogram of the confidences of ${counts} predictions` },
    stripes(), bars, axes(x, y, height, bottom, [0, most], (v) => whole(Math.round(v)))), legend());
}

function reliability(model) {
  const [width, height, left, bottom] = [420, 190, 44, 22];
  const x = (v) => left + v * (width - left - 8), y = (v) => height - bottom - v * (height - bottom - 12);
  const bars = model.calibration.bins.filter((bin) => bin.count).map((bin) =>
    svg("g", {},
      svg("rect", { class: "barright", x: x(bin.low) + 1, width: x(bin.high) - x(bin.low) - 2, y: y(bin.accuracy.value), height: y(0) - y(bin.accuracy.value) }),
      svg("line", { class: "gap", x1: x(bin.confidence), x2: x(bin.confidence), y1: y(bin.accuracy.low), y2: y(bin.accuracy.high) }),
      svg("title", {}, `${whole(bin.count)} photos: mean confidence ${percent(bin.confidence)}, right ${share(bin.accuracy)}`)));
  const c = model.calibration;
  const tendency = c.tendency && c.tendency !== "neither" ? `, ${c.tendency}` : "";
  return el("figure", {}, svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Share of right predictions at each confidence" },
    bars, svg("line", { class: "axis", x1: x(0), y1: y(0), x2: x(1), y2: y(1) }), axes(x, y, height, bottom, [0, 1], percent)),
    el("figcaption", { class: "faint" }, `Right at each confidence, lines are 95 % intervals; honest confidences follow the diagonal. Expected calibration error ${percent(c.ece)}${tendency}.`));
}

function axes(x, y, height, bottom, ends, words) {
  return [
    svg("line", { class: "axis", x1: x(0), x2: x(1), y1: y(0), y2: y(0) }),
    ...[0, 0.5, 1].map((v) => svg("text", { x: x(v), y: height - 6, "text-anchor": v === 0 ? "start" : v === 1 ? "end" : "middle" }, `${100 * v} %`)),
    ...ends.map((v) => svg("text", { x: x(0) - 4, y: y(v) + 4, "text-anchor": "end" }, words(v).replace(".0 %", " %"))),
  ];
}

// ---------------------------------------------------------------- overview

function overview() {
  return [
    el("h2", {}, TWO ? "Original and retrained" : "How good it is"),
    el("div", { class: "cards two" }, models.map(summary)),
    comparison ? changes() : null,
    el("h2", {}, "How sure it is"),
    el("div", { class: "cards two" }, [histogram, reliability].flatMap((draw) => models.map((model, m) =>
      el("section", { class: "card", "aria-label": `Confidence of ${named(m)}` }, TWO ? el("h3", {}, named(m)) : null, draw(model))))),
    el("h2", {}, "What is taken for what"),
    el("div", { class: "cards two" }, models.map((model, m) => el("section", {}, model.pairs.length
      ? table(`${TWO ? `${named(m)}: ` : ""}the most frequent confusions; the number leads to the photos.`, [
        ["true", false, (p) => label(p.true), (p) => label(p.true)],
        ["predicted", false, (p) => label(p.predicted), (p) => label(p.predicted)],
        ["photos", true, (p) => p.count, (p) => el("a", { href: link("photos", { true: p.true, predicted: p.predicted, model: m || "" }) }, whole(p.count))],
        ["of the class", true, (p) => p.share, (p) => percent(p.share)],
      ], model.pairs, 12)
      : el("p", {}, "No mistakes.")))),
    el("h2", {}, "Class by class"),
    el("div", { class: "cards two" }, models.map((model, m) => classTable(model, m))),
  ];
}

const named = (m) => (TWO ? `${LETTERS[m]}, ${models[m].file}` : models[m].file);

function summary(model, m) {
  const lost = [[model.unreadable, "unreadable", "could not be read"], [model.unmatched, "unmatched", "of no class of the model"]];
  return el("section", { class: "card", "aria-label": named(m) },
    el("h3", {}, TWO ? `${LETTERS[m]}: ${model.file}` : model.file),
    el("div", { class: "big", id: `top1-${m}` }, model.top1 ? `${(100 * model.top1.value).toFixed(1)} %` : "–"),
    el("p", { id: `counts-${m}` }, model.top1
      ? `${whole(model.top1.successes)} of ${whole(model.top1.n)} right (95 %: ${(100 * model.top1.low).toFixed(1)} to ${(100 * model.top1.high).toFixed(1)} %); top-5 ${share(model.top5)}`
      : "no photo with a known class"),
    el("p", { class: "faint" }, `mean confidence ${percent(model.confidence)}, mean loss ${number(model.loss, 3)}; model ${model.name}`
      + (model.restricted ? "; only the data's classes competed" : "")),
    el("p", {}, lost.filter(([count]) => count).map(([count, status, words]) =>
      el("a", { href: link("photos", { status, model: m || "" }) }, `${plural(count, "photo", "photos")} ${words} `))));
}

function changes() {
  const c = comparison.overall;
  const kinds = [["right", c.both_right, "both right"], ["gained", c.gained, "gained: only B right"], ["lost", c.lost, "lost: only A right"], ["wrong", c.both_wrong, "both wrong"]];
  const points = (v) => `${v > 0 ? "+" : ""}${(100 * v).toFixed(1)}`.replace("-", "−");
  return el("section", { class: "card", "aria-label": "What changed" },
    el("h3", {}, "What changed from A to B"),
    el("div", { class: "big", id: "difference" }, c.difference === null ? "–" : `${points(c.difference)} points`),
    el("p", {}, c.difference === null ? "no photo in both" : `95 %: ${points(c.low)} to ${points(c.high)}; on ${plural(c.n, "photo", "photos")} in both; p = ${c.p < 0.001 ? "below 0.001" : c.p.toFixed(3)} (McNemar, exact)`),
    el("p", {}, kinds.map(([kind, count, words]) => el("span", {}, el("a", { href: link("photos", { change: kind }), id: `change-${kind}` }, `${whole(count)} ${words}`), "   "))),
    comparison.notes.map((note) => el("p", { class: "faint" }, note)));
}

function classTable(model, m) {
  const moved = new Map((comparison?.classes ?? []).map((c) => [c.class, c]));
  const columns = [
    ["class", false, (c) => label(c.class), (c) => el("a", { href: link("photos", { true: c.class, model: m || "" }) }, label(c.class))],
    ["photos", true, (c) => c.support, (c) => whole(c.support)],
    ["right", true, (c) => c.top1?.value, (c) => share(c.top1)],
    ["precision", true, (c) => c.precision, (c) => percent(c.precision)],
    ["F1", true, (c) => c.f1, (c) => number(c.f1)],
    ["mean confidence", true, (c) => c.confidence, (c) => percent(c.confidence)],
  ];
  if (TWO && m === 1) {
    const links = (kind) => [kind, true, (c) => moved.get(c.class)?.[kind], (c) =>
      (moved.get(c.class)?.[kind] ? el("a", { href: link("photos", { true: c.class, change: kind }) }, whole(moved.get(c.class)[kind])) : "0")];
    columns.push(links("gained"), links("lost"));
  }
  const worst = [...model.classes].sort((a, b) => (a.f1 ?? 0) - (b.f1 ?? 0));
  return table(`${TWO ? `${named(m)}: ` : ""}lowest F1 first; click a heading to sort.`, columns, worst);
}

// ---------------------------------------------------------------- confusion matrix

const LARGEST = 30;

function confusion(at) {
  const m = modelOf(at);
  const { labels, rows: down, cols, counts } = models[m].matrix;
  const wrong = new Map(labels.map((i) => [i, 0])), support = new Map(labels.map((i) => [i, 0])), cells = new Map();
  let worst = 1;
  counts.forEach((count, k) => {
    cells.set(`${down[k]},${cols[k]}`, count);
    support.set(down[k], support.get(down[k]) + count);
    if (down[k] === cols[k]) return;
    worst = Math.max(worst, count);
    wrong.set(down[k], wrong.get(down[k]) + count);
    wrong.set(cols[k], wrong.get(cols[k]) + count);
  });
  let shown = labels;
  if (labels.length > LARGEST) {
    const most = new Set([...labels].sort((a, b) => wrong.get(b) - wrong.get(a)).slice(0, LARGEST));
    shown = labels.filter((i) => most.has(i));
  }
  const cell = (t, p) => {
    const count = cells.get(`${t},${p}`) ?? 0;
    if (!count) return el("td", { class: t === p ? "none diagonal" : "none" });
    const strength = t === p ? count / support.get(t) : count / worst;
    const button = el("button", { type: "button", "data-true": t, "data-predicted": p,
      "aria-label": `${plural(count, "photo", "photos")} of ${label(t)} taken for ${label(p)}`,
      title: `${label(t)} → ${label(p)}: ${count}`,
      onclick: () => { location.hash = link("photos", { true: t, predicted: p, model: m || "" }); } }, whole(count));
    const alpha = 0.1 + 0.8 * strength;
    button.style.background = `rgba(var(--${t === p ? "cell" : "miss"}), ${alpha})`;
    if (alpha > 0.6) button.style.color = "var(--paper)";
    return el("td", { class: t === p ? "diagonal" : "" }, button);
  };
  return [
    el("h2", {}, "Confusion matrix"),
    TWO ? chooser("Model", ["A", "B"], m, (i) => { location.hash = link("confusion", { model: i || "" }); }) : null,
    el("p", {}, `${named(m)}. True classes down, predicted ones across; a cell leads to its photos.`
      + (shown.length < labels.length ? ` ${shown.length} of ${labels.length} classes, those with the most mistakes.` : "")),
    el("div", { class: "scroll" }, el("table", { class: "matrix" },
      el("thead", {}, el("tr", {}, el("td"), shown.map((p) => el("th", { scope: "col" }, el("span", { title: label(p) }, label(p)))))),
      el("tbody", {}, shown.map((t) => el("tr", {}, el("th", { scope: "row", title: label(t) }, label(t)), shown.map((p) => cell(t, p))))))),
  ];
}

function chooser(name, words, current, choose, id = name) {
  return el("fieldset", { id: `choose-${id}` }, el("legend", {}, name), words.map((word, i) =>
    el("label", {}, el("input", { type: "radio", name: id, value: i, checked: i === current, onchange: () => choose(i) }), ` ${word}`)));
}

// ---------------------------------------------------------------- photos

const TILE = [158, 182];

function photos(at) {
  const found = chosen(at);
  const m = modelOf(at);
  const change = (key) => (event) => {
    const next = { ...entries(at), [key]: event.target.type === "checkbox" ? (event.target.checked ? "1" : "") : event.target.value };
    history.replaceState(null, "", link("photos", next));
    show(key);
  };
  const options = (values, key) => values.map(([value, words]) => el("option", { value, selected: (at.get(key) ?? "") === String(value) }, words));
  const select = (key, words, values) => el("label", {}, words,
    el("select", { name: key, onchange: change(key) }, options([["", "all"], ...values], key)));
  const used = (values) => [...new Set(values)].filter((i) => i >= 0).map((i) => [i, label(i)]).sort((a, b) => (a[1] < b[1] ? -1 : 1));
  const field = (key, words, attributes) => el("label", {}, words, el("input", { name: key, value: at.get(key) ?? "", oninput: change(key), ...attributes }));
  const filters = el("form", { class: "filters", "aria-label": "Filters", onsubmit: (event) => event.preventDefault() },
    select("true", "true class", used(rows.true)),
    select("predicted", "predicted class", used(rows.by[m].predicted)),
    select("result", "result", [["right", "right"], ["wrong", "wrong"]]),
    comparison ? select("change", "from A to B", [["right", "both right"], ["gained", "gained"], ["lost", "lost"], ["wrong", "both wrong"]]) : null,
    TWO ? el("label", {}, "said by", el("select", { name: "model", onchange: change("model") }, options([["", "A"], ["1", "B"]], "model"))) : null,
    select("status", "status", [...new Set(rows.status)].map((s) => [s, s])),
    field("low", "confidence from %", { type: "number", min: 0, max: 100 }),
    field("high", "to %", { type: "number", min: 0, max: 100 }),
    field("q", "text", { type: "search" }),
    data.images.length ? el("label", {}, "with heatmap", el("input", { type: "checkbox", name: "maps", checked: at.get("maps") === "1", onchange: change("maps") })) : null,
    el("label", {}, "order", el("select", { name: "sort", onchange: change("sort") }, options(Object.entries(SORTS).map(([key, [words]]) => [key, words]), "sort"))),
    el("a", { href: "#photos" }, "clear"));
  const words = `${plural(found.length, "photo", "photos")} of ${whole(COUNT)}`;
  say(words);
  const grid = el("div", { class: "grid", id: "grid", "aria-label": words });
  virtual(grid, found, at, m);
  return [el("h2", { id: "found" }, words), filters, grid];
}

// Only the visible tiles are in the DOM.
let relayout = null;
function virtual(grid, found, at, m) {
  let columns = 1, focused = 0;
  const tiles = new Map();
  const tile = (place) => {
    const row = found[place], by = rows.by[m];
    const result = outcome(row, m);
    const words = rows.status[row] === "unreadable" ? "could not be read"
      : `${label(by.predicted[row])} ${by.confidence[row] === null ? "" : percent(by.confidence[row])}`;
    const picture = rows.thumb[row]
      ? el("img", { src: `data:${data.thumb_type};base64,${rows.thumb[row]}`, alt: "", loading: "lazy" })
      : el("span", { class: "faint" }, "no picture");
    return el("a", { class: "tile", href: link("photo", { ...entries(at), row }), "data-place": place, tabindex: place === focused ? 0 : -1,
      title: `${rows.path[row]}\ntrue: ${label(rows.true[row])}\npredicted: ${words}` },
    el("div", { class: "frame" }, picture),
    el("div", { class: "line" }, result ? el("span", { class: `mark ${result}` }, result === "right" ? "✓ " : "✗ ") : null, words),
    el("div", { class: "line faint" }, result === "wrong" ? `truly ${label(rows.true[row])}` : rows.file[row]),
    el("div", { class: "line faint" }, imageOf.has(row) ? "with heatmap" : ""));
  };
  function draw() {
    const width = grid.clientWidth || 300;
    columns = Math.max(1, Math.floor(width / TILE[0]));
    const across = width / columns;
    grid.style.height = `${Math.ceil(found.length / columns) * TILE[1]}px`;
    const top = -grid.getBoundingClientRect().top;
    const from = Math.max(0, Math.floor(top / TILE[1]) - 2) * columns;
    const to = Math.min(found.length, (Math.ceil((top + innerHeight) / TILE[1]) + 2) * columns);
    for (const [place, node] of tiles) if ((place < from || place >= to) && place !== focused) { node.remove(); tiles.delete(place); }
    for (let place = from; place < to; place++) {
      if (!tiles.has(place)) { tiles.set(place, tile(place)); grid.append(tiles.get(place)); }
    }
    for (const [place, node] of tiles) {
      node.style.left = `${(place % columns) * across}px`;
      node.style.top = `${Math.floor(place / columns) * TILE[1]}px`;
      node.style.width = `${across}px`;
      node.style.height = `${TILE[1]}px`;
    }
  }
  grid.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -focused, End: found.length - 1 - focused }[event.key];
    if (step === undefined || !found.length) return;
    event.preventDefault();
    tiles.get(focused)?.setAttribute("tabindex", -1);
    focused = Math.min(found.length - 1, Math.max(0, focused + step));
    const y = grid.getBoundingClientRect().top + scrollY + Math.floor(focused / columns) * TILE[1];
    if (y < scrollY + 80 || y + TILE[1] > scrollY + innerHeight) scrollTo(0, Math.max(0, y - innerHeight / 2));
    draw();
    tiles.get(focused).setAttribute("tabindex", 0);
    tiles.get(focused).focus({ preventScroll: true });
  });
  grid.addEventListener("focusin", (event) => {
    const place = event.target.closest(".tile")?.dataset.place;
    if (place !== undefined) focused = Number(place);
  });
  relayout = draw;
  requestAnimationFrame(draw);
}
addEventListener("scroll", () => relayout?.(), { passive: true });
addEventListener("resize", () => relayout?.());

// ---------------------------------------------------------------- maps

const palette = Uint8Array.from(atob(data.palette), (c) => c.charCodeAt(0)); // 511 colours: blue, neutral, red

async function relevanceOf(map) {
  if (map.values) return map.values;
  const bytes = Uint8Array.from(atob(map.data), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const q = new Int8Array(await new Response(stream).arrayBuffer());
  const values = Float64Array.from(q, (v) => Math.sign(v) * map.scale * (v / 127) ** 2);
  // Quantisation changed the sums of the positive and of the negative part; rescale both to the exact sums.
  let positive = 0, negative = 0;
  for (const v of values) { if (v > 0) positive += v; else negative += v; }
  const up = positive ? map.positive / positive : 0, down = negative ? map.negative / negative : 0;
  map.values = values.map((v) => v * (v > 0 ? up : down));
  return map.values;
}

function percentile(arrays, share) {
  const sizes = Float64Array.from(arrays.flatMap((a) => Array.from(a, Math.abs))).sort();
  return sizes[Math.min(sizes.length - 1, Math.floor(share * sizes.length))] || sizes[sizes.length - 1] || 1;
}

function coloured(values, width, height, limit, seeThrough) {
  const picture = new ImageData(width, height);
  for (let i = 0; i < values.length; i++) {
    const part = Math.max(-1, Math.min(1, values[i] / limit));
    const colour = 3 * (Math.round(part * 255) + 255);
    picture.data.set([palette[colour], palette[colour + 1], palette[colour + 2], seeThrough ? 255 * Math.min(1, 1.6 * Math.sqrt(Math.abs(part))) : 255], 4 * i);
  }
  const canvas = el("canvas", { width, height });
  canvas.getContext("2d").putImageData(picture, 0, 0);
  return canvas;
}

// The share of each of `count` equal cells of [low, high] that is inside [from, to]; all as fractions of the photo's side.
function overlaps(count, low, high, from, to) {
  const size = (high - low) / count;
  return Float64Array.from({ length: count }, (_, i) =>
    Math.max(0, Math.min(to, low + (i + 1) * size) - Math.max(from, low + i * size)) / size);
}

function within(map, values, [left, top, right, bottom]) {
  const across = overlaps(map.width, map.box[0], map.box[2], left, right);
  const down = overlaps(map.height, map.box[1], map.box[3], top, bottom);
  let sum = 0;
  for (let i = 0; i < map.height; i++) if (down[i]) for (let j = 0; j < map.width; j++) sum += down[i] * across[j] * values[i * map.width + j];
  return sum;
}

// ---------------------------------------------------------------- one photo

const look = { map: 0, mode: 0, opacity: 1, rectangle: null }; // kept when another photo is shown
const SHARP = 512;
const MODES = ["heatmap", "overlay", "side by side"];

function photo(at) {
  const row = Number(at.get("row"));
  if (!(row in rows.path)) return [el("h2", {}, "No such photo"), el("p", {}, el("a", { href: "#photos" }, "all photos"))];
  const list = chosen(at), place = list.indexOf(row), back = link("photos", entries(at, "row"));
  const go = (step) => (list[place + step] === undefined ? null : link("photo", { ...entries(at), row: list[place + step] }));
  stepping = { back, previous: go(-1), next: go(1) };
  const image = imageOf.get(row);
  const body = image ? explained(image, row) : { seen: plainPhoto(row), told: [] };
  return [
    el("h2", { id: "photo-title" }, rows.file[row]),
    el("div", { class: "bar" },
      el("a", { href: back }, "back to the photos (Esc)"),
      go(-1) ? el("a", { href: go(-1), rel: "prev" }, "← previous") : null,
      go(1) ? el("a", { href: go(1), rel: "next" }, "next →") : null,
      place >= 0 ? el("span", { class: "faint" }, `${whole(place + 1)} of ${whole(list.length)}`) : null),
    el("p", {}, el("span", { class: "faint" }, "true class "), el("b", {}, label(rows.true[row])), el("span", { class: "faint" }, `  ${rows.path[row]}`)),
    rows.error[row] ? el("p", { class: "mark wrong" }, rows.error[row]) : null,
    el("div", { class: "detail" }, el("div", {}, body.seen),
      el("div", { class: "cards" }, models.map((_, m) => top5(row, m)), body.told)),
  ];
}

function plainPhoto(row) {
  return el("div", {}, rows.thumb[row] ? el("img", { src: `data:${data.thumb_type};base64,${rows.thumb[row]}`, alt: `photo ${rows.file[row]}` }) : null,
    el("p", { class: "faint" }, data.images.length ? "No heatmap of this one: --explain says how many photos get one." : "No heatmaps in this report: --explain makes them."));
}

function top5(row, m) {
  const by = rows.by[m];
  const result = outcome(row, m);
  return el("section", { class: "card", "aria-label": `What ${named(m)} says` },
    el("h3", {}, TWO ? `${LETTERS[m]} says` : "The model says"),
    by.top5[row].length ? el("table", { class: "bars" }, el("tbody", {}, by.top5[row].map(([index, p]) => {
      const fill = el("div", { class: "fill" });
      fill.style.width = `${100 * p}%`;
      return el("tr", {}, el("td", {}, label(index)), el("td", { class: "track" }, fill), el("td", { class: "number" }, percent(p)));
    }))) : el("p", {}, by.predicted[row] >= 0 ? `${label(by.predicted[row])} ${percent(by.confidence[row])}` : "nothing"),
    result ? el("p", {}, el("span", { class: `mark ${result}` }, result === "right" ? "✓ right" : "✗ wrong"),
      result === "wrong" && by.true_confidence[row] !== null ? `; the true class has ${percent(by.true_confidence[row])}` : "") : null);
}

// The maps to choose from for each model: the first class, the second, or their contrast.
function choices(image) {
  const order = [...new Set(image.maps.map((map) => map.class))];
  const of = (m, c) => image.maps.find((map) => map.model === m && map.class === c);
  const pair = order.length > 1;
  const words = pair ? [`why ${label(order[0])}`, `why not ${label(order[1])} (blue speaks against it)`, `${label(order[0])}, not ${label(order[1])}`] : [`why ${label(order[0])}`];
  const parts = (m, choice) => (choice === 2 ? [of(m, order[0]), of(m, order[1])] : [of(m, order[choice])]);
  return { words, parts };
}

function explained(image, row) {
  const { words, parts } = choices(image);
  look.map = Math.min(look.map, words.length - 1);
  const shown = models.map((_, m) => m).filter((m) => image.maps.some((map) => map.model === m));
  const stages = shown.map((m) => stage(image, row, m));
  const photoFigure = el("figure", { id: "original" }, el("img", { src: image.photo, alt: `photo ${rows.file[row]}` }), el("figcaption", { class: "faint" }, "the photo"));
  photoFigure.firstChild.style.width = "100%";
  const scale = el("p", { class: "scalebar faint" });
  const inputs = ["left", "top", "right", "bottom"].map((side, i) => el("label", {}, `${side} % `, el("input", {
    type: "number", min: 0, max: 100, name: side, oninput: () => {
      const typed = inputs.map((one) => Number(one.lastChild.value) / 100);
      look.rectangle = inputs.every((one) => one.lastChild.value !== "") && typed[2] > typed[0] && typed[3] > typed[1] ? typed : null;
      update(false);
    } })));
  async function update(fill = true) {
    photoFigure.hidden = look.mode !== 2;
    const every = [];
    for (const map of image.maps) every.push((await relevanceOf(map)).map((v) => v / map.block ** 2));
    const limit = percentile(every, 0.995);
    await Promise.all(stages.map((one) => one.draw(limit, parts)));
    drawScale(scale, limit, image.maps[0].seed);
    if (fill) inputs.forEach((one, i) => { one.lastChild.value = look.rectangle ? (100 * look.rectangle[i]).toFixed(1) : ""; });
  }
  stages.forEach((one) => one.onchange(update));
  update();
  const seen = [
    el("div", { class: "bar" },
      chooser("Map", words, look.map, (i) => { look.map = i; update(); }, "map"),
      chooser("Look", MODES, look.mode, (i) => { look.mode = i; update(); }, "look"),
      el("label", {}, "opacity ", el("input", { type: "range", id: "opacity", min: 0, max: 1, step: 0.05, value: look.opacity, oninput: (event) => { look.opacity = Number(event.target.value); update(false); } }))),
    el("div", { class: "photos" }, photoFigure, stages.map((one) => one.figure)),
    scale,
    el("fieldset", { class: "coords" }, el("legend", {}, "Rectangle: drag it on the map, or type its edges"), inputs,
      el("button", { type: "button", onclick: () => { look.rectangle = null; update(); } }, "none")),
  ];
  return { seen, told: stages.map((one) => one.health) };
}

function drawScale(scale, limit, seed) {
  const canvas = el("canvas", { width: 511, height: 1, "aria-hidden": "true" });
  const picture = new ImageData(511, 1);
  for (let i = 0; i < 511; i++) picture.data.set([palette[3 * i], palette[3 * i + 1], palette[3 * i + 2], 255], 4 * i);
  canvas.getContext("2d").putImageData(picture, 0, 0);
  scale.replaceChildren(`−${round(limit)} `, canvas, ` +${round(limit)} ${unitOf(seed)} a pixel of the model's input: blue against, red for; one scale for all maps here (the 99.5th percentile).`);
}

const unitOf = (seed) => (seed === "logit" ? "logits" : "of the start");

function stage(image, row, m) {
  const grown = Math.max(1, SHARP / Math.max(image.width, image.height)); // a map may have more pixels than its photo
  const [width, height] = [image.width, image.height].map((side) => Math.round(side * grown));
  const canvas = el("canvas", { width, height, role: "img" });
  const box = el("div", { class: "rectangle", hidden: true });
  const area = el("div", { class: "stage", id: `stage-${m}` }, canvas, box);
  const caption = el("figcaption"), reading = el("p", { class: "reading", id: `reading-${m}`, "aria-live": "polite" }), pointer = el("p", { class: "faint", id: `pointer-${m}` });
  const health = el("section", { class: "card", id: `health-${m}` });
  const photo = new Image();
  photo.src = image.photo;
  let maps = [], values = null, total = 0, changed = () => {};

  async function draw(limit, parts) {
    maps = parts(m, look.map);
    values = null;
    await photo.decode().catch(() => {});
    const context = canvas.getContext("2d");
    context.globalAlpha = 1;
    context.filter = look.mode === 1 ? "grayscale(1) brightness(1.1)" : "grayscale(1) brightness(0.6)";
    context.drawImage(photo, 0, 0, width, height);
    context.filter = "none";
    if (maps.some((map) => !map)) {
      caption.textContent = `${TWO ? `${LETTERS[m]}: ` : ""}this model has no such class.`;
      reading.textContent = "";
      health.hidden = true;
      return;
    }
    const [one, other] = [await relevanceOf(maps[0]), maps[1] ? await relevanceOf(maps[1]) : null];
    values = other ? one.map((v, i) => v - other[i]) : one;
    const map = maps[0];
    total = map.sum - (maps[1]?.sum ?? 0);
    const heat = coloured(values, map.width, map.height, limit * map.block ** 2, look.mode === 1);
    context.globalAlpha = look.opacity;
    const [left, top, right, bottom] = map.box;
    context.drawImage(heat, left * width, top * height, (right - left) * width, (bottom - top) * height);
    const title = (TWO ? `${LETTERS[m]}: ` : "") + maps.map((one) => `${label(one.class)} ${percent(one.probability)}`).join(", not ");
    caption.textContent = title;
    canvas.setAttribute("aria-label", `heatmap, ${title}`);
    tell();
    healthOf();
  }

  function tell() {
    box.hidden = !look.rectangle;
    if (!look.rectangle || !values) { reading.textContent = "Drag a rectangle to read how much of the relevance lies in it."; return; }
    const [left, top, right, bottom] = look.rectangle;
    Object.assign(box.style, { left: `${100 * left}%`, top: `${100 * top}%`, width: `${100 * (right - left)}%`, height: `${100 * (bottom - top)}%` });
    const sum = within(maps[0], values, look.rectangle);
    const unit = unitOf(maps[0].seed);
    const has = maps[1] ? `the classes differ by ${signed(maps[0].logit - maps[1].logit)} logits` : `the class has ${round(maps[0].logit)}`;
    const share = Math.abs(total) > 1e-9 ? `${part(sum / total)} of the relevance: ` : "";
    reading.textContent = `${share}${signed(sum)} of ${round(total)} ${unit} that reached the pixels; ${has}.`;
    reading.dataset.sum = sum;
  }

  function healthOf() {
    health.hidden = false;
    health.replaceChildren(el("h3", {}, TWO ? `${LETTERS[m]}: how it was computed` : "How it was computed"), ...maps.map((map) => {
      const s = map.shares;
      return el("div", {},
        el("p", {}, el("span", { class: `badge ${map.health.ok ? "" : "bad"}` }, map.health.ok ? "computed correctly" : "NOT CORRECT"), ` ${label(map.class)}: of ${round(map.start)} ${unitOf(map.seed)}, `,
          `${part(s.input)} reached the pixels, ${part(s.bias)} went to biases, ${part(s.epsilon)} to ε, ${part(s.dropped)} was dropped.`),
        map.health.problems.map((problem) => el("p", { class: "mark wrong" }, problem)));
    }));
  }

  const at = (event) => {
    const frame = area.getBoundingClientRect();
    return [(event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height].map((v) => Math.min(1, Math.max(0, v)));
  };
  let from = null;
  area.addEventListener("pointerdown", (event) => { from = at(event); area.setPointerCapture(event.pointerId); event.preventDefault(); });
  area.addEventListener("pointermove", (event) => {
    const [x, y] = at(event);
    if (from) {
      look.rectangle = [Math.min(from[0], x), Math.min(from[1], y), Math.max(from[0], x), Math.max(from[1], y)];
      tell();
    }
    if (!values) return;
    const map = maps[0], [left, top, right, bottom] = map.box;
    const j = Math.floor(((x - left) / (right - left)) * map.width), i = Math.floor(((y - top) / (bottom - top)) * map.height);
    const seen = i >= 0 && j >= 0 && i < map.height && j < map.width;
    const where = map.block > 1 ? `these ${map.block} × ${map.block} pixels` : "this pixel";
    pointer.textContent = seen ? `${where}: ${signed(values[i * map.width + j])} ${unitOf(map.seed)}` : "the model does not see this part";
  });
  area.addEventListener("pointerup", (event) => {
    const [x, y] = at(event);
    if (from && Math.hypot(x - from[0], y - from[1]) < 0.01) look.rectangle = null;
    from = null;
    changed();
  });
  area.addEventListener("pointerleave", () => { pointer.textContent = "\u00a0"; });
  pointer.textContent = "\u00a0";
  return { figure: el("figure", {}, area, caption, pointer, reading), health, draw, onchange: (f) => { changed = f; } };
}

// ---------------------------------------------------------------- unreadable files, provenance

function problems() {
  const lost = [];
  for (let row = 0; row < COUNT; row++) if (rows.status[row] !== "ok") lost.push(row);
  return [el("h2", {}, "Photos that do not count"), lost.length
    ? table("In no average: could not be read, or of no class of the model.", [
      ["photo", false, (r) => rows.path[r], (r) => rows.path[r]],
      ["status", false, (r) => rows.status[r], (r) => rows.status[r]],
      ["reason", false, (r) => rows.error[r], (r) => rows.error[r] || "its folder names no class of the model"],
    ], lost, 500)
    : el("p", {}, "Every photo was read, and has a class of the model.")];
}

function made() {
  return [el("h2", {}, "How it was made"), el("dl", {}, data.made.flatMap(([name, value]) =>
    [el("dt", {}, name), el("dd", {}, name === "Command" ? el("code", {}, value) : value)]))];
}

// ---------------------------------------------------------------- main

const VIEWS = { overview, confusion, photos, photo, problems, made };
const TABS = [["overview", "Overview"], ["confusion", "Confusion"], ["photos", "Photos"], ["problems", "Not counted"], ["made", "How made"]];
let stepping = null, shown = "";

function show(focus = "") {
  const { view, at } = read();
  stepping = relayout = null;
  main.replaceChildren(...VIEWS[view](at).flat().filter((node) => node));
  document.getElementById("tabs").replaceChildren(...TABS.map(([name, words]) =>
    el("a", { href: `#${name}`, "aria-current": name === view || (name === "photos" && view === "photo") ? "page" : null }, words)));
  const field = focus && main.querySelector(`[name="${focus}"]`);
  if (field) {
    field.focus();
    if (field.type === "search") field.setSelectionRange(field.value.length, field.value.length);
  } else if (view !== shown) {
    main.focus({ preventScroll: true });
    scrollTo(0, 0);
  }
  shown = view;
}

addEventListener("hashchange", () => show());
addEventListener("keydown", (event) => {
  if (!stepping || event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key === "Escape") location.hash = stepping.back;
  if (event.target.closest?.("input, select, textarea")) return;
  if (event.key === "ArrowLeft" && stepping.previous) location.hash = stepping.previous;
  if (event.key === "ArrowRight" && stepping.next) location.hash = stepping.next;
});

const theme = document.getElementById("theme");
function paint(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  theme.setAttribute("aria-pressed", String(dark));
  theme.textContent = dark ? "Light" : "Dark";
}
theme.addEventListener("click", () => paint(document.documentElement.dataset.theme !== "dark"));
paint(matchMedia("(prefers-color-scheme: dark)").matches);

document.getElementById("notes").replaceChildren(...data.notes.map((note) => el("p", {}, note)));
show();
