// Calls one endpoint in every way that fal's JavaScript client has, through the server's proxy
// route; prints what came back as JSON. Arguments: the proxy's URL, the endpoint, the input as JSON.
import { createFalClient } from "@fal-ai/client";

const [proxyUrl, endpointId, input] = process.argv.slice(2);
const fal = createFalClient({
  credentials: "local:local",
  proxyUrl: { url: proxyUrl, when: "always" },
});
const options = { input: JSON.parse(input) };

const updates = [];
const enqueued = [];
const subscribed = await fal.subscribe(endpointId, {
  ...options,
  logs: true,
  pollInterval: 100,
  onEnqueue: (requestId) => enqueued.push(requestId),
  onQueueUpdate: (update) => updates.push(update),
});

const submitted = await fal.queue.submit(endpointId, options);
const requestId = submitted.request_id;
await fal.queue.subscribeToStatus(endpointId, { requestId, pollInterval: 100 });
const found = {
  subscribe: subscribed,
  updates,
  enqueued,
  submitted,
  status: await fal.queue.status(endpointId, { requestId, logs: true }),
  quietStatus: await fal.queue.status(endpointId, { requestId }),
  result: await fal.queue.result(endpointId, { requestId }),
  run: await fal.run(endpointId, options),
};
process.stdout.write(JSON.stringify(found));
