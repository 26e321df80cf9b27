// What a page of an app does that has fal's proxy on its own server; it knows no key.
const { createFalClient } = require("@fal-ai/client");

module.exports = async function page(proxyUrl, endpoint, input) {
  const fal = createFalClient({ proxyUrl });
  const updates = [];
  const onQueueUpdate = (update) => updates.push(update.status);
  const made = await fal.subscribe(endpoint, { input, logs: true, onQueueUpdate });
  const run = await fal.run(endpoint, { input });
  const file = await fetch(made.data.images[0].url);
  const picture = await file.blob();
  const edited = await fal.subscribe(`${endpoint}/edit`, {
    input: { ...input, image_urls: [picture] },
  });
  return { made: made.data, run: run.data, edited: edited.data, updates, bytes: picture.size };
};
