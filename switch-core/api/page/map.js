// The map, and the table with the same data.

import { byId, el, replace, short, speed, svg } from "./dom.js";
import { layout } from "./layout.js";

// The labels of more curves than this would overlap: they are in titles and in the table instead.
const MOST_LABELS = 60;
const MOST_ROWS = 500;
// A node with fewer pods is shown expanded.
const FEW = 40;

const view = { expanded: new Set(), isAll: undefined, filter: "", dropsOnly: false };
let last;
let onTrace = () => {};

export function start(trace) {
  onTrace = trace;
  byId("map-filter").addEventListener("input", (event) => change({ filter: event.target.value }));
  byId("map-drops").addEventListener("change", (event) => change({ dropsOnly: event.target.checked }));
  byId("expand").addEventListener("click", () => change({ isAll: true }));
  byId("collapse").addEventListener("click", () => change({ isAll: false, expanded: new Set() }));
}

function change(to) {
  Object.assign(view, to);
  if (last) draw();
}

// Bytes a second from two answers. When a connection ends, its bytes disappear from the sum; the rate is never below 0.
export function rates(map, before, seconds) {
  const sums = new Map((before?.edges ?? []).map((edge) => [`${edge.from} ${edge.to}`, edge.bytes + edge.reply_bytes]));
  for (const edge of map.edges) {
    const old = sums.get(`${edge.from} ${edge.to}`) ?? (before ? 0 : edge.bytes + edge.reply_bytes);
    edge.rate = Math.max(0, edge.bytes + edge.reply_bytes - old) / seconds;
  }
}

export function show(map, before, seconds) {
  rates(map, before, seconds);
  last = map;
  view.isAll ??= map.ends.length <= FEW;
  replace(byId("ends"), ...map.ends.filter((end) => end.kind !== "world").slice(0, 2000).map((end) => el("option", { value: end.id })));
  draw();
}

function draw() {
  const picture = layout(last, view);
  const root = byId("map");
  root.setAttribute("viewBox", `0 0 ${picture.width} ${picture.height}`);
  const marker = (id, colour) =>
    svg("marker", { id, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 9, markerHeight: 9, markerUnits: "userSpaceOnUse", orient: "auto" },
      svg("path", { d: "M0 0 L8 4 L0 8 z", fill: `var(--${colour})` }));
  const titles = [`this node, ${last.node}`, "Services", "other nodes, and the world"];
  replace(root,
    svg("defs", {}, marker("arrow-allow", "allow"), marker("arrow-deny", "deny")),
    ...picture.columns.map((x, column) => svg("text", { class: "title", x, y: 24 }, titles[column])),
    ...picture.curves.map((curve) => drawCurve(curve, picture.curves.length <= MOST_LABELS)),
    ...picture.boxes.map(drawBox));
  drawTable(picture.edges);
  const notes = [`${picture.boxes.length} boxes, ${picture.edges.length} edges`];
  if (last.left_off > 0) notes.push(`${last.left_off} further edges with less traffic are left out`);
  if (picture.curves.length > MOST_LABELS) notes.push("labels are left out: point at a line, or see the table");
  byId("map-note").textContent = notes.join("; ");
}

function drawBox(box) {
  const sign = box.isGroup ? (box.isOpen ? "▾ " : "▸ ") : "";
  const place = box.kind === "pod" && box.column === 2 && (box.isGroup || !box.indent) && box.node ? ` @${box.node}` : "";
  const most = (box.indent ? 29 : 31) - sign.length - place.length;
  const label = box.label.length > most ? `${box.label.slice(0, most - 1)}…` : box.label;
  const says = `${box.kind === "world" ? "" : `${box.kind} `}${box.label}${place}`;
  const attributes = { class: `vertex ${box.kind}${box.isGroup ? " group" : ""}`, "data-key": box.key };
  if (box.isGroup) {
    Object.assign(attributes, { tabindex: 0, role: "button", "aria-expanded": String(box.isOpen), "aria-label": says });
  } else {
    Object.assign(attributes, { role: "img", "aria-label": says });
  }
  const vertex = svg("g", attributes,
    svg("title", {}, says),
    svg("rect", { x: box.x, y: box.y, width: box.width, height: box.height, rx: box.kind === "service" ? 15 : 5 }),
    svg("text", { x: box.x + 10, y: box.y + 20 }, sign + label + place));
  if (box.isGroup) {
    const toggle = () => {
      const expanded = new Set(view.expanded);
      if (view.isAll) for (const end of last.ends) if (end.namespace !== undefined) expanded.add(end.kind === "service" ? `service ${end.namespace}` : `pods ${end.node ?? "?"} ${end.namespace}`);
      if (!expanded.delete(box.key)) expanded.add(box.key);
      change({ expanded, isAll: false });
    };
    vertex.addEventListener("click", toggle);
    vertex.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      toggle();
    });
  }
  return vertex;
}

function drawCurve(curve, hasLabel) {
  const verdict = curve.drops === 0 ? "allow" : curve.connections === 0 ? "deny" : "both";
  const forwarded = `${speed(curve.rate)}, ${curve.connections} connections`;
  const dropped = `✕ ${short(curve.drops)} ${[...curve.reasons].join(", ")}`;
  const width = Math.min(8, 1.5 + Math.log2(1 + curve.rate / 1000) / 2);
  const colour = verdict === "deny" ? "deny" : "allow";
  const [x, y] = curve.label;
  const texts = [];
  if (hasLabel && verdict !== "deny") texts.push(svg("text", { x, y, "text-anchor": curve.anchor }, speed(curve.rate)));
  if (hasLabel && verdict !== "allow") texts.push(svg("text", { class: "drop", "text-anchor": curve.anchor, x, y: y + (verdict === "both" ? 14 : 0) }, dropped));
  const says = `${curve.key}: ${[verdict !== "deny" && forwarded, verdict !== "allow" && dropped].filter(Boolean).join("; ")}`;
  return svg("g", { class: `edge ${verdict}` },
    svg("title", {}, says),
    svg("path", { d: curve.d, "stroke-width": width, "marker-end": `url(#arrow-${colour})` }),
    ...texts);
}

const VERDICTS = { allow: "forwarded", deny: "dropped", both: "forwarded and dropped" };

function drawTable(edges) {
  const rows = edges.slice(0, MOST_ROWS).map((edge) => {
    const reasons = edge.reasons.map((reason) => `${short(reason.count)} ${reason.reason}${reason.why && `, ${reason.why}`}`);
    const button = el("button", { type: "button", "data-key": `trace ${edge.from} ${edge.to}`, "aria-label": `Trace ${edge.from} to ${edge.to}` }, "Trace");
    button.addEventListener("click", () => onTrace(edge));
    const canTrace = edge.from !== "world" && edge.to !== "world" && !edge.from.startsWith("service/");
    return el("tr", {},
      el("td", {}, edge.from), el("td", {}, edge.to), el("td", { class: edge.verdict }, VERDICTS[edge.verdict]),
      el("td", { class: "number" }, String(edge.connections)), el("td", { class: "number" }, short(edge.rate)),
      el("td", { class: "number" }, short(edge.bytes + edge.reply_bytes)), el("td", { class: "number" }, short(edge.drops)),
      el("td", { class: "number" }, edge.drop_rate.toFixed(1)), el("td", {}, reasons.join("; ")),
      el("td", {}, canTrace ? button : null));
  });
  replace(byId("edges").tBodies[0], ...rows);
}
