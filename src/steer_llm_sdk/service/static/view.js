"use strict";
document.documentElement.classList.add("scripts");
// The key of a service that asks for one is kept for this tab only, and goes along with each request of the page.
const KEPT = "steer-key";
const key = () => sessionStorage.getItem(KEPT);
document.addEventListener("htmx:configRequest", (event) => {
  if (key()) event.detail.headers["Authorization"] = "Bearer " + key();
  else if (login().hasAttribute("data-needed")) { event.preventDefault(); ask(); }
});
document.addEventListener("htmx:responseError", (event) => {
  const status = event.detail.xhr.status;
  if (status === 401) { sessionStorage.removeItem(KEPT); ask(); say("The service does not take this key."); return; }
  loaded();
  say("The service answered " + status + ".");
});
document.addEventListener("htmx:sendError", () => say("The service does not answer. This page tries again."));
document.addEventListener("htmx:afterSwap", () => { say(""); plots(); });
const login = () => document.getElementById("login");
function ask() { loaded(); login().hidden = false; }
function loaded() { for (const note of document.querySelectorAll(".loading")) note.remove(); }
function say(text) { const place = document.getElementById("trouble"); place.textContent = text; place.hidden = !text; }
document.addEventListener("submit", (event) => {
  if (event.target.id !== "login") return;
  event.preventDefault();
  sessionStorage.setItem(KEPT, document.getElementById("key").value.trim());
  location.reload();
});
const drawn = new Map();
const SPAN = 2;  // seconds
function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }
function plots() {
  for (const place of document.querySelectorAll("[data-plot]")) {
    const { title, unit, times, values } = JSON.parse(place.dataset.plot);
    place.textContent = "";
    place.classList.toggle("empty", times.length < 2);
    if (times.length < 2) { place.textContent = title + ": nothing to draw yet."; continue; }
    const axis = { stroke: colour("--mute"), grid: { stroke: colour("--line"), width: 1 }, labelSize: 20, labelFont: "13px system-ui, sans-serif" };
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", title + " in " + unit + ", by time: last " + values.at(-1).toPrecision(3));
    drawn.set(place, new uPlot({
      title: title + " (" + unit + ")", width: Math.max(280, place.clientWidth), height: 210, legend: { show: false },
      // Attempts of one moment would have an axis without a single time on it.
      scales: { x: { range: (_, least, most) => most - least < SPAN ? [most - SPAN, most] : [least, most] }, y: unit === "%" ? { range: [0, 100] } : {} },
      series: [{}, { stroke: colour("--act"), width: 2, points: { show: true, size: 5 } }],
      axes: [
        { ...axis, label: "time", size: 30, space: 80, incrs: [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400], values: (_, ticks) => ticks.map((at) => new Date(at * 1000).toLocaleTimeString("en-GB")) },
        { ...axis, size: 50, label: unit },
      ],
    }, [times, values], place));
  }
}
addEventListener("resize", () => { for (const [place, plot] of drawn) plot.setSize({ width: Math.max(280, place.clientWidth), height: 210 }); });
addEventListener("DOMContentLoaded", plots);
