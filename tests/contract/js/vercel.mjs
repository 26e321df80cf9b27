// Makes and edits an image with Vercel's AI SDK, and makes a mistake.
// Arguments: the server's origin, a key, the URL of an image on that origin. Prints JSON.
import { createHash } from "node:crypto";

import { createFal } from "@ai-sdk/fal";
import { generateImage } from "ai";

const [baseURL, apiKey, imageUrl] = process.argv.slice(2);
const fal = createFal({ baseURL, apiKey });
const quick = { numInferenceSteps: 4 };
const options = { seed: 5, size: "512x512", maxRetries: 0, providerOptions: { fal: quick } };

const describe = ({ images, providerMetadata }) => ({
  images: images.map((image) => ({
    mediaType: image.mediaType,
    digest: createHash("sha256").update(image.uint8Array).digest("hex"),
  })),
  metadata: providerMetadata.fal,
});

const failure = async (model, more = {}) => {
  try {
    await generateImage({ model, prompt: "A lighthouse", ...options, ...more });
  } catch (error) {
    return { name: error.name, status: error.statusCode, message: error.message };
  }
};

const model = fal.image("fal-ai/flux-2");
const made = await generateImage({ model, prompt: "A lighthouse", n: 2, ...options });
const edited = await generateImage({
  model: fal.image("fal-ai/flux-2/edit"),
  prompt: { text: "A lighthouse", images: [imageUrl] },
  ...options,
  providerOptions: { fal: { ...quick, useMultipleImages: true } },
});
const stranger = createFal({ baseURL, apiKey: "somebody:else" }).image("fal-ai/flux-2");
console.log(
  JSON.stringify({
    made: describe(made),
    edited: describe(edited),
    size: await failure(model, { size: "256x256" }),
    key: await failure(stranger),
  }),
);
