"use strict";
// What the pages share: colours that follow the reader's scheme, charts that follow their width.

const facts = JSON.parse(document.getElementById("facts").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const charts = [];
let printing = false;

// Okabe & Ito's colours, told apart with any colour vision; the yellow is left out, too pale on paper.
const LIGHT = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#b07d00", "#5d636a"];
const DARK = ["#56a8dc", "#f08a4b", "#3cc79b", "#e09cc2", "#8fd0f5", "#d9ae45", "#9aa0a6"];

function palette() {
  const isDark = dark.matches && !printing;
  return isDark
    ? { series: DARK, ink: "#e4e4e0", soft: "#9aa0a6", rule: "#32363b", paper: "#15171a", ramp: ["#2b3a4a", "#3f7fa6", "#9fe0d0"], heat: ["#1d2024", "#3f86b5"] }
    : { series: LIGHT, ink: "#1d1f21", soft: "#5d636a", rule: "#dddcd6", paper: "#fcfcfa", ramp: ["#d3d9df", "#5f97bd", "#0b3c5d"], heat: ["#f2f1ec", "#1f5f8b"] };
}

// Escapes text that a tooltip, which is HTML, will show.
function safe(text) {
  return String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
}

const percent = (share, digits = 2) => (share == null ? "–" : (100 * share).toFixed(digits) + " %");
// A value of the metric that trials are ranked by: a share, or an NLL in nats.
const figure = (value) => (facts.metric.is_share ? percent(value) : value == null ? "–" : value.toFixed(4));
const thousands = (value) => value.toLocaleString("en").replaceAll(",", "\u202f");
// Three digits, or as many as the whole number has.
const short = (value) => (typeof value === "number" ? String(Math.abs(value) >= 100 ? Math.round(value) : Number(value.toPrecision(3))) : value);

function axis(colours, given) {
  return {
    nameTextStyle: { color: colours.soft }, axisLabel: { color: colours.soft, hideOverlap: true, ...given.axisLabel },
    axisLine: { show: true, onZero: false, lineStyle: { color: colours.rule } }, axisTick: { show: false },
    splitLine: { show: given.splitLine ?? false, lineStyle: { color: colours.rule } },
    ...Object.fromEntries(Object.entries(given).filter(([key]) => !["axisLabel", "splitLine"].includes(key))),
  };
}

// A chart in the element of this id: draw(colours, width) gives its options, again at each change.
function chart(id, draw) {
  const element = typeof id === "string" ? document.getElementById(id) : id;
  if (!element) return null;
  const made = echarts.init(element, null, { renderer: "canvas", devicePixelRatio: Math.max(2, window.devicePixelRatio) });
  const entry = {
    element, made,
    draw() {
      const colours = palette();
      const options = draw(colours, element.clientWidth);
      if (options.height) element.style.height = options.height + "px";
      made.resize();
      made.setOption({
        animation: false, textStyle: { fontFamily: "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif" },
        color: colours.series, backgroundColor: "transparent", ...options.chart,
      }, { notMerge: true });
      element.querySelector(":scope > canvas")?.remove();
      // The printer takes what is painted now, and layers are painted a moment later.
      if (printing) element.append(made.renderToCanvas({ pixelRatio: 2 }));
    },
  };
  entry.draw();
  charts.push(entry);
  return entry;
}

function tooltip(colours, formatter, more = {}) {
  return { confine: true, backgroundColor: colours.paper, borderColor: colours.rule, textStyle: { color: colours.ink, fontSize: 12 }, formatter, ...more };
}

function redraw() { for (const entry of charts) entry.draw(); }

dark.addEventListener("change", redraw);
let width = window.innerWidth;
window.addEventListener("resize", () => {
  // A phone's address bar changes the height alone.
  if (window.innerWidth === width) return;
  width = window.innerWidth;
  redraw();
});
window.addEventListener("beforeprint", () => { printing = true; redraw(); });
window.addEventListener("afterprint", () => { printing = false; redraw(); });

// Horizontal bars with their names: rows of {name, value, colour}.
function bars(colours, width, rows, label, about) {
  const ordered = rows.toReversed();
  const left = Math.min(0.4 * width, 18 + 7 * Math.max(...rows.map((r) => r.name.length)));
  const height = Math.max(9, Math.min(23, 1100 / rows.length));
  const isFew = height > 13;
  return { height: height * rows.length + 16, chart: {
    grid: { left, right: 62, top: 4, bottom: 8 },
    xAxis: { type: "value", show: false, min: 0, max: "dataMax" },
    yAxis: axis(colours, { type: "category", data: ordered.map((r) => r.name), axisLabel: { color: colours.ink, overflow: "truncate", width: left - 10, ...(isFew && { interval: 0 }) }, axisLine: { show: false } }),
    tooltip: tooltip(colours, (p) => about(ordered[p.dataIndex])),
    series: [{ type: "bar", barWidth: isFew ? 12 : "70%", data: ordered.map((r) => ({ value: r.value, itemStyle: { color: r.colour ?? colours.series[0] } })), label: { show: isFew, position: "right", color: colours.soft, formatter: (p) => label(p.value) }, itemStyle: { borderRadius: [0, 2, 2, 0] } }],
  } };
}

// Points on lines that hold their intervals: rows of {name, value, low, high}.
function ranges(colours, width, rows, scale, about) {
  const ordered = rows.toReversed();
  const left = Math.min(0.4 * width, 18 + 7 * Math.max(...rows.map((r) => r.name.length)));
  const height = Math.max(9, Math.min(23, 1100 / rows.length)), isFew = height > 13;
  const line = (params, api) => {
    const [from, to] = [0, 1].map((dim) => api.coord([api.value(dim), api.value(2)]));
    return { type: "line", shape: { x1: from[0], y1: from[1], x2: to[0], y2: to[1] }, style: { stroke: colours.series[0], opacity: 0.4, lineWidth: isFew ? 4 : 2 } };
  };
  return { height: height * rows.length + 40, chart: {
    grid: { left, right: 24, top: 4, bottom: 32 },
    xAxis: scale,
    yAxis: axis(colours, { type: "category", data: ordered.map((r) => r.name), axisLabel: { color: colours.ink, overflow: "truncate", width: left - 10, ...(isFew && { interval: 0 }) }, axisLine: { show: false } }),
    tooltip: tooltip(colours, (p) => about(ordered[p.dataIndex])),
    series: [
      { type: "custom", renderItem: line, encode: { x: [0, 1], y: 2 }, data: ordered.map((r, index) => [r.low, r.high, index]) },
      { type: "scatter", symbolSize: isFew ? 9 : 5, data: ordered.map((r, index) => [r.value, index]), itemStyle: { color: colours.series[0], opacity: 1 } },
    ],
  } };
}

// An axis of accuracies from low to high, its ends at whole steps.
function accuracyAxis(colours, low, high, unit = " %") {
  const step = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1].find((s) => (high - low) / s <= 6) ?? 0.2;
  const max = Math.min(1, Math.max(step, Math.ceil(high / step - 1e-9) * step));
  const min = Math.max(0, Math.min(max - step, Math.floor(low / step + 1e-9) * step));
  return axis(colours, { type: "value", min, max, interval: step, splitLine: true, axisLabel: { fontSize: 11.5, formatter: (v) => (100 * v).toFixed(step < 0.01 ? 1 : 0) + unit } });
}

