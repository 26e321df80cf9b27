// Asks, uploads and edits with the client's predecessor as it comes, told nothing of this server.
// Arguments: the endpoint, the input as JSON. Prints JSON.
import * as fal from "@fal-ai/serverless-client";

const [endpoint, text] = process.argv.slice(2);
const input = JSON.parse(text);
const updates = [];
const onQueueUpdate = (update) => updates.push(update.status);
const result = await fal.subscribe(endpoint, { input, logs: true, onQueueUpdate });
const run = await fal.run(endpoint, { input });
const file = await fetch(result.images[0].url);
const picture = await file.blob();
const url = await fal.storage.upload(picture);
const edited = await fal.subscribe(`${endpoint}/edit`, { input: { ...input, image_urls: [url] } });
console.log(JSON.stringify({ result, run, updates, bytes: picture.size, url, edited }));
