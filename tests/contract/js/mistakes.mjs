// Cancels requests and makes the usual mistakes with fal's JavaScript client; prints how each is
// reported, as JSON. Arguments: the proxy's URL, and as JSON the input of a long request to
// fal-ai/flux-2, pairs of endpoint and input, and a wrong input.
import { ApiError, createFalClient, ValidationError } from "@fal-ai/client";

const [proxyUrl, longInput, pairs, wrongInput] = process.argv.slice(2);
const fal = createFalClient({
  credentials: "local:local",
  proxyUrl: { url: proxyUrl, when: "always" },
});
const endpointId = "fal-ai/flux-2";
const wrong = JSON.parse(wrongInput);

async function failure(promise) {
  try {
    await promise;
  } catch (error) {
    return {
      name: error.name,
      isApiError: error instanceof ApiError,
      isValidationError: error instanceof ValidationError,
      status: error.status,
      message: error.message,
      body: error.body,
      requestId: error.requestId,
      fieldErrors: error.fieldErrors,
    };
  }
  throw new Error("the call did not fail");
}

async function follow(id, requestId, word) {
  for (;;) {
    const { status } = await fal.queue.status(id, { requestId });
    if (status === word) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

const long = await fal.queue.submit(endpointId, { input: JSON.parse(longInput) });
await follow(endpointId, long.request_id, "IN_PROGRESS");
const waiting = [];
for (const [id, input] of JSON.parse(pairs)) {
  waiting.push([id, (await fal.queue.submit(id, { input })).request_id]);
}
const positions = [];
for (const [id, requestId] of waiting) {
  positions.push((await fal.queue.status(id, { requestId })).queue_position);
}
const unfinished = await failure(fal.queue.result(endpointId, { requestId: long.request_id }));
for (const [id, requestId] of waiting) await fal.queue.cancel(id, { requestId });
await fal.queue.cancel(endpointId, { requestId: long.request_id });
await follow(endpointId, long.request_id, "COMPLETED");
const ends = [];
for (const [id, requestId] of [[endpointId, long.request_id], ...waiting]) {
  ends.push({ requestId, error: await failure(fal.queue.result(id, { requestId })) });
}
const unknown = { requestId: "00000000-0000-4000-8000-000000000000" };
const found = {
  positions,
  unfinished,
  ends,
  cancelFinished: await failure(fal.queue.cancel(endpointId, { requestId: long.request_id })),
  run: await failure(fal.run(endpointId, { input: wrong })),
  subscribe: await failure(fal.subscribe(endpointId, { input: wrong, pollInterval: 50 })),
  unknownStatus: await failure(fal.queue.status(endpointId, unknown)),
  unknownResult: await failure(fal.queue.result(endpointId, unknown)),
  unknownEndpoint: await failure(fal.run("fal-ai/no-such-model", { input: {} })),
};
process.stdout.write(JSON.stringify(found));
