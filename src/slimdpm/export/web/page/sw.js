// Keeps the site for the times without a network, and serves it so that the page may use several threads.
// The two lines below are written with the site: another site is another version, and waits until the old one's pages
// are closed.
const VERSION = `slimdpm ${self.registration.scope} @version@`;
const FILES = ["@files@"];

self.addEventListener("install", (event) => {
  const all = FILES.map((name) => new Request(name, { cache: "reload" }));
  event.waitUntil(caches.open(VERSION).then((cache) => cache.addAll(all)));
});

self.addEventListener("activate", (event) => {
  event.waitUntil(tidy().then(() => self.clients.claim()));
});

/** Removes what earlier versions of this site kept; other sites of the same server have other scopes. */
async function tidy() {
  const ours = `slimdpm ${self.registration.scope} `;
  for (const name of await caches.keys()) if (name !== VERSION && name.startsWith(ours)) await caches.delete(name);
}

self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  if (event.request.method === "GET" && url.href.startsWith(self.registration.scope)) event.respondWith(kept(event.request));
});

async function kept(request) {
  const cache = await caches.open(VERSION);
  const found = await cache.match(request, { ignoreSearch: true, ignoreVary: true });
  if (found) return isolated(found);
  const answer = await fetch(request);
  if (answer.ok && answer.status === 200) await cache.put(request, answer.clone());
  return isolated(answer);
}

/** With the two headers that a browser asks for before it lets memory be shared by threads. */
function isolated(answer) {
  const headers = new Headers(answer.headers);
  headers.set("Cross-Origin-Opener-Policy", "same-origin");
  headers.set("Cross-Origin-Embedder-Policy", "require-corp");
  headers.set("Cross-Origin-Resource-Policy", "same-origin");
  return new Response(answer.body, { status: answer.status, statusText: answer.statusText, headers });
}
