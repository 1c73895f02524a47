// Have image files classified from Node 18 or later, without a library:  node node.mjs photo.jpg …
//
// From the environment: TTC_URL, TTC_STREAM, TTC_TOKEN. What the service refused (429, 503) or found
// no connection is sent again, as late as Retry-After says and within BUDGET. What was lost on its
// way back is not, nor is what a proxy refused, whose 503 is no problem document: the service may
// have learned from the image already.
import { readFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";

const BUDGET = 30_000; // milliseconds, for an image
const { TTC_URL = "http://127.0.0.1:8000", TTC_STREAM = "node", TTC_TOKEN } = process.env;
const url = `${TTC_URL}/predict?stream=${encodeURIComponent(TTC_STREAM)}`;
const headers = { "Content-Type": "image/jpeg" };
if (TTC_TOKEN) headers.Authorization = `Bearer ${TTC_TOKEN}`;

// The request in hand is answered; no further one is sent.
const stop = new AbortController();
for (const name of ["SIGTERM", "SIGINT"]) process.once(name, () => stop.abort());

async function post(body) {
  try {
    return await fetch(url, { method: "POST", headers, body, signal: AbortSignal.timeout(60_000) });
  } catch (error) {
    if (error.cause?.code === "ECONNREFUSED") return null;
    throw new Error(`${TTC_URL} gave no answer: ${error.cause?.message ?? error.message}`);
  }
}

function refused(response) {
  const type = response.headers.get("Content-Type") ?? "";
  return [429, 503].includes(response.status) && type.startsWith("application/problem+json");
}

async function said(response) {
  if (response === null) return `Nothing answers at ${TTC_URL}.`;
  const problem = await response.json().catch(() => ({}));
  return problem.detail ?? `${TTC_URL} answered ${response.status}.`;
}

async function predict(file) {
  const body = await readFile(file);
  const end = Date.now() + BUDGET;
  for (let backoff = 250; ; backoff *= 2) {
    const response = await post(body);
    if (response !== null && !refused(response)) {
      if (!response.ok) throw new Error(await said(response));
      return response.json();
    }
    const asked = 1000 * Number(response?.headers.get("Retry-After") ?? 0) || 0;
    const pause = asked + backoff * Math.random();
    const why = await said(response);
    if (Date.now() + pause > end) throw new Error(why);
    await sleep(pause, undefined, { signal: stop.signal });
  }
}

try {
  for (const file of process.argv.slice(2)) {
    if (stop.signal.aborted) break;
    const [found] = (await predict(file)).predictions;
    console.log(`${file}: ${found.name} ${Math.round(100 * found.confidence)}%`);
  }
} catch (error) {
  if (error.name !== "AbortError") {
    console.error(error.message);
    process.exitCode = 1;
  }
}
