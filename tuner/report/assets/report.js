"use strict";
// The charts of a run: curves, parameters, time.

const trials = facts.trials;
const families = [...new Set(trials.map((t) => t.family))].sort();
const colourOf = (colours, family) => colours.series[families.indexOf(family) % colours.series.length];
const control = (id) => document.getElementById(id);
const name = (t) => `trial ${t.number} · ${safe(t.family)}`;

// Controls and charts are there together, or neither is.
function on(id, chartEntry) { control(id)?.addEventListener("input", () => chartEntry.draw()); }

// Learning curves

const SYMBOLS = { completed: "circle", stopped: "emptyCircle", paused: "emptyDiamond", interrupted: "emptyRect", diverged: "triangle", failed: "triangle", out_of_memory: "triangle" };

// Rows that the names of the families take above the plot, at 7 pixels a letter.
function legendRows() {
  const width = families.reduce((sum, family) => sum + 7 * family.length + 29, 0);
  return families.length > 1 ? Math.ceil(width / (control("chart-curves").clientWidth - 58)) : 0;
}

const curves = chart("chart-curves", (colours) => {
  const shown = trials.filter((t) => t.curve.length);
  // The best are drawn last, on top.
  const ordered = [...shown].reverse();
  const opacity = Math.max(0.12, Math.min(0.75, 12 / Math.sqrt(shown.length * 4)));
  const seen = control("zoom").checked
    ? range(shown.map((t) => t.value), shown.length > 100 ? 0.5 : 0.1)
    : range(shown.flatMap((t) => t.curve), 0);
  const end = (t) => [t.curve.length, t.curve.at(-1)];
  const about = (t) => `<b>${name(t)}</b><br>${safe(t.state.replaceAll("_", " "))} after ${t.epochs} epochs, best ${figure(t.value)}${t.reason ? "<br>" + safe(t.reason) : ""}`;
  return { chart: {
    grid: { left: 48, right: 18, top: 22 + 16 * legendRows(), bottom: 40 },
    legend: { show: families.length > 1, selectedMode: false, top: 0, left: 40, icon: "roundRect", itemWidth: 14, itemHeight: 4, textStyle: { color: colours.soft } },
    tooltip: tooltip(colours, (p) => (p.data?.trial ? about(p.data.trial) : "")),
    xAxis: axis(colours, { type: control("log-epochs").checked ? "log" : "value", logBase: 3, name: "epochs", nameLocation: "middle", nameGap: 24, min: 1, max: facts.epochs, minInterval: 1, axisLabel: { formatter: (v) => String(Math.round(v)) } }),
    yAxis: metricAxis(colours, seen),
    series: [
      {
        type: "lines", coordinateSystem: "cartesian2d", polyline: true, clip: true, progressive: 0, z: 2,
        data: ordered.filter((t) => t.curve.length > 1).map((t) => ({ trial: t, coords: t.curve.flatMap((a, e) => (a == null ? [] : [[e + 1, a]])), lineStyle: { color: colourOf(colours, t.family) } })),
        lineStyle: { width: 1.2, opacity }, emphasis: { lineStyle: { width: 3, opacity: 1 } },
      },
      ...families.map((family, index) => ({
        name: family, type: "scatter", clip: true, z: 3, symbolSize: 6,
        data: ordered.filter((t) => t.family === family).map((t) => ({ trial: t, value: end(t), symbol: SYMBOLS[t.state] ?? "none" })),
        itemStyle: { color: colourOf(colours, family), opacity: Math.min(1, 2 * opacity) },
        ...(index === 0 && { markLine: { silent: true, symbol: "none", lineStyle: { color: colours.soft, type: [2, 4], width: 1 }, label: { color: colours.soft, formatter: (p) => p.value, fontSize: 11 }, data: facts.rungs.map((rung) => ({ xAxis: rung })) } }),
      })),
    ],
  } };
});
on("log-epochs", curves);
on("zoom", curves);
curves?.made.on("click", (p) => { if (p.data?.trial) showTrial(p.data.trial); });

const soFar = facts.best_so_far.map((point) => point[2]);
chart("chart-best", (colours) => ({ chart: {
  grid: { left: 48, right: 18, top: 12, bottom: 40 },
  tooltip: tooltip(colours, (p) => `after ${p[0].data[0]} epochs<br><b>${figure(p[0].data[1])}</b>`, { trigger: "axis" }),
  xAxis: axis(colours, { type: "value", name: "epochs trained by all trials", nameLocation: "middle", nameGap: 24, max: "dataMax", axisLabel: { formatter: thousands } }),
  yAxis: metricAxis(colours, range(soFar, 0.3)),
  // One point makes no line.
  series: [{ type: "line", step: "end", showSymbol: facts.best_so_far.length === 1, clip: true, data: facts.best_so_far.map(([epochs, , best]) => [epochs, best]), lineStyle: { width: 2 } }],
} }));

// Parallel coordinates

