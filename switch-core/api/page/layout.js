// Converts ends and edges to boxes and curves, without access to the document.
//
// Three columns: pods of this node; Services; pods of other nodes, nodes and the world. Pods of one node and namespace are
// one box until it is expanded, so that a picture of 1,000 pods has as many boxes as it has namespaces.

const BOX = { width: 250, height: 30, gap: 8 };
const COLUMNS = [230, 620, 1010];
const WIDTH = 1420;
// Boxes of one expanded group; the filter finds the others.
const MOST_MEMBERS = 100;

const groupOf = (end) => `${end.kind === "service" ? "service" : `pods ${end.node ?? "?"}`} ${end.namespace}`;

// `expanded`: keys of groups. `isAll`: all are.
export function layout(map, { expanded, isAll, filter, dropsOnly }) {
  const wanted = filter.trim().toLowerCase();
  const matches = (id) => id.toLowerCase().includes(wanted);
  let edges = dropsOnly ? map.edges.filter((edge) => edge.drops > 0) : map.edges;
  if (wanted) edges = edges.filter((edge) => matches(edge.from) || matches(edge.to));
  const used = new Set(edges.flatMap((edge) => [edge.from, edge.to]));
  const isShown = (end) => used.has(end.id) || (!dropsOnly && (!wanted || matches(end.id)));

  const groups = new Map();
  for (const end of map.ends.filter(isShown)) {
    const key = end.namespace === undefined ? end.id : groupOf(end);
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(end);
  }

  const columns = [[], [], []];
  const boxOf = new Map();
  for (const [key, members] of groups) {
    const { kind, namespace, node } = members[0];
    const column = kind === "service" ? 1 : kind === "pod" && node === map.node ? 0 : kind === "node" && node === map.node ? 0 : 2;
    const place = (box) => {
      columns[column].push({ ...box, kind, column, node, namespace, group: key });
      return columns[column].at(-1);
    };
    const isOpen = members.length === 1 || isAll || expanded.has(key);
    if (!isOpen) {
      const label = kind === "service" ? `${namespace}: ${members.length} Services` : `${namespace}: ${members.length} pods`;
      const box = place({ key, label, isGroup: true, isOpen });
      members.forEach((end) => boxOf.set(end.id, box));
      continue;
    }
    if (members.length > 1) place({ key, label: `${namespace}`, isGroup: true, isOpen });
    // Those with edges first.
    members.sort((a, b) => used.has(b.id) - used.has(a.id) || a.id.localeCompare(b.id));
    members.slice(0, MOST_MEMBERS).forEach((end) => {
      const label = kind === "service" ? end.id.slice("service/".length) : end.id;
      boxOf.set(end.id, place({ key: end.id, label, isGroup: false, indent: members.length > 1 }));
    });
    if (members.length > MOST_MEMBERS) {
      const box = place({ key: `${key} more`, label: `… ${members.length - MOST_MEMBERS} more`, isGroup: false, indent: true });
      members.slice(MOST_MEMBERS).forEach((end) => boxOf.set(end.id, box));
    }
  }

  let height = 0;
  columns.forEach((boxes, column) => {
    const order = (box) => `${box.kind === "world" ? 2 : box.kind === "node" ? 0 : 1} ${box.node ?? ""}`;
    // Stable: members stay behind the head of their group.
    boxes.sort((a, b) => order(a).localeCompare(order(b)));
    boxes.forEach((box, index) => {
      box.x = COLUMNS[column] + (box.indent ? 14 : 0);
      box.width = BOX.width - (box.indent ? 14 : 0);
      box.y = 40 + index * (BOX.height + BOX.gap);
      box.height = BOX.height;
    });
    height = Math.max(height, 50 + boxes.length * (BOX.height + BOX.gap));
  });

  const curves = new Map();
  for (const edge of edges) {
    const [from, to] = [boxOf.get(edge.from), boxOf.get(edge.to)];
    if (!from || !to || from === to) continue;
    const key = `${from.key} → ${to.key}`;
    const sum = curves.get(key) ?? { key, from, to, rate: 0, bytes: 0, connections: 0, drops: 0, dropRate: 0, reasons: new Set() };
    sum.rate += edge.rate;
    sum.bytes += edge.bytes + edge.reply_bytes;
    sum.connections += edge.connections;
    sum.drops += edge.drops;
    sum.dropRate += edge.drop_rate;
    edge.reasons.forEach((reason) => sum.reasons.add(reason.reason));
    curves.set(key, sum);
  }
  for (const curve of curves.values()) Object.assign(curve, path(curve.from, curve.to));
  return { boxes: columns.flat(), curves: [...curves.values()], edges, width: WIDTH, height: Math.max(height, 120), columns: COLUMNS };
}

// A curve from box to box and the place of its label. Both directions of a pair have places of their own.
function path(from, to) {
  const [y1, y2] = [from.y + from.height * 0.35, to.y + to.height * 0.65];
  if (from.column === to.column) {
    const side = from.column === 2 ? 1 : -1;
    const x1 = side > 0 ? from.x + from.width : from.x;
    const x2 = side > 0 ? to.x + to.width : to.x;
    const bend = Math.min(80, 34 + Math.abs(y2 - y1) / 6);
    const x = (side > 0 ? Math.max(x1, x2) : Math.min(x1, x2)) + side * bend;
    return { d: `M${x1} ${y1} C${x} ${y1} ${x} ${y2} ${x2} ${y2}`, label: [x - side * (bend * 0.25 - 6), (y1 + y2) / 2 + 4], anchor: side > 0 ? "start" : "end" };
  }
  const isRight = from.column < to.column;
  const [x1, x2] = isRight ? [from.x + from.width, to.x] : [from.x, to.x + to.width];
  const bend = (x2 - x1) * 0.45;
  const t = isRight ? 0.4 : 0.5;
  const at = (a, b, c, d) => a * (1 - t) ** 3 + 3 * b * (1 - t) ** 2 * t + 3 * c * (1 - t) * t ** 2 + d * t ** 3;
  return {
    d: `M${x1} ${y1} C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`,
    label: [at(x1, x1 + bend, x2 - bend, x2), at(y1, y1, y2, y2) - 4],
    anchor: "middle",
  };
}
