// Asks for an image and fetches it with the client as it comes, told nothing of this server.
// Arguments: the endpoint, the input as JSON. Prints the result and the size of the file as JSON.
import { fal } from "@fal-ai/client";

const [endpoint, input] = process.argv.slice(2);
const { data } = await fal.subscribe(endpoint, { input: JSON.parse(input) });
const file = await fetch(data.images[0].url);
const bytes = (await file.arrayBuffer()).byteLength;
console.log(JSON.stringify({ data, status: file.status, bytes }));
