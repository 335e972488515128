"use strict";
// The leaderboard: sorted by a heading, filtered by words, a part of it shown at first.

{
  const FEW = 25;
  // Columns before the searched parameters, and how many of these are shown at first.
  const SCORES = 4, IMPORTANT = 4;
  const table = document.getElementById("trials");
  const filter = document.getElementById("filter");
  const withParameters = document.getElementById("with-parameters");
  const more = document.getElementById("more");
  const time = (s) => (s < 60 ? s.toFixed(1) + " s" : s < 3600 ? (s / 60).toFixed(1) + " min" : (s / 3600).toFixed(2) + " h");
  const plain = [
    { title: "trial", of: (t) => t.number, number: true },
    { title: "model", of: (t) => t.family },
    { title: "state", of: (t) => t.state, show: (v) => v.replaceAll("_", " ") },
    ...(["accuracy", "nll"].includes(facts.metric.key) ? [] : [{ title: `${facts.metric.name} %`, of: (t) => t.value, number: true, show: (v) => (100 * v).toFixed(2), down: true }]),
    { title: "accuracy %", of: (t) => t.accuracy, number: true, show: (v) => (100 * v).toFixed(2), down: true },
    { title: "loss", of: (t) => t.loss, number: true, show: (v) => v.toFixed(4) },
    { title: "epochs", of: (t) => t.epochs, number: true, down: true },
    { title: "time", of: (t) => t.seconds, number: true, show: time, down: true },
    { title: "parameters", of: (t) => t.parameters, number: true, show: thousands, down: true },
  ];
  const reason = { title: "why it ended", of: (t) => t.reason, long: true };
  // The values of a choice are text here, numbers or not.
  const isNumber = (parameter) => !parameter.values || parameter.values.every((v) => v.trim() && Number.isFinite(Number(v)));
  // The most important first; where several parameters share a column, a trial has one of them.
  const searched = facts.columns.map(({ heading, parameters }) => ({
    title: heading, show: short,
    of: (t) => parameters.map((index) => t.values[index]).find((value) => value != null),
    number: parameters.every((index) => isNumber(facts.parameters[index])),
  }));
  const words = facts.trials.map((t) =>
    [`trial ${t.number}`, t.family, t.state.replaceAll("_", " "), t.reason,
      ...t.values.map((v, i) => (v == null ? "" : `${facts.parameters[i].short}=${v}`))].join(" ").toLowerCase());
  // As ranked, until a heading is clicked: those that ended badly come last.
  const RANKED = { column: null, down: false };
  let order = RANKED, all = false;

  const columns = () => [
    ...plain.slice(0, SCORES), ...(withParameters.checked ? searched : searched.slice(0, IMPORTANT)), ...plain.slice(SCORES), reason,
  ];

  function chosen() {
    const wanted = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = facts.trials.map((t, i) => i).filter((i) => wanted.every((word) => words[i].includes(word)));
    if (order === RANKED) return rows;
    const { of, number } = order.column, sign = order.down ? -1 : 1;
    return rows.sort((i, j) => {
      const a = of(facts.trials[i]), b = of(facts.trials[j]);
      // What has no value comes last, whichever way; ties keep their rank.
      if (a == null || b == null) return (a == null) - (b == null) || i - j;
      const [x, y] = number ? [Number(a), Number(b)] : [a, b];
      return x < y ? -sign : x > y ? sign : i - j;
    });
  }

  function opener(trial) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "link";
    button.textContent = trial.number;
    button.setAttribute("aria-label", `Show trial ${trial.number}`);
    return button;
  }

  function show() {
    if (!columns().includes(order.column)) order = RANKED;
    const head = document.createElement("tr");
    columns().forEach((column, index) => {
      const cell = document.createElement("th"), button = document.createElement("button");
      button.textContent = column.title;
      button.type = "button";
      button.onclick = () => {
        order = { column, down: column === order.column ? !order.down : Boolean(column.down) };
        show();
        table.tHead.rows[0].cells[index].firstChild.focus();
      };
      if (column.number) cell.className = "n";
      if (column === order.column) cell.setAttribute("aria-sort", order.down ? "descending" : "ascending");
      cell.scope = "col";
      cell.append(button);
      head.append(cell);
    });
    table.tHead.replaceChildren(head);
    const rows = chosen(), shown = all ? rows : rows.slice(0, FEW);
    table.tBodies[0].replaceChildren(...shown.map((i) => {
      const trial = facts.trials[i], line = document.createElement("tr");
      line.onclick = () => { if (!String(getSelection())) showTrial(trial); };
      for (const column of columns()) {
        const cell = line.insertCell(), value = column.of(trial);
        if (column.title === "trial") { cell.append(opener(trial)); cell.className = "n"; continue; }
        cell.textContent = value == null ? "–" : column.show && typeof value !== "boolean" ? column.show(value) : value;
        if (column.number) cell.className = "n";
        if (column.title === "state") cell.className = `state-${trial.state}`;
        if (column.long) { cell.className = "reason"; cell.title = value; }
      }
      return line;
    }));
    const count = document.getElementById("shown");
    count.textContent = rows.length === facts.trials.length ? "" : `${rows.length} of ${facts.trials.length} trials`;
    more.hidden = rows.length <= FEW;
    more.textContent = all ? `Show the first ${FEW}` : `Show all ${rows.length}`;
  }

  filter.oninput = withParameters.onchange = show;
  more.onclick = () => { all = !all; show(); };
  show();
}
