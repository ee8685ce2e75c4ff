// Small improvements; every page works without them.
"use strict";

// Airflow's own theme, where the page is shown inside Airflow: it stores the reader's choice under this name.
try {
  const chosen = window.localStorage.getItem("theme");
  const root = window.parent === window ? null : window.parent.document.documentElement;
  const shown = root && (root.classList.contains("dark") ? "dark" : root.classList.contains("light") ? "light" : null);
  if (window.parent !== window && (shown || chosen === "dark" || chosen === "light")) {
    document.documentElement.dataset.theme = shown || chosen;
  }
  if (root) {
    new MutationObserver(() => {
      document.documentElement.dataset.theme = root.classList.contains("dark") ? "dark" : "light";
    }).observe(root, { attributes: true, attributeFilter: ["class"] });
  }
} catch {
  // another site's frame, or no storage: the system's preference decides
}

document.addEventListener("DOMContentLoaded", () => {
  // a choice applies at once; without scripts there is a button
  for (const field of document.querySelectorAll(".filters select")) {
    field.addEventListener("change", () => field.form.requestSubmit());
  }
  for (const button of document.querySelectorAll(".filters button")) button.hidden = true;

  // typing narrows the list that is shown; Enter asks the server
  const search = document.querySelector(".filters input[type=search]");
  if (search) {
    const rows = [...document.querySelectorAll(".models tbody tr")];
    search.addEventListener("input", () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of rows) {
        const text = row.querySelector("th").textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
    });
  }

  // a drag over the calendar, or a click on a square that has no page, fills in the range of the form below
  const calendar = document.querySelector("#partitions .chart-calendar");
  const [first, last] = ["run-start", "run-end"].map((id) => document.getElementById(id));
  if (calendar && first && last) {
    const squares = [...calendar.querySelectorAll("[data-key]")];
    const keyAt = (event) => event.target.closest("[data-key]")?.dataset.key;
    let from = null;
    let isRange = false;
    const show = () => {
      const end = last.value || first.value;
      for (const square of squares) {
        square.classList.toggle("cal-chosen", first.value <= square.dataset.key && square.dataset.key <= end);
      }
    };
    const choose = (a, b) => {
      [first.value, last.value] = a <= b ? [a, b] : [b, a];
      show();
    };
    calendar.addEventListener("pointerdown", (event) => {
      [from, isRange] = [keyAt(event), false];
    });
    calendar.addEventListener("pointerover", (event) => {
      const key = keyAt(event);
      if (!from || !key || !event.buttons || (key === from && !isRange)) return;
      isRange = true;
      choose(from, key);
    });
    calendar.addEventListener("click", (event) => {
      const key = keyAt(event);
      if (isRange) event.preventDefault();
      else if (key && !event.target.closest("a")) choose(key, key);
    });
    calendar.addEventListener("dragstart", (event) => event.preventDefault());
    for (const field of [first, last]) field.addEventListener("input", show);
    document.getElementById("run-hint").hidden = false;
    show();
  }

  // a run in progress is looked at again
  const progress = document.querySelector("[data-refresh]");
  if (progress) setTimeout(() => window.location.reload(), 1000 * progress.dataset.refresh);

  // Airflow shows the console in a frame that may not leave it: its own pages are opened by Airflow's router
  for (const link of document.querySelectorAll("a[data-outside]")) {
    link.addEventListener("click", (event) => {
      if (window.parent === window || new URL(link.href).origin !== window.location.origin) return;
      try {
        window.parent.history.pushState({}, "", link.href);
        window.parent.dispatchEvent(new window.parent.PopStateEvent("popstate", { state: {} }));
        event.preventDefault();
      } catch {
        // the link itself is followed
      }
    });
  }
});
