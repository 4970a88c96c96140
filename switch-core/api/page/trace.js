// "Why can A not reach B?": the decision of the switch for a connection, with the state in force. Nothing is sent.
//
// The query is in the address of the page (#from=…&to=…&port=…&protocol=…), so that it can be passed on as a link.

import { get } from "./api.js";
import { byId, el } from "./dom.js";

const FIELDS = ["from", "to", "port", "protocol"];
const form = () => byId("trace-form");

export function start() {
  form().addEventListener("submit", (event) => {
    event.preventDefault();
    const question = new URLSearchParams(new FormData(form())).toString();
    if (location.hash.slice(1) === question) answer();
    else location.hash = question;
  });
  addEventListener("hashchange", read);
  read();
}

function read() {
  const question = new URLSearchParams(location.hash.slice(1));
  if (!question.has("from") || !question.has("to")) return;
  for (const name of FIELDS) if (question.has(name)) form().elements[name].value = question.get(name);
  answer();
}

// Traces an edge of the map.
export function about(edge) {
  const known = edge.reasons.find((reason) => reason.port);
  const fields = form().elements;
  fields.from.value = edge.from;
  fields.to.value = edge.to;
  if (known) fields.port.value = known.port;
  if (known) fields.protocol.value = { 6: "TCP", 17: "UDP", 132: "SCTP", 1: "ICMP", 58: "ICMP" }[known.protocol] ?? "TCP";
  form().requestSubmit();
  byId("trace").scrollIntoView({ block: "start" });
  fields.from.focus({ preventScroll: true });
}

async function answer() {
  const place = byId("trace-answer");
  const question = Object.fromEntries(new FormData(form()));
  try {
    const { traces } = await get("/v1/trace", question);
    place.replaceChildren(...traces.flatMap((trace) => {
      const is = trace.verdict === "allow";
      const by = trace.object ? ` by ${trace.object}` : "";
      const backend = trace.backend ? ` to the backend ${trace.backend}` : "";
      const says = is ? `✓ allowed${backend}` : `✕ denied${trace.reason ? `: ${trace.reason}` : ""}${by}`;
      return [
        el("p", { class: `verdict ${trace.verdict}` }, `${trace.from} → ${trace.to}, ${question.protocol} port ${question.port}: ${says}`),
        el("pre", { tabindex: 0 }, trace.why),
      ];
    }));
  } catch (error) {
    place.replaceChildren(el("p", { class: "error" }, error.message));
  }
}
