// Puts a CommonJS module and all that it requires into one script, for a browser.
import { readFileSync } from "node:fs";
import { createRequire, isBuiltin } from "node:module";

export function bundle(entry) {
  const modules = {};
  const visit = (path) => {
    if (path in modules) return;
    const text = readFileSync(path, "utf8");
    const links = {};
    modules[path] = { text: path.endsWith(".json") ? `module.exports = ${text}` : text, links };
    for (const [, name] of text.matchAll(/\brequire\(["']([^"']+)["']\)/g)) {
      if (isBuiltin(name)) continue;
      links[name] = createRequire(path).resolve(name);
      visit(links[name]);
    }
  };
  visit(entry);
  const parts = Object.entries(modules).map(
    ([path, { text, links }]) =>
      `${JSON.stringify(path)}: [${JSON.stringify(links)}, (module, exports, require) => {${text}\n}]`,
  );
  return `const modules = {${parts.join(",\n")}};
const cache = {};
function load(path) {
  if (!(path in cache)) {
    const [links, run] = modules[path];
    const module = (cache[path] = { exports: {} });
    run(module, module.exports, (name) => load(links[name]));
  }
  return cache[path].exports;
}
const page = load(${JSON.stringify(entry)});
`;
}
