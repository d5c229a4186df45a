"use strict";

/* Tables: a heading's button sorts by its column; what is missing stays last. */

function sortBy(table, column) {
  const heads = [...table.tHead.rows[0].cells];
  const down = heads[column].getAttribute("aria-sort") === "ascending";
  heads.forEach((head, at) =>
    head.setAttribute("aria-sort", at !== column ? "none" : down ? "descending" : "ascending"));
  const rows = [...table.tBodies[0].rows].map((row) => [row, sortKey(row.cells[column])]);
  rows.sort(([, one], [, other]) => {
    if (one === null || other === null) return (one === null) - (other === null);
    const order = typeof one === "number" && typeof other === "number"
      ? one - other : String(one).localeCompare(String(other));
    return down ? -order : order;
  });
  table.tBodies[0].append(...rows.map(([row]) => row));
}

function sortKey(cell) {
  if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
  const text = cell.textContent.trim();
  return text === "–" || text === "" ? null : text;
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((head, column) =>
    head.querySelector("button").addEventListener("click", () => sortBy(table, column)));
}

/* Curves: one trace a job, drawn when they come into view. */

const VIRIDIS = ["#440154", "#482878", "#3e4a89", "#31688e", "#26828e", "#1f9e89", "#35b779",
  "#6dcd59", "#b4de2c", "#fde725"];
const WORDS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];
const LEGEND = 16; // entries; of more values the legend shows some, evenly
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const narrow = window.matchMedia("(max-width: 40rem)");

/* A share of the colour map that stands out from the page, whichever scheme it has. */
function viridis(share) {
  const [low, high] = dark.matches ? [0.3, 1] : [0, 0.88];
  const at = (low + (high - low) * share) * (VIRIDIS.length - 1);
  const below = Math.min(Math.floor(at), VIRIDIS.length - 2);
  const parts = [VIRIDIS[below], VIRIDIS[below + 1]].map((hex) =>
    [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16)));
  return `rgb(${parts[0].map((one, i) => Math.round(one + (at - below) * (parts[1][i] - one)))})`;
}

function colours(values) {
  if (values.length === 1) return [viridis(0.4)];
  const numbers = values.every((value) => typeof value === "number");
  if (numbers || values.length > WORDS.length)
    return values.map((_, at) => viridis(at / (values.length - 1)));
  return values.map((_, at) => WORDS[at]);
}

/* Text for plotly, which reads some tags. */
function plain(value) {
  const text = typeof value === "string" ? value : JSON.stringify(value);
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/%/g, "&#37;");
}

function short(key) {
  return key.slice(key.lastIndexOf(".") + 1);
}

/* Which of so many values have an entry in the legend. */
function inLegend(count) {
  if (count <= LEGEND) return new Set(Array(count).keys());
  return new Set(Array.from({ length: 8 }, (_, i) => Math.round((i * (count - 1)) / 7)));
}

/* The values of a key over the jobs, in order. */
function valuesOf(jobs, key) {
  const found = new Map(jobs.map((job) => [JSON.stringify(job.keys[key]), job.keys[key]]));
  return [...found.values()].sort((one, other) =>
    typeof one === "number" && typeof other === "number" ? one - other : String(one).localeCompare(String(other)));
}

function traces(data, column, key) {
  const values = key === "" ? data.jobs.map((job) => job.id) : valuesOf(data.jobs, key);
  const names = values.map((value) => JSON.stringify(value));
  const colour = colours(values);
  const listed = inLegend(values.length);
  const drawn = [];
  data.columns[column].forEach((curve, place) => {
    if (curve === null) return;
    const job = data.jobs[place];
    const at = key === "" ? place : names.indexOf(JSON.stringify(job.keys[key]));
    const about = Object.entries(job.keys).map(([name, value]) => `${plain(short(name))} ${plain(value)}`);
    drawn.push({
      type: "scatter",
      mode: curve[1].length <= 50 ? "lines+markers" : "lines",
      x: data.steps[curve[0]],
      y: curve[1],
      connectgaps: false,
      line: { color: colour[at], width: 1.3 },
      marker: { size: 4 },
      legendgroup: String(at),
      legendrank: 1000 + at,
      name: key === "" ? job.id : plain(values[at]),
      showlegend: data.jobs.length > 1 && listed.has(at),
      hovertemplate: ["step %{x}", `${plain(column)} %{y:.6g}`, ...about, job.id].join("<br>") + "<extra></extra>",
    });
    listed.delete(at);
  });
  return drawn;
}

