// Validates the FHIR resource on standard input with npm's fhir, and prints the messages.
const { readFileSync } = require("fs");
const { Fhir } = require("fhir");

const resource = JSON.parse(readFileSync(0));
process.stdout.write(JSON.stringify(new Fhir().validate(resource, { errorOnUnexpected: true })));
