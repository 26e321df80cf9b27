// Lets the limits of fal's JavaScript client run out; prints how it reports each, as JSON.
// Arguments: the proxy's URL, the endpoint, the input of a request that runs until it is cancelled,
// and a file that ends the request which is submitted first. The runner must be idle.
import { writeFileSync } from "node:fs";
import { createFalClient } from "@fal-ai/client";

const [proxyUrl, endpointId, text, gate] = process.argv.slice(2);
const fal = createFalClient({
  credentials: "local:local",
  proxyUrl: { url: proxyUrl, when: "always" },
});
const input = JSON.parse(text);
const startTimeout = 1.1; // seconds; clients refuse limits of a second and less
const timeout = 1300; // milliseconds

// With a stream the client throws its time-out where no caller can catch it.
const uncaught = [];
process.on("uncaughtException", (error) => uncaught.push(error.message));

async function failure(call) {
  let requestId = null;
  try {
    await call((id) => (requestId = id));
  } catch (error) {
    const { message, status, body, isUserTimeout } = error;
    return { requestId: requestId ?? error.requestId, message, status, body, isUserTimeout };
  }
  throw new Error("the call did not fail");
}

async function follow(requestId, word) {
  while ((await fal.queue.status(endpointId, { requestId })).status !== word) {
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

const first = await fal.queue.submit(endpointId, {
  input: { ...input, prompt: `${input.prompt} ${gate}` },
  startTimeout,
});
await follow(first.request_id, "IN_PROGRESS");

const subscribe = (options) =>
  failure((onEnqueue) => fal.subscribe(endpointId, { input, onEnqueue, ...options }));
const [subscribeStart, runStart, subscribeTimeout, streamTimeout] = await Promise.all([
  subscribe({ startTimeout, pollInterval: 50 }),
  failure(() => fal.run(endpointId, { input, startTimeout })),
  subscribe({ timeout, pollInterval: 50 }),
  subscribe({ timeout, mode: "streaming" }),
]);
const still = (await fal.queue.status(endpointId, { requestId: first.request_id })).status;
writeFileSync(gate, "");
await follow(first.request_id, "COMPLETED");
const running = await subscribe({ timeout, pollInterval: 50 });
await follow(running.requestId, "COMPLETED");
const found = {
  subscribeStart,
  runStart,
  subscribeTimeout,
  streamTimeout,
  uncaught,
  running,
  first: {
    status: still,
    images: (await fal.queue.result(endpointId, { requestId: first.request_id })).data.images.length,
  },
};
process.stdout.write(JSON.stringify(found));
