// What the pages gain by a script: marks on what changed, a banner when the list is stale, keys. All works without.
"use strict";

const MARKED_MS = 30000; // how long a changed row stays marked
const byId = (id) => document.getElementById(id);
const list = () => byId("list");
const openers = () => [...document.querySelectorAll("#list a.open")];

// ------------------------------------------------------------------------------------------ refresh: what has changed

let before = null;
const marks = new Map(); // row's id -> {kind, until}
let lastGood = performance.now();
let problem = "";

function signatures() {
  return new Map([...document.querySelectorAll("#list tr[data-signature]")].map((row) => [row.id, row.dataset.signature]));
}

function noteChanges() {
  const now = signatures();
  let arrived = 0, changed = 0;
  for (const [id, signature] of now) {
    const kind = !before.has(id) ? "new" : before.get(id) !== signature ? "changed" : null;
    if (kind === "new") arrived += 1;
    if (kind === "changed") changed += 1;
    if (kind) marks.set(id, { kind, until: performance.now() + MARKED_MS });
  }
  const words = [arrived ? `${arrived} new` : "", changed ? `${changed} changed` : ""].filter(Boolean);
  if (words.length) byId("news").textContent = `On the list: ${words.join(", ")}.`;
}

function showMarks() {
  for (const [id, mark] of marks) {
    const row = byId(id);
    if (performance.now() > mark.until) marks.delete(id);
    if (row && marks.has(id)) row.dataset.mark = mark.kind;
    else if (row) delete row.dataset.mark;
  }
}

let focused = null; // {id, next}: what had the focus, and what takes it if that goes

function rememberFocus() {
  const row = document.activeElement?.closest?.("#list tr");
  focused = row ? { id: document.activeElement.id, row: row.id, next: row.nextElementSibling?.id, top: row.getBoundingClientRect().top } : null;
}

function restoreFocus() {
  if (!focused) return;
  const there = byId(focused.id);
  if (there) {
    if (document.activeElement !== there) there.focus({ preventScroll: true });
    const row = byId(focused.row);
    if (row) window.scrollBy(0, row.getBoundingClientRect().top - focused.top); // arrivals above must not push it away
  } else if (document.activeElement === document.body) {
    (byId(focused.next)?.querySelector("a.open") ?? openers().at(-1))?.focus({ preventScroll: true });
  }
}

document.addEventListener("htmx:before:swap", (event) => {
  if (event.detail.ctx.target?.id !== "list") return;
  before = signatures();
  rememberFocus();
});
document.addEventListener("htmx:after:swap", (event) => {
  if (event.detail.ctx.sourceElement?.id !== "list" || before === null) return;
  noteChanges();
  showMarks();
  restoreFocus();
  before = null;
});

// --------------------------------------------------------------------------------------------------------- stale pages

document.addEventListener("htmx:after:request", (event) => {
  const status = event.detail.ctx.response?.raw?.status;
  if (event.detail.ctx.sourceElement?.id === "list") {
    problem = status === 401 ? "You are signed out: load the page again." : status >= 500 ? "The database or the service does not answer." : "";
    if (status === 200) lastGood = performance.now();
  } else if (status === 409) {
    showStale("You do not hold this study any more: save your review, then load the page again.");
  } else if (status === 401) {
    showStale("You are signed out: load the page again.");
  }
  tell();
});
document.addEventListener("htmx:error", (event) => {
  if (event.detail.ctx?.sourceElement?.id !== "list") return;
  problem = "The service does not answer.";
  tell();
});

function showStale(text) {
  const banner = byId("stale");
  if (banner && (banner.hidden || banner.textContent !== text)) {
    banner.textContent = text;
    banner.hidden = false;
  }
}

function tell() {
  if (!list()) return;
  const period = 1000 * Number(list().dataset.refresh);
  if (problem || performance.now() - lastGood > 2.5 * period) {
    const since = byId("updated")?.textContent ?? "";
    showStale(`Not up to date since ${since}. ${problem || "The list did not come."}`);
  } else {
    byId("stale").hidden = true;
  }
}

