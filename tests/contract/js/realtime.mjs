// Realtime and a client-mode stream with the client as it comes, by tokens; prints what each gives.
// Arguments: the endpoint, another application's endpoint, an input, a wrong one. Node before 22
// needs --experimental-websocket.
import { createFalClient } from "@fal-ai/client";

const [endpoint, elsewhere, text, wrongText] = process.argv.slice(2);
const input = JSON.parse(text);
const fal = createFalClient();
console.warn = () => {}; // about the default token provider, which is what is tried here

async function tokenFor(app) {
  const answer = await fetch("https://rest.fal.ai/tokens/realtime", {
    method: "POST",
    headers: { authorization: `Key ${process.env.FAL_KEY}` },
    body: JSON.stringify({ allowed_apps: [app], duration: 60 }),
  });
  return answer.json();
}

// Opens a connection whose `next` resolves with whatever comes next, a result or an error.
function open(options = {}) {
  const came = [];
  let wake = () => {};
  const put = (item) => {
    came.push(item);
    wake();
  };
  const connection = fal.realtime.connect(endpoint, {
    onResult: (result) => put({ result }),
    onError: (error) =>
      put({ error: { message: error.message, status: error.status, body: error.body ?? null } }),
    ...options,
  });
  const next = async () => {
    while (!came.length) await new Promise((resolve) => (wake = resolve));
    return came.shift();
  };
  return { connection, next };
}

function plain({ result, error }) {
  if (error) return { error };
  const images = result.images.map((image) => ({
    ...image,
    content: Buffer.from(image.content).toString("base64"),
  }));
  return { result: { ...result, images } };
}

async function ask(line, body) {
  line.connection.send(body);
  return plain(await line.next());
}

const found = {};
const line = open();
found.first = await ask(line, { ...input, request_id: "first" });
found.wrong = await ask(line, JSON.parse(wrongText));
found.after = await ask(line, input);
line.connection.close();

// The first token is not good: the client hears of it, and comes back with another by itself.
const tokens = [await tokenFor(elsewhere), await tokenFor(`${endpoint}/realtime`)];
const asked = [];
const renewing = open({
  tokenProvider: async (app) => {
    asked.push(app);
    return tokens.shift();
  },
});
found.refused = await ask(renewing, input);
found.renewed = await ask(renewing, input);
found.asked = asked;
renewing.connection.close();

const stream = await fal.stream(endpoint, { input, connectionMode: "client" });
for await (const _ of stream);
found.stream = await stream.done();

process.stdout.write(JSON.stringify(found));
