// Streams a request that is cancelled by another call after its first event; prints what the client
// rejects with. Arguments: the server's origin, the endpoint, the input.
import { createFalClient } from "@fal-ai/client";

const [origin, endpointId, text] = process.argv.slice(2);
const fal = createFalClient({
  credentials: "local:local",
  proxyUrl: { url: `${origin}/api/fal/proxy`, when: "always" },
});
process.on("unhandledRejection", () => {});

const stream = await fal.stream(endpointId, { input: JSON.parse(text) });
let events = 0;
stream.on("data", async () => {
  events += 1;
  if (events === 1) await fal.queue.cancel(endpointId, { requestId: stream.requestId });
});
try {
  await stream.done();
} catch (error) {
  process.stdout.write(JSON.stringify({ name: error.name, message: error.message, events }));
  process.exit(0);
}
throw new Error("the stream did not fail");
