// The node's answers (docs/api.md).

const TIMEOUT = 10_000;

// Parameters without a value are left out. Throws an Error with the reason.
export async function get(path, parameters = {}) {
  const given = Object.entries(parameters).filter(([, value]) => value !== undefined && value !== "");
  const query = new URLSearchParams(given).toString();
  let answer;
  try {
    const signal = AbortSignal.timeout(TIMEOUT);
    answer = await fetch(query ? `${path}?${query}` : path, { signal, cache: "no-store" });
  } catch {
    throw new Error("the switch does not answer");
  }
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(body.error ?? `status ${answer.status}`);
  return body;
}