setInterval(() => { tell(); showMarks(); }, 1000);

// ------------------------------------------------------------------------------------------- a review not saved yet

let unsaved = false; // claiming, reading or leaving would lose it: the browser asks first

document.addEventListener("change", (event) => { unsaved ||= event.target.closest("#review") !== null; });
document.addEventListener("submit", (event) => {
  if (event.target.id !== "review") return;
  event.preventDefault();
  save(event.target, event.submitter);
});
addEventListener("beforeunload", (event) => { if (unsaved) event.preventDefault(); });

// Sent from the page and not in its place: where nobody answers, the marks are still there.
async function save(form, button) {
  const sent = { method: "POST", body: new URLSearchParams(new FormData(form, button)), redirect: "manual" };
  const answer = await fetch(form.action, sent).catch(() => null);
  if (answer?.type === "opaqueredirect") {
    unsaved = false;
    location.assign(form.dataset.saved);
  } else {
    showStale(answer ? await sentenceOf(answer) : "Not saved: the service does not answer. Your marks stay on this page: try again.");
  }
}

async function sentenceOf(answer) {
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  return (page.querySelector("[role=alert]") ?? page.body).textContent.trim();
}

// ---------------------------------------------------------------------------------------------------------------- keys

function move(step) {
  const fields = [...document.querySelectorAll("#review fieldset")];
  if (fields.length) return focusFinding(fields, step);
  const all = openers();
  const row = document.activeElement?.closest?.("#list tr");
  const at = row ? all.findIndex((link) => row.contains(link)) : -1;
  const next = all[at < 0 ? 0 : Math.min(Math.max(at + step, 0), all.length - 1)];
  next?.focus();
}

function currentFinding(fields) {
  return fields.findIndex((field) => field.contains(document.activeElement));
}

function focusOn(field) {
  (field.querySelector("input:checked") ?? field.querySelector("input")).focus();
}

function focusFinding(fields, step) {
  const at = currentFinding(fields);
  focusOn(fields[at < 0 ? 0 : Math.min(Math.max(at + step, 0), fields.length - 1)]);
}

function judge(number) {
  const fields = [...document.querySelectorAll("#review fieldset")];
  if (!fields.length) return;
  const at = Math.max(currentFinding(fields), 0);
  fields[at].querySelectorAll("input")[number - 1].checked = true;
  unsaved = true;
  if (at + 1 < fields.length) focusOn(fields[at + 1]);
  else byId("save").focus();
}

const press = (id) => byId(id)?.click();

// On the list a key means the study that has the focus. Without one it chooses the first, and the next press acts.
function act(id, inRow) {
  if (!list()) return press(id);
  const row = document.activeElement?.closest?.("#list tr");
  if (row) row.querySelector(inRow)?.click();
  else move(1);
}

const KEYS = {
  j: () => move(1),
  k: () => move(-1),
  o: () => act("viewer", "a.open"),
  c: () => act("claim", "button.claim"),
  r: () => act("read", "button.read"),
  u: () => press("undo"),
  s: () => press("save"),
  b: () => press("back"),
  1: () => judge(1),
  2: () => judge(2),
  3: () => judge(3),
  "/": () => byId("accession")?.focus(),
  "?": () => byId("keys")?.showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("keys")?.open) return;
  const typing = event.target.matches?.("input:not([type=radio], [type=checkbox], [type=range]), select, textarea");
  const action = typing ? null : KEYS[event.key];
  if (!action) return;
  event.preventDefault();
  if (event.repeat && !"jk".includes(event.key)) return; // a key held down must not act on the next page's first study
  action();
});

const help = byId("keys-button");
if (help) {
  help.hidden = false;
  help.addEventListener("click", () => byId("keys").showModal());
}
