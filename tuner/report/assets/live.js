"use strict";
// A served page asks for a newer one while the search runs, and comes back to where its reader was.

{
  const SECONDS = 3, KEPT = "cifar-tune";
  const status = document.getElementById("live-status"), refresh = document.getElementById("refresh");
  const all = (selector) => [...document.querySelectorAll(selector)];
  const controls = () => all(".controls :is(input, select)").filter((element) => element.id);
  const more = document.getElementById("more");
  const sorted = () => document.querySelector("#trials th[aria-sort]");
  // The defaults of the others may change with the run.
  const isChanged = (e) => (e.type === "checkbox" ? e.checked !== e.defaultChecked : e.options ? e.selectedIndex > 0 : e.value !== e.defaultValue);

  function keep() {
    const heading = sorted();
    sessionStorage.setItem(KEPT, JSON.stringify({
      page: facts.live.run, scroll: [scrollX, scrollY], sideways: all(".scroll").map((e) => e.scrollLeft),
      open: all("details").map((e) => e.open), focus: document.activeElement?.id ?? "",
      controls: controls().filter(isChanged).map((e) => [e.id, e.type === "checkbox" ? e.checked : e.value]),
      sort: heading && [heading.textContent, heading.getAttribute("aria-sort")],
      isWhole: more.textContent.startsWith("Show the first"),
    }));
  }

  function restore(kept) {
    for (const [id, value] of kept.controls) {
      const element = document.getElementById(id);
      if (!element) continue;
      if (element.type === "checkbox") element.checked = value; else element.value = value;
      // A choice that is gone leaves nothing chosen.
      if (element.value === "" && element.options) element.selectedIndex = 0;
      for (const event of ["input", "change"]) element.dispatchEvent(new Event(event));
    }
    if (kept.sort) {
      const [title, direction] = kept.sort;
      for (let click = 0; click < 2; click++) {
        if (click && sorted()?.getAttribute("aria-sort") === direction) break;
        all("#trials thead button").find((button) => button.textContent === title)?.click();
      }
      document.activeElement.blur();
    }
    if (kept.isWhole) more.click();
    all("details").forEach((element, index) => { element.open = kept.open[index] ?? element.open; });
    all(".scroll").forEach((element, index) => { element.scrollLeft = kept.sideways[index] ?? 0; });
    if (kept.focus) document.getElementById(kept.focus)?.focus({ preventScroll: true });
    scrollTo(...kept.scroll);
  }

  history.scrollRestoration = "manual";
  const kept = JSON.parse(sessionStorage.getItem(KEPT));
  addEventListener("pagehide", keep);
  if (kept && kept.page === facts.live.run) restore(kept);

  // A reload would clear the selection.
  const isSelected = () => parallel?.made.getModel().getSeries()[0].getRawIndicesByActiveState("inactive").length > 0;
  // Not under the reader's hands.
  let held = false;
  addEventListener("pointerdown", () => { held = true; });
  for (const event of ["pointerup", "pointercancel"]) addEventListener(event, () => { held = false; });
  const isBusy = () => held || document.hidden || !refresh.checked || trialDialog.open || isSelected() || String(getSelection());

  async function look() {
    if (refresh.checked && isSelected()) status.textContent = "Paused while trials are selected in parallel coordinates.";
    else if (!isBusy()) {
      try {
        const answer = await fetch("/", { method: "HEAD", cache: "no-store", headers: { "If-None-Match": `"${facts.live.version}"` } });
        if (answer.ok && !isBusy()) {
          location.reload();
          return;
        }
        status.textContent = answer.status === 304 || answer.ok ? "" : "The run cannot be read; reload to see why.";
      } catch {
        status.textContent = "No answer: the server has ended.";
      }
    }
    setTimeout(look, 1000 * SECONDS);
  }
  if (facts.live.is_running) setTimeout(look, 1000 * SECONDS);
}
