"use strict";
// The charts of an ensemble; each is drawn where its figures are there.

{
  const ensemble = facts.ensemble ?? {};
  const share = (digits) => ({ formatter: (v) => (100 * v).toFixed(digits) + " %" });
  const when = (key, id, draw) => { if (ensemble[key]?.length) chart(id, (colours, width) => draw(ensemble[key], colours, width)); };

  when("by_size", "chart-size", (sizes, colours) => ({ chart: {
    grid: { left: 52, right: 14, top: 12, bottom: 40 },
    tooltip: tooltip(colours, (p) => { const s = sizes[p[0].dataIndex]; return `best ${s.k}: <b>${percent(s.accuracy)}</b><br>${percent(s.low)} to ${percent(s.high)}<br>gain ${(100 * s.gain).toFixed(2)} [${(100 * s.gain_low).toFixed(2)}, ${(100 * s.gain_high).toFixed(2)}]`; }, { trigger: "axis" }),
    xAxis: axis(colours, { type: "category", data: sizes.map((s) => s.k), name: "members", nameLocation: "middle", nameGap: 24 }),
    yAxis: accuracyAxis(colours, Math.min(...sizes.map((s) => s.low)), Math.max(...sizes.map((s) => s.high))),
    series: [
      { type: "line", stack: "interval", symbol: "none", data: sizes.map((s) => s.low), lineStyle: { opacity: 0 }, silent: true },
      { type: "line", stack: "interval", stackStrategy: "all", symbol: "none", data: sizes.map((s) => s.high - s.low), lineStyle: { opacity: 0 }, areaStyle: { color: colours.series[0], opacity: 0.16 }, silent: true },
      { type: "line", data: sizes.map((s) => s.accuracy), lineStyle: { width: 2, color: colours.series[0] }, itemStyle: { color: colours.series[0] }, symbol: "circle", symbolSize: 6 },
    ],
  } }));

  when("reliability", "chart-reliability", (bins, colours) => {
    const filled = bins.filter((b) => b.count), total = filled.reduce((sum, b) => sum + b.count, 0);
    return { chart: {
      grid: { left: 52, right: 14, top: 12, bottom: 40 },
      tooltip: tooltip(colours, (p) => { const b = filled[p.dataIndex]; return b && `${percent(b.low, 0)} to ${percent(b.high, 0)}: ${b.count} images<br>confidence ${percent(b.confidence, 1)}<br>accuracy <b>${percent(b.accuracy, 1)}</b>`; }),
      xAxis: axis(colours, { type: "value", min: 0, max: 1, name: "confidence", nameLocation: "middle", nameGap: 24, axisLabel: share(0) }),
      yAxis: axis(colours, { type: "value", min: 0, max: 1, splitLine: true, axisLabel: share(0) }),
      series: [
        { type: "bar", barWidth: 10, data: filled.map((b) => [(b.low + b.high) / 2, b.count / total]), itemStyle: { color: colours.rule } },
        { type: "line", silent: true, symbol: "none", data: [[0, 0], [1, 1]], lineStyle: { color: colours.soft, type: "dashed", width: 1 } },
        { type: "line", symbol: "circle", symbolSize: 7, data: filled.map((b) => [b.confidence, b.accuracy]), lineStyle: { width: 2, color: colours.series[1] }, itemStyle: { color: colours.series[1] } },
      ],
    } };
  });

  const path = (points, colours, x, label) => ({ chart: {
    grid: { left: 52, right: 18, top: 12, bottom: 40 },
    tooltip: tooltip(colours, (p) => label(points[p[0].dataIndex]), { trigger: "axis" }),
    xAxis: axis(colours, { type: "value", nameLocation: "middle", nameGap: 24, ...x }),
    yAxis: accuracyAxis(colours, Math.min(...points.map((p) => p.accuracy)), Math.max(...points.map((p) => p.accuracy))),
    series: [{ type: "line", symbol: "circle", symbolSize: 6, data: points.map((p) => [p[x.key], p.accuracy]), lineStyle: { width: 2 } }],
  } });
  when("coverage", "chart-coverage", (points, colours) => path(points, colours, { key: "coverage", name: "share of the images", min: 0, max: 1, axisLabel: share(0) }, (p) => `${percent(p.coverage, 0)} of the images: <b>${percent(p.accuracy)}</b>`));
  when("frontier", "chart-frontier", (points, colours) => path([...points].sort((p, q) => p.latency_ms - q.latency_ms), colours, { key: "latency_ms", name: "ms an image", scale: true }, (p) => `trials ${p.members.join(", ")}<br>${short(p.latency_ms)} ms: <b>${percent(p.accuracy)}</b>`));

  when("confusion", "chart-confusion", (rows, colours, width) => {
    const classes = ensemble.classes, sums = rows.map((row) => row.reduce((a, b) => a + b, 0));
    const isFew = classes.length <= 20 && width / classes.length > 26;
    const longest = Math.max(...classes.map((c) => c.length)), isLong = longest > 3;
    const left = Math.min(120, 26 + 7 * longest);
    return { height: Math.min(640, Math.max(320, width - left)) + 60, chart: {
      grid: { left, right: 14, top: 8, bottom: isLong ? 76 : 44 },
      tooltip: tooltip(colours, (p) => `is ${safe(classes[p.value[1]])}, taken for ${safe(classes[p.value[0]])}<br><b>${p.value[3]}</b> images, ${percent(p.value[2] ** 2, 1)} of the class`),
      xAxis: axis(colours, { type: "category", data: classes, name: "predicted", nameLocation: "middle", nameGap: isLong ? 56 : 26, axisLabel: { rotate: isLong ? 45 : 0, overflow: "truncate", width: 80, ...(classes.length <= 20 && { interval: 0 }) } }),
      yAxis: axis(colours, { type: "category", data: classes, inverse: true, axisLabel: { overflow: "truncate", width: left - 12, ...(classes.length <= 20 && { interval: 0 }) } }),
      // Shaded by the square root of the share, so that rare confusions are seen.
      visualMap: { show: false, min: 0, max: 1, dimension: 2, inRange: { color: colours.heat } },
      series: [{
        type: "heatmap", progressive: 0, itemStyle: { borderWidth: isFew ? 1 : 0, borderColor: colours.paper },
        data: rows.flatMap((row, y) => row.map((count, x) => ({ value: [x, y, sums[y] ? Math.sqrt(count / sums[y]) : 0, count], label: { color: sums[y] && count / sums[y] > 0.2 ? "#fff" : colours.ink } }))),
        label: { show: isFew, fontSize: 11, formatter: (p) => p.value[3] || "" },
      }],
    } };
  });

  when("per_class", "chart-classes", (given, colours, width) => ranges(
    colours, width,
    [...given].sort((a, b) => b.accuracy - a.accuracy).map((r) => ({ ...r, name: r.class, value: r.accuracy })),
    accuracyAxis(colours, Math.min(...given.map((r) => r.low)), Math.max(...given.map((r) => r.high))),
    (row) => `${safe(row.name)}: <b>${percent(row.value)}</b> of ${row.count} images<br>${percent(row.low)} to ${percent(row.high)}`,
  ));
}
