// An app with fal's own proxy on its server, and its page: run here, and in a browser if one is
// named. The app has the key in its environment, the page has none; nobody knows of this server.
// Arguments: the endpoint, the input as JSON, the browser or nothing. Prints what each page got.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { createHandler, route } from "@fal-ai/server-proxy/express";
import express from "express";

import { bundle } from "./bundle.mjs";

const [endpoint, input, browser] = process.argv.slice(2);
const require = createRequire(import.meta.url);
const html = `<!doctype html><script src="/bundle.js"></script><script>
const show = (url) => new Promise((resolve, reject) => {
  const image = new Image();
  image.onload = () => resolve([image.naturalWidth, image.naturalHeight]);
  image.onerror = () => reject(new Error("the image does not load"));
  image.src = url;
});
page(${JSON.stringify(route)}, ${JSON.stringify(endpoint)}, ${input})
  .then(async (told) => ({ ...told, shown: await show(told.made.images[0].url) }))
  .catch((error) => ({ error: String(error), body: error.body }))
  .then((told) => fetch("/told", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(told),
  }));
</script>`;

let tell;
const told = new Promise((resolve) => (tell = resolve));
const app = express();
app.use(express.json({ limit: "50mb" }));
const handler = createHandler({ allowedEndpoints: ["fal-ai/**"], allowUnauthorizedRequests: true });
// Express 4 takes no promises: what the proxy cannot reach must not end the app.
app.all(route, (request, response, next) => handler(request, response, () => {}).catch(next));
app.get("/", (_request, response) => response.send(html));
app.get("/bundle.js", (_request, response) => {
  response.type("text/javascript").send(bundle(require.resolve("./page.cjs")));
});
app.post("/told", (request, response) => {
  response.end();
  tell(request.body);
});
const server = app.listen(0, "127.0.0.1");
await once(server, "listening");
const origin = `http://127.0.0.1:${server.address().port}`;

const page = require("./page.cjs");
const proxyUrl = { url: `${origin}${route}`, when: "always" };
const answers = { node: await page(proxyUrl, endpoint, JSON.parse(input)) };
const keyless = await fetch(`https://fal.run/${endpoint}`, { method: "POST", body: input });
answers.keyless = keyless.status;

if (browser) {
  const profile = mkdtempSync(join(tmpdir(), "page-"));
  const child = spawn(
    browser,
    [
      "--headless=new",
      "--no-sandbox",
      "--disable-gpu",
      "--disable-dev-shm-usage",
      "--ignore-certificate-errors", // in place of putting the authority into a profile
      `--user-data-dir=${profile}`,
      origin,
    ],
    { stdio: "ignore" },
  );
  const ended = once(child, "exit");
  const early = ended.then(([code]) => ({ error: `the browser ended with ${code}` }));
  answers.browser = await Promise.race([told, early]);
  child.kill();
  await ended;
  rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
}
console.log(JSON.stringify(answers));
process.exit(0);
