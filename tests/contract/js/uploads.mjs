// Uploads in every way that fal's JavaScript client has, through the server's proxy route; prints
// what came back as JSON. Arguments: the proxy's URL, the path of a picture, the path of one above
// the size from which the client uploads in parts, the endpoint, and an input without images.
import { openAsBlob } from "node:fs";
import { createFalClient } from "@fal-ai/client";

const [proxyUrl, smallPath, bigPath, endpointId, input] = process.argv.slice(2);
const fal = createFalClient({
  credentials: "local:local",
  proxyUrl: { url: proxyUrl, when: "always" },
});
const small = await openAsBlob(smallPath, { type: "image/png" });
const big = await openAsBlob(bigPath, { type: "image/png" });
const lifecycle = { expiresIn: "immediate", initialAcl: { default: "forbid" } };

const urls = {
  blob: await fal.storage.upload(small),
  file: await fal.storage.upload(new File([small], "../small.png", { type: "image/png" })),
  untyped: await fal.storage.upload(new Blob([small])),
  parts: await fal.storage.upload(big),
  text: await fal.storage.upload(new File(["Hello, World!"], "hello.txt", { type: "text/plain" })),
  "text, untyped": await fal.storage.upload(new File(["Hello, World!"], "hello.txt")),
  private: await fal.storage.upload(small, { lifecycle }),
};
const subscribed = await fal.subscribe(endpointId, {
  input: { ...JSON.parse(input), image_urls: [small] },
  pollInterval: 100,
});
process.stdout.write(JSON.stringify({ urls, subscribed }));