const MOST_AXES = 9;
const ABSENT = "n/a";
const SHARES = [1, 0.5, 0.25, 0.1];
const rank = new Map((facts.importance["all trials"] ?? []).map(([parameter], index) => [parameter, index]));

function fillSelect(id, labelId, names) {
  control(id).replaceChildren(...names.map((text) => new Option(text, text)));
  control(labelId).hidden = names.length < 2;
}
if (control("chart-parallel")) {
  // Of few trials, all can be told apart.
  control("share").defaultValue = trials.length > 40 ? 2 : 0;
  fillSelect("family", "family-label", families.length > 1 ? ["all", ...families] : families);
}

// Where a line meets the axis of a parameter that its trial has not: below all values.
function absent(p) {
  if (p.values) return ABSENT;
  return p.log ? p.low * (p.low / p.high) ** 0.1 : p.low - 0.1 * (p.high - p.low);
}

const parallel = chart("chart-parallel", (colours, width) => {
  const family = control("family").value, share = SHARES[control("share").value];
  const scored = trials.filter((t) => t.value != null && (family === "all" || t.family === family));
  const kept = scored.slice(0, Math.max(1, Math.ceil(share * scored.length)));
  const fits = facts.parameters.map((p, index) => ({ ...p, index }))
    .filter((p) => (family === "all" ? p.family === null : p.family === null || p.family === family))
    .filter((p) => scored.some((t) => t.values[p.index] != null));
  const ranked = [...fits].sort((p, q) => (rank.get(p.name) ?? 99) - (rank.get(q.name) ?? 99));
  const isNarrow = width < 620;
  const axes = ranked.slice(0, MOST_AXES);
  const lacks = (p) => kept.some((t) => t.values[p.index] == null);
  control("share-text").textContent = `${Math.round(100 * share)} %: ${kept.length} of ${scored.length} trials`;
  control("parallel-note").textContent = (fits.length > axes.length
    ? `The ${rank.size ? axes.length + " most important" : "first " + axes.length} of ${fits.length} parameters; the leaderboard has all. ` : "")
    + (axes.some(lacks) ? "A line meets n/a on the axis of a parameter that its trial does not have. " : "");
  const values = kept.map((t) => t.value), low = Math.min(...values), high = Math.max(...values);
  const dims = axes.map((p, dim) => ({
    dim, name: p.short, nameTextStyle: { fontSize: 11.5, color: colours.ink, width: isNarrow ? 100 : 90, overflow: "truncate" }, nameLocation: isNarrow ? "start" : "end",
    ...(p.values
      ? { type: "category", data: lacks(p) ? [ABSENT, ...p.values] : p.values }
      : { type: p.log ? "log" : "value", min: lacks(p) ? absent(p) : p.low, max: p.high, minInterval: p.whole ? 1 : 0 }),
    axisLabel: { formatter: (v) => (p.values || v >= p.low ? short(v) : Math.abs(v - absent(p)) < 0.001 * (p.low - absent(p)) ? ABSENT : "") },
  }));
  dims.push({ dim: axes.length, name: facts.metric.name, type: "value", scale: true, min: high > low ? low : low - 0.01, max: high, nameLocation: isNarrow ? "start" : "end", nameTextStyle: { fontSize: 11.5, fontWeight: 600, color: colours.ink }, axisLabel: { formatter: (v) => (facts.metric.is_share ? (100 * v).toFixed(high - low < 0.02 ? 2 : 1) : short(v)) } });
  return { height: isNarrow ? 60 * dims.length + 80 : 440, chart: {
    tooltip: tooltip(colours, (p) => {
      const t = kept.toReversed()[p.dataIndex];
      return `<b>${name(t)}</b><br>${axes.map((a) => `${safe(a.short)} ${safe(short(t.values[a.index] ?? "–"))}`).join("<br>")}<br>${facts.metric.name} ${figure(t.value)}`;
    }),
    visualMap: { show: false, dimension: axes.length, min: low, max: high, inRange: { color: facts.metric.is_share ? colours.ramp : colours.ramp.toReversed() } },
    parallel: {
      layout: isNarrow ? "vertical" : "horizontal", left: isNarrow ? 118 : 46, right: isNarrow ? 24 : 60, top: isNarrow ? 24 : 44, bottom: isNarrow ? 40 : 30,
      parallelAxisDefault: { nameGap: 14, axisLine: { lineStyle: { color: colours.soft } }, axisTick: { lineStyle: { color: colours.rule } }, areaSelectStyle: { color: colours.series[0], borderColor: colours.series[0], opacity: 0.25 } },
    },
    parallelAxis: dims.map((d) => ({ ...d, axisLabel: { color: colours.soft, fontSize: 10.5, textBorderColor: colours.paper, textBorderWidth: 3, ...d.axisLabel } })),
    series: [{
      type: "parallel", progressive: 0, inactiveOpacity: 0.03, activeOpacity: 0.9, smooth: 0,
      lineStyle: { width: 1.3, opacity: Math.max(0.25, Math.min(0.8, 10 / Math.sqrt(kept.length * 6))) },
      emphasis: { lineStyle: { width: 3, opacity: 1 } },
      data: kept.toReversed().map((t) => [...axes.map((a) => t.values[a.index] ?? absent(a)), t.value]),
    }],
  } };
});
on("share", parallel);
on("family", parallel);

