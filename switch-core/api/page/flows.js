// The table of connections, filtered by the node.

import { get } from "./api.js";
import { byId, el, replace, short } from "./dom.js";

const LIMIT = 200;
const PROTOCOLS = { 1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP" };
let before = new Map();
let asked = 0;

export function start(update) {
  const form = byId("flows-form");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    update();
  });
  form.addEventListener("reset", () => setTimeout(update));
}

const at = (address, port) => (address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`);
const named = (pod, address, port) => (pod ? `${pod} ${at(address, port)}` : at(address, port));

export async function refresh() {
  const note = byId("flows-note");
  let answer;
  try {
    answer = await get("/v1/flows", { ...Object.fromEntries(new FormData(byId("flows-form"))), limit: LIMIT });
  } catch (error) {
    note.textContent = error.message;
    note.className = "error";
    return;
  }
  const now = performance.now();
  const sums = new Map();
  const rows = answer.flows.map((flow) => {
    const key = [flow.protocol, flow.src, flow.sport, flow.dst, flow.dport].join(" ");
    const sum = flow.bytes + flow.reply_bytes;
    sums.set(key, sum);
    const rate = before.has(key) ? (Math.max(0, sum - before.get(key)) * 1000) / (now - asked) : 0;
    const isPod = flow.backend === null;
    return el("tr", {},
      el("td", {}, PROTOCOLS[flow.protocol] ?? String(flow.protocol)),
      el("td", {}, named(flow.src_pod, flow.src, flow.sport)),
      el("td", {}, named(isPod ? flow.dst_pod : null, flow.dst, flow.dport)),
      el("td", {}, (flow.service ?? "").replace(/^Service\//, "")),
      el("td", {}, isPod ? "" : `${flow.dst_pod ?? ""} ${flow.backend}`.trim()),
      el("td", {}, flow.state ?? ""),
      el("td", { class: "number" }, `${short(flow.packets)} / ${short(flow.reply_packets)}`),
      el("td", { class: "number" }, short(flow.bytes)),
      el("td", { class: "number" }, short(flow.reply_bytes)),
      el("td", { class: "number" }, short(rate)));
  });
  [before, asked] = [sums, now];
  note.className = "";
  note.textContent = answer.total > LIMIT ? `${LIMIT} of ${answer.total} connections, those with most bytes` : `${answer.total} connections`;
  replace(byId("flows").tBodies[0], ...rows);
}
