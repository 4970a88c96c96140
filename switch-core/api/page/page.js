// Queries the node every two seconds while the page is visible, and shows the answers.

import { get } from "./api.js";
import { byId, el, short } from "./dom.js";
import * as flows from "./flows.js";
import * as map from "./map.js";
import * as trace from "./trace.js";

const INTERVAL = 2000;
let isPaused = false;
let before;
let askedAt = 0;

function facts(status) {
  const busy = Math.max(0, ...status.workers.map((worker) => worker.busy_percent));
  const shown = {
    node: status.node, epoch: status.epoch, pods: status.pods,
    connections: `${short(status.connections)} of ${short(status.connection_limit)}`,
    dropped: short(status.dropped), "busiest worker": `${busy.toFixed(0)} %`, version: status.version,
  };
  if (status.left_out.length) shown["objects left out"] = status.left_out.length;
  byId("facts").replaceChildren(...Object.entries(shown).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, String(value)))));
  document.title = `podswitch ${status.node}`;
}

function state(text, isError = false) {
  const place = byId("state");
  if (place.textContent !== text) place.textContent = text;
  place.className = isError ? "error" : "";
}

async function update() {
  try {
    const [status, picture] = await Promise.all([get("/v1/status"), get("/v1/map")]);
    const now = performance.now();
    facts(status);
    map.show(picture, before, (now - askedAt) / 1000);
    [before, askedAt] = [picture, now];
    await flows.refresh();
    state(isPaused ? "paused" : "live");
  } catch (error) {
    state(error.message, true);
  }
}

async function turn() {
  if (!isPaused && document.visibilityState === "visible") await update();
  setTimeout(turn, INTERVAL);
}

byId("pause").addEventListener("click", (event) => {
  isPaused = !isPaused;
  event.target.setAttribute("aria-pressed", String(isPaused));
  event.target.textContent = isPaused ? "Go on" : "Pause";
  state(isPaused ? "paused" : "live");
});
map.start(trace.about);
flows.start(() => flows.refresh());
trace.start();
turn();