// Importance

const groups = Object.keys(facts.importance);
if (groups.length) {
  fillSelect("group", "group-label", groups);
  const shortOf = Object.fromEntries(facts.parameters.map((p) => [p.name, p.short]));
  on("group", chart("chart-importance", (colours, width) => bars(
    colours, width,
    facts.importance[control("group").value].slice(0, 20).map(([parameter, value]) => ({ name: shortOf[parameter], value, parameter })),
    (value) => percent(value, value < 0.1 ? 1 : 0),
    (row) => `${safe(row.parameter)}<br><b>${percent(row.value, 1)}</b>`,
  )));
}

chart("chart-tentative", (colours, width) => ranges(
  colours, width,
  facts.tentative.map(([parameter, value, low, high]) => ({ name: facts.parameters.find((p) => p.name === parameter).short, parameter, value, low, high })),
  axis(colours, { type: "value", min: 0, max: 1, splitLine: true, axisLabel: { formatter: (v) => percent(v, 0) } }),
  (row) => `${safe(row.parameter)}<br><b>${percent(row.value, 0)}</b>, ${percent(row.low, 0)} to ${percent(row.high, 0)}`,
));

// Slices

{
  // In a page that a browser saved, they are there already, blank.
  control("slices")?.replaceChildren();
  const scored = trials.filter((t) => t.value != null);
  const seen = range(scored.map((t) => t.value), 0.1);
  const byRank = facts.parameters.map((p, index) => ({ ...p, index })).sort((p, q) => (rank.get(p.name) ?? 99) - (rank.get(q.name) ?? 99));
  // Chance that stays the same at each drawing.
  const jitter = (number) => ((number * 0.6180339887) % 1) - 0.5;
  for (const parameter of byRank) {
    const having = scored.filter((t) => t.values[parameter.index] != null);
    if (!having.length) continue;
    // A weak family is drawn, too: at least its better half.
    const within = union(seen, range(having.map((t) => t.value), 0.5));
    const element = document.createElement("div");
    element.className = "chart";
    element.setAttribute("role", "img");
    element.setAttribute("aria-label", `${parameter.name} against ${facts.metric.name}`);
    control("slices").append(element);
    const place = (t) => (parameter.values ? parameter.values.indexOf(t.values[parameter.index]) + 0.5 * jitter(t.number) : t.values[parameter.index]);
    const isFew = parameter.values;
    const slice = chart(element, (colours, width) => {
      const isCrowded = isFew && 7 * Math.max(...isFew.map((v) => v.length)) > (width - 52) / isFew.length;
      return { chart: {
        title: { text: parameter.short, left: 0, top: 0, textStyle: { fontSize: 12.5, fontWeight: 500, color: colours.ink } },
        grid: { left: 38, right: 14, top: 28, bottom: isCrowded ? 52 : 24 },
        tooltip: tooltip(colours, (p) => `<b>${name(having[p.dataIndex])}</b><br>${safe(parameter.name)} ${safe(short(having[p.dataIndex].values[parameter.index]))}<br>${figure(having[p.dataIndex].value)}`),
        xAxis: isFew
          ? axis(colours, { type: "value", min: -0.5, max: isFew.length - 0.5, interval: 0.5, axisLabel: { formatter: (v) => (Number.isInteger(v) ? isFew[v] ?? "" : ""), fontSize: 11, ...(isCrowded && { rotate: 35, interval: 0 }) } })
          : axis(colours, { type: parameter.log ? "log" : "value", min: parameter.low, max: parameter.high, minInterval: parameter.whole ? 1 : 0, axisLabel: { formatter: short, fontSize: 11 } }),
        yAxis: metricAxis(colours, within, ""),
        series: [{ type: "scatter", clip: true, symbolSize: having.length > 200 ? 4 : 6, data: having.map((t) => ({ value: [place(t), t.value], itemStyle: { color: colourOf(colours, t.family) } })), itemStyle: { opacity: having.length > 200 ? 0.45 : 0.75 } }],
      } };
    });
    slice.made.on("click", (p) => showTrial(having[p.dataIndex]));
  }
}

// Time

for (const [by, rows] of Object.entries(facts.spending)) {
  const [key, unit] = rows.some((r) => r.gpu_hours) ? ["gpu_hours", "GPU-hours"] : ["hours", "hours"];
  const total = rows.reduce((sum, r) => sum + r[key], 0) || 1;
  chart(`chart-spent-${by}`, (colours, width) => bars(
    colours, width,
    rows.map((r) => ({ name: r.name.replaceAll("_", " "), value: r[key], colour: by === "family" ? colourOf(colours, r.name) : null })),
    (value) => percent(value / total, 0),
    (row) => `${safe(row.name)}<br><b>${short(row.value)} ${unit}</b>`,
  ));
}
