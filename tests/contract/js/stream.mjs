// Streams one input with fal's JavaScript client in both connection modes, and what fails in two
// ways; prints the events as JSON. Arguments: the server's origin, the endpoint, an input, one that
// is wrong.
import { createFalClient } from "@fal-ai/client";

const [origin, endpointId, text, wrongText] = process.argv.slice(2);
const fal = createFalClient({
  credentials: "local:local",
  proxyUrl: { url: `${origin}/api/fal/proxy`, when: "always" },
});

// A failed stream also rejects a promise inside the client that nobody can reach.
process.on("unhandledRejection", () => {});

async function follow(options) {
  const stream = await fal.stream(endpointId, options);
  const events = [];
  for await (const event of stream) events.push(event);
  return { events, done: await stream.done(), requestId: stream.requestId };
}

async function failure(input) {
  const stream = await fal.stream(endpointId, { input });
  try {
    await stream.done();
  } catch (error) {
    return { name: error.name, status: error.status, body: error.body };
  }
  throw new Error("the stream did not fail");
}

const input = JSON.parse(text);
const found = {
  server: await follow({ input }),
  client: await follow({
    input,
    connectionMode: "client",
    url: `${origin}/${endpointId}/stream`,
    tokenProvider: async () => "a-token",
  }),
  wrong: await failure(JSON.parse(wrongText)),
};
process.stdout.write(JSON.stringify(found));
