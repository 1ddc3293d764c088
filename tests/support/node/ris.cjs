// A RIS: node-hl7-server on port 2575 of all addresses (it ignores bindAddress), so only for a network namespace.
// Arguments: how it answers one message after the other (AA, AE, AR, or "silence"); after the last of them, AA.
const { Server } = require("node-hl7-server");

const answers = process.argv.slice(2);
const inbound = new Server().createInbound({ port: 2575 }, async (request, response) => {
  const message = request.getMessage();
  const answer = answers.shift() ?? "AA";
  const told = { id: message.get("MSH.10").toString(), text: message.toString(), answer };
  process.stdout.write(JSON.stringify(told) + "\n");
  if (answer !== "silence") await response.sendResponse(answer);
});
inbound.on("listen", () => process.stdout.write("listening\n"));
