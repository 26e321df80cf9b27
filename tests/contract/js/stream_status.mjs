// Follows requests by the status stream of fal's JavaScript client, through the server's proxy
// route; prints what came as JSON. Arguments: the proxy's URL, the endpoint, an input, and one that
// is wrong.
import { createFalClient } from "@fal-ai/client";

const [proxyUrl, endpointId, input, wrongInput] = process.argv.slice(2);
const fal = createFalClient({
  credentials: "local:local",
  proxyUrl: { url: proxyUrl, when: "always" },
});

// A failed stream also rejects a promise inside the client that nobody can reach.
process.on("unhandledRejection", () => {});

async function failure(promise) {
  try {
    await promise;
  } catch (error) {
    return { name: error.name, status: error.status, body: error.body };
  }
  throw new Error("the call did not fail");
}

const updates = [];
const subscribed = await fal.subscribe(endpointId, {
  input: JSON.parse(input),
  mode: "streaming",
  logs: true,
  // The client hands out one growing list of lines, so each update is kept as it was.
  onQueueUpdate: (update) => updates.push(structuredClone(update)),
});
const { requestId } = subscribed;
const stream = await fal.queue.streamStatus(endpointId, { requestId, logs: true });
const late = [];
for await (const event of stream) late.push(event);
const unknown = "00000000-0000-4000-8000-000000000000";
const found = {
  subscribed,
  updates,
  late,
  lateId: stream.requestId,
  status: await fal.queue.status(endpointId, { requestId, logs: true }),
  wrong: await failure(
    fal.subscribe(endpointId, { input: JSON.parse(wrongInput), mode: "streaming" }),
  ),
  unknown: await failure(
    fal.queue.subscribeToStatus(endpointId, { requestId: unknown, mode: "streaming" }),
  ),
};
process.stdout.write(JSON.stringify(found));
