"use strict";
// The key of a service that asks for one is kept for this tab only, and goes along with each request of the page.
const KEPT = "steer-key";
const key = () => sessionStorage.getItem(KEPT);
document.addEventListener("htmx:configRequest", (event) => {
  if (key()) event.detail.headers["Authorization"] = "Bearer " + key();
});
document.addEventListener("htmx:responseError", (event) => {
  const status = event.detail.xhr.status;
  if (status === 401) { document.getElementById("login").hidden = false; return; }
  say(status === 404 ? "It is not there (any more)." : "The service answered " + status + ".");
});
document.addEventListener("htmx:sendError", () => say("The service does not answer. This page tries again."));
document.addEventListener("htmx:afterSwap", () => { say(""); plots(); });
function say(text) { const place = document.getElementById("trouble"); place.textContent = text; place.hidden = !text; }
document.addEventListener("submit", (event) => {
  if (event.target.id !== "login") return;
  event.preventDefault();
  sessionStorage.setItem(KEPT, document.getElementById("key").value.trim());
  location.reload();
});
const drawn = new Map();
function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }
function plots() {
  for (const place of document.querySelectorAll("[data-plot]")) {
    const { title, unit, times, values } = JSON.parse(place.dataset.plot);
    place.textContent = "";
    place.classList.toggle("empty", times.length < 2);
    if (times.length < 2) { place.textContent = title + ": nothing to draw yet."; continue; }
    const axis = { stroke: colour("--mute"), grid: { stroke: colour("--line"), width: 1 } };
    drawn.set(place, new uPlot({
      title, width: Math.max(280, place.clientWidth), height: 190,
      series: [{}, { label: unit, stroke: colour("--act"), width: 2, points: { show: true, size: 5 } }],
      axes: [axis, { ...axis, size: 60 }],
    }, [times, values], place));
  }
}
addEventListener("resize", () => { for (const [place, plot] of drawn) plot.setSize({ width: Math.max(280, place.clientWidth), height: 190 }); });
addEventListener("DOMContentLoaded", plots);