function layout(data, column, key, xlog, ylog) {
  const style = getComputedStyle(document.body);
  const grid = dark.matches ? "#ffffff22" : "#00000018";
  const axis = { gridcolor: grid, zeroline: false, linecolor: grid, automargin: true, exponentformat: "power" };
  const spanned = decades(data.columns[column]);
  const ticks = ylog && spanned > 0 && spanned < 3 ? { dtick: "D2" } : {}; // 1, 2 and 5 times powers of ten
  return {
    margin: { l: 60, r: 10, t: 36, b: 45 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: style.fontFamily, color: style.color, size: 13 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: style.color, activecolor: style.color },
    hovermode: "closest",
    showlegend: true,
    legend: narrow.matches
      ? { orientation: "h", y: -0.25, yanchor: "top", title: { text: plain(short(key)), side: "top" } }
      : { title: { text: plain(short(key)) } },
    xaxis: { ...axis, title: { text: "step" }, type: xlog ? "log" : "linear" },
    yaxis: { ...axis, ...ticks, title: { text: plain(column) }, type: ylog ? "log" : "linear" },
  };
}

/* How many decades a column's values span; none if one of them is not positive. */
function decades(curves) {
  let low = Infinity, high = 0;
  for (const curve of curves) for (const value of curve ? curve[1] : []) {
    if (value === null) continue;
    if (value <= 0) return 0;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  return high > 0 ? Math.log10(high / low) : 0;
}

function hidden(data, column, xlog, ylog) {
  let count = 0;
  for (const curve of data.columns[column]) {
    if (curve === null) continue;
    curve[1].forEach((value, at) => {
      count += value !== null && ((ylog && value <= 0) || (xlog && data.steps[curve[0]][at] <= 0));
    });
  }
  return count ? `${count} points are at zero or below and have no place on a logarithmic axis.` : "";
}

function fill(select, options, chosen) {
  for (const [value, text] of options) {
    const option = new Option(text, value);
    option.selected = value === chosen;
    select.append(option);
  }
}

function setUp(box) {
  const data = JSON.parse(document.getElementById(`${box.dataset.key}-data`).textContent);
  const chart = box.querySelector(".chart");
  const form = box.querySelector("form");
  const { column, colour, xlog, ylog } = form.elements;
  const names = Object.keys(data.columns);
  const first = ["train_loss", "batch_loss"].find((name) => names.includes(name)) ?? names[0];
  fill(column, names.map((name) => [name, name]), first);
  const keys = Object.keys(data.jobs[0].keys);
  const byDefault = keys.find((key) => !key.endsWith("seed")) ?? keys[0] ?? "";
  fill(colour, [...keys.map((key) => [key, key]), ["", "job"]], byDefault);
  let touched = false;
  const draw = () => {
    if (!touched) ylog.checked = decades(data.columns[column.value]) > 1.2;
    box.querySelector(".hidden-values").textContent = hidden(data, column.value, xlog.checked, ylog.checked);
    Plotly.react(chart, traces(data, column.value, colour.value),
      layout(data, column.value, colour.value, xlog.checked, ylog.checked),
      { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]] });
  };
  ylog.addEventListener("change", () => { touched = true; });
  form.addEventListener("change", draw);
  form.addEventListener("submit", (event) => event.preventDefault());
  dark.addEventListener("change", draw);
  narrow.addEventListener("change", draw);
  draw();
}

window.addEventListener("DOMContentLoaded", () => {
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((one) => one.isIntersecting)) {
      watcher.unobserve(entry.target);
      setUp(entry.target);
    }
  }, { rootMargin: "200px" });
  document.querySelectorAll(".curves").forEach((box) => watcher.observe(box));
});
