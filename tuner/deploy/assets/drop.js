"use strict";

const MOST_BARS = 5;
const zone = document.getElementById("zone");
const answers = document.getElementById("answers");
const template = document.getElementById("answer");
const members = Number(document.querySelector("main").dataset.members);
let last = Promise.resolve();

function percent(share) {
  return `${(100 * share).toFixed(1)}\u00a0%`;
}

// One after another: dropping a hundred files must not fill the server's queue.
function look(files) {
  for (const file of files) {
    const card = addCard(file);
    last = last.then(() => ask(file, card));
  }
}

function addCard(file) {
  const card = template.content.firstElementChild.cloneNode(true);
  card.querySelector(".file").textContent = file.name;
  const image = card.querySelector("img");
  image.addEventListener("load", () => URL.revokeObjectURL(image.src));
  // Browsers do not show every kind of image that the server reads.
  image.addEventListener("error", () => {
    URL.revokeObjectURL(image.src);
    image.parentElement.classList.add("blank");
    image.remove();
  });
  image.src = URL.createObjectURL(file);
  answers.prepend(card);
  return card;
}

async function ask(file, card) {
  try {
    const type = file.type || "application/octet-stream";
    const response = await fetch("predict", { method: "POST", headers: { "Content-Type": type }, body: file });
    const isJson = (response.headers.get("Content-Type") ?? "").startsWith("application/json");
    const answer = isJson ? await response.json() : { error: `the server answers ${response.status}` };
    if (response.ok) show(answer.predictions[0], card);
    else fail(answer.error, card);
  } catch {
    fail("The server does not answer.", card);
  }
  card.removeAttribute("aria-busy");
}

function fail(reason, card) {
  card.classList.add("failed");
  card.querySelector(".label").textContent = reason.replace(/^image: /, "");
}

function show(prediction, card) {
  card.querySelector(".label").textContent = prediction.class;
  card.querySelector(".mark").hidden = !prediction.rejected;
  const best = Object.entries(prediction.probabilities).sort((a, b) => b[1] - a[1]);
  const bars = card.querySelector(".bars");
  for (const [name, probability] of best.slice(0, MOST_BARS)) {
    const row = document.createElement("li");
    const [label, bar, value] = ["span", "span", "span"].map((tag) => document.createElement(tag));
    label.className = "name";
    label.textContent = label.title = name;
    bar.className = "bar";
    bar.appendChild(document.createElement("i")).style.width = `${100 * probability}%`;
    value.className = "value";
    value.textContent = percent(probability);
    row.append(label, bar, value);
    bars.append(row);
  }
  const agreeing = Math.round(members * (1 - prediction.disagreement));
  if (members > 1) {
    card.querySelector(".agree").textContent = `${agreeing} of ${members} networks agree (disagreement ${percent(prediction.disagreement)})`;
  }
}

document.getElementById("files").addEventListener("change", (event) => {
  look(event.target.files);
  event.target.value = "";
});

// Anywhere on the page, or a near miss would have the browser open the file instead.
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    zone.classList.toggle("over", name === "dragover");
    if (name === "drop") look(event.dataTransfer.files);
  });
}
