"use strict";
// The best-so-far curves of several runs.

if (document.getElementById("chart-compare")) {
  const over = document.getElementById("over");
  // A run that held no GPU has no place on an axis of GPU-hours.
  const onGpus = facts.runs.filter((run) => run.gpu_hours), overHours = onGpus.length ? onGpus : facts.runs;
  const entry = chart("chart-compare", (colours) => {
    const x = Number(over.value), runs = x ? overHours : facts.runs;
    const bests = facts.runs.flatMap((run) => run.best_so_far.map((point) => point[2]));
    // The line of a weak run is drawn, too: at least its end.
    const ends = facts.runs.map((run) => run.best_so_far.at(-1)?.[2]);
    return { chart: {
      grid: { left: 52, right: 18, top: 34, bottom: 40 },
      legend: { top: 0, left: 40, icon: "roundRect", itemWidth: 14, itemHeight: 4, textStyle: { color: colours.soft } },
      tooltip: tooltip(colours, (p) => `${safe(p.seriesName)}<br>after ${short(p.data[0])} ${x ? "hours" : "epochs"}<br><b>${figure(p.data[1])}</b>`),
      xAxis: axis(colours, { type: "value", name: over.selectedOptions[0].text, nameLocation: "middle", nameGap: 24, axisLabel: { formatter: thousands } }),
      yAxis: metricAxis(colours, union(range(bests, 0.3), range(ends, 0))),
      series: runs.map((run) => ({ name: run.run, type: "line", color: colours.series[facts.runs.indexOf(run) % colours.series.length], step: "end", clip: true, symbolSize: 5, symbol: "circle", data: run.best_so_far.map((point) => [point[x], point[2]]), lineStyle: { width: 2 } })),
    } };
  });
  over.oninput = () => entry.draw();
}