// A vertical axis of the metric over the range [low, high].
function metricAxis(colours, [low, high], unit = " %") {
  if (facts.metric.is_share) return accuracyAxis(colours, low, high, unit);
  return axis(colours, { type: "value", min: low, max: high, splitLine: true, axisLabel: { fontSize: 11.5, formatter: short } });
}

// The range of the metric that is worth seeing: but for this share of the trials, the worst ones.
function range(values, share) {
  if (facts.metric.is_share) return [lowest(values, share), highest(values)];
  const sorted = values.filter((v) => v != null).sort((a, b) => a - b);
  if (!sorted.length) return [0, 1];
  const best = sorted[0], worst = sorted[Math.ceil((1 - share) * (sorted.length - 1))];
  const margin = Math.max(0.01, 0.1 * (worst - best));
  return [Math.max(0, best - margin), worst + margin];
}

// The range that holds two others.
const union = (a, b) => [Math.min(a[0], b[0]), Math.max(a[1], b[1])];

// The lowest accuracy that is worth seeing: but for this share of the trials, and a little less.
function lowest(accuracies, share) {
  const sorted = accuracies.filter((a) => a != null).sort((a, b) => a - b);
  if (!sorted.length) return 0;
  const low = sorted[Math.floor(share * (sorted.length - 1))];
  return Math.max(0, low - Math.max(0.01, 0.1 * (sorted.at(-1) - low)));
}

// No spread: all epochs of many trials are more arguments than a call may have.
const highest = (accuracies) => accuracies.reduce((a, b) => Math.max(a, b ?? 0), 0);
