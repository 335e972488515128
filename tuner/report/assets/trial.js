"use strict";
// A trial by itself: its values, its curve, and why it ended.

const trialDialog = document.getElementById("trial");
let shownTrial = null, trialChart = null;
// In a page that a browser saved with a trial in sight, it is open already, and blank.
trialDialog.close();

function showTrial(trial) {
  shownTrial = trial;
  const fill = (id, text) => { document.getElementById(id).textContent = text; };
  fill("trial-name", `Trial ${trial.number} · ${trial.family}`);
  const epochs = `${trial.epochs} of ${trial.max_epochs} epochs`;
  const best = trial.accuracy == null ? "no accuracy" : `best ${percent(trial.accuracy)}, epoch ${trial.best_epoch}`;
  fill("trial-state", `${trial.state.replaceAll("_", " ")} after ${epochs} · ${best}${trial.reason ? ` · ${trial.reason}` : ""}`);
  document.getElementById("trial-values").replaceChildren(...facts.parameters
    .map((parameter, index) => [parameter.name, trial.values[index]])
    .filter(([, value]) => value != null)
    .map(([parameter, value]) => {
      const line = document.createElement("tr"), head = document.createElement("th");
      head.textContent = parameter;
      head.scope = "row";
      line.append(head);
      line.insertCell().textContent = value;
      return line;
    }));
  document.getElementById("chart-trial").hidden = trial.curve.length === 0;
  trialDialog.showModal();
  if (trial.curve.length === 0) return;
  // Made when it is first seen: before, it has no size.
  if (trialChart) { trialChart.draw(); return; }
  document.getElementById("chart-trial").className = "chart";
  trialChart = chart("chart-trial", drawTrial);
}

function drawTrial(colours) {
  return { chart: {
    grid: { left: 48, right: 18, top: 12, bottom: 40 },
    tooltip: tooltip(colours, (p) => `epoch ${p[0].data[0]}<br><b>${figure(p[0].data[1])}</b>`, { trigger: "axis" }),
    xAxis: axis(colours, { type: "value", name: "epochs", nameLocation: "middle", nameGap: 24, min: 1, max: Math.max(2, shownTrial.max_epochs), minInterval: 1 }),
    yAxis: metricAxis(colours, range(shownTrial.curve, 0)),
    series: [{ type: "line", symbolSize: 5, data: shownTrial.curve.map((value, epoch) => [epoch + 1, value]), lineStyle: { width: 2 } }],
  } };
}

document.getElementById("trial-close").onclick = () => trialDialog.close();
// Beside the panel, on what is dimmed.
trialDialog.onclick = (event) => { if (event.target === trialDialog) trialDialog.close(); };
