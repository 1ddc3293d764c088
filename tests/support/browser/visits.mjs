// Visits to the web page in headless Chromium. Reads what to do as JSON from its first argument, prints what it saw as JSON.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const asked = JSON.parse(process.argv[2]);
const require = createRequire(asked.modules + "/");
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const seen = { errors: [], foreign: [], pages: {} };

async function visitor(browser, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1400, height: 900 }, ...options });
  if (asked.token) await context.addCookies([{ name: "nightread_session", value: asked.token, url: asked.address }]);
  const page = await context.newPage();
  page.setDefaultTimeout(90000);
  page.on("console", (message) => message.type() === "error" && seen.errors.push(message.text()));
  page.on("pageerror", (error) => seen.errors.push(error.message));
  page.on("request", (request) => {
    if (!request.url().startsWith(asked.address) && !request.url().startsWith("data:")) seen.foreign.push(request.url());
  });
  return page;
}

// Every page in both themes and both widths: what axe finds serious or critical, and whether it is wider than the screen.
async function accessibility(browser) {
  const found = [];
  for (const colorScheme of ["light", "dark"]) for (const width of [1400, 390]) {
    const page = await visitor(browser, { colorScheme, viewport: { width, height: 900 } });
    for (const path of asked.paths) {
      const where = `${path} ${colorScheme} ${width}`;
      if (path === "/sign-in") await page.context().clearCookies();
      await page.goto(asked.address + path);
      await page.evaluate(axe);
      const { violations } = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
      for (const each of violations) {
        if (["serious", "critical"].includes(each.impact)) found.push(`${where}: ${each.id}: ${each.nodes[0].html}`);
      }
      const beyond = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      if (beyond > 0) found.push(`${where}: ${beyond} pixels wider than the screen`);
    }
    await page.context().close();
  }
  seen.errors = seen.errors.filter((error) => !error.includes("404")); // an address that there is not is among them
  return found;
}

const pictures = (page) => page.evaluate(() => [...document.querySelectorAll("main img")].map((each) => each.naturalWidth));

// A study with a film: the film and its heat map are there, and brightness and zoom change them.
async function film(browser) {
  const page = await visitor(browser);
  await page.goto(asked.address + asked.film, { waitUntil: "networkidle" });
  const widths = await pictures(page);
  await page.fill("#zoom", "300");
  await page.fill("#brightness", "150");
  const style = await page.evaluate(() => document.querySelector(".frame img").style.cssText);
  await page.context().close();
  return { widths, style };
}

// Studies read from the top by keys alone: open, claim, a verdict on each finding, save, read.
async function night(browser) {
  const page = await visitor(browser);
  await page.goto(asked.address + "/");
  const press = async (key) => {
    await Promise.all([page.waitForNavigation(), page.keyboard.press(key)]);
  };
  for (let number = 0; number < asked.studies; number += 1) {
    await page.keyboard.press("j");
    await press("o");
    await press("c");
    for (const key of "12223222222") await page.keyboard.press(key);
    await press("Enter"); // the focus has come to Save
    await press("r");
  }
  const left = await page.locator("#list tbody tr").count();
  await press("u");
  const undone = page.url();
  await page.context().close();
  return { left, undone };
}

// Slips of the finger: on the list a key held down, or pressed while no study has the focus; on a study's page, leaving
// with a review that is not saved. Nor is it lost when the service is away.
async function slips(browser) {
  const page = await visitor(browser);
  await page.goto(asked.address + "/");
  const list = page.url();
  await page.evaluate(() => document.dispatchEvent(new KeyboardEvent("keydown", { key: "r", repeat: true })));
  await page.waitForTimeout(1000);
  const held = page.url() !== list;
  await page.keyboard.press("r");
  const chosen = await page.evaluate(() => document.activeElement.closest("tr")?.rowIndex ?? 0);
  const asks = [];
  page.on("dialog", (dialog) => { asks.push(dialog.type()); dialog.dismiss(); });
  await page.locator("#list a.open").first().click();
  await page.locator("#review").waitFor();
  await page.keyboard.press("1");
  const asking = page.waitForEvent("dialog", { timeout: 20000 });
  await page.keyboard.press("r");
  await asking;
  await page.route("**/review", (route) => route.abort());
  await page.keyboard.press("s");
  await page.locator("#stale").waitFor({ state: "visible" });
  const away = await page.locator("#stale").innerText();
  await page.unroute("**/review");
  seen.errors = seen.errors.filter((error) => !error.includes("ERR_FAILED"));
  const marked = await page.locator("#review input:checked").count();
  await Promise.all([page.waitForNavigation(), page.keyboard.press("s")]);
  const saved = await page.locator(".notice").innerText();
  await page.context().close();
  return { held, chosen, asks, away, marked, saved };
}

// How often an open page asks, by a clock that this visit moves: a list for news, a study for who reads it.
async function pace(browser) {
  const page = await visitor(browser);
  await page.clock.install();
  let count = 0;
  page.on("request", (request) => { if (request.headers()["hx-request"] === "true") count += 1; });
  const asks = async (seconds) => {
    count = 0;
    await page.clock.runFor(1000 * seconds);
    await page.waitForTimeout(300);
    return count;
  };
  await page.goto(asked.address + "/");
  const list = [await asks(asked.refresh - 1), await asks(2)];
  for (let number = 0; number < 3; number += 1) await asks(asked.refresh);
  const stale = await page.locator("#stale").isVisible();
  await page.locator("#list a.open").first().click();
  await page.locator("#claim").waitFor();
  const study = [await asks(asked.refresh - 1), await asks(2)];
  await page.locator("#claim").click();
  await page.locator("#release").waitFor();
  const claim = [await asks(59), await asks(2)];
  await page.locator("#release").click();
  await page.context().close();
  return { list, stale, study, claim };
}

// Refreshes while studies arrive: what has the focus, half-typed text and the place on the screen stay.
async function refreshes(browser) {
  const page = await visitor(browser, { viewport: { width: 1400, height: 500 } });
  await page.goto(asked.address + "/");
  const refresh = async () => {
    const answer = page.waitForResponse((response) => response.request().headers()["hx-request"] === "true");
    await page.evaluate(() => document.dispatchEvent(new Event("visibilitychange")));
    await (await answer).finished();
    await page.waitForTimeout(30);
  };
  const lost = [];
  await page.keyboard.press("/");
  await page.keyboard.type("ACC00");
  await page.evaluate(() => scrollTo(0, 120));
  for (let number = 0; number < asked.refreshes / 2; number += 1) {
    await refresh();
    const now = await page.evaluate(() => [document.activeElement.id, document.activeElement.value, scrollY]);
    if (`${now}` !== "accession,ACC00,120") lost.push(`typing, ${number}: ${now}`);
  }
  await page.locator("#list a.open").nth(4).focus();
  const place = () => page.evaluate(() => {
    const row = document.activeElement.closest("tr");
    return [document.activeElement.id, row && Math.round(row.getBoundingClientRect().top)];
  });
  const before = await place();
  for (let number = 0; number < asked.refreshes / 2; number += 1) {
    await refresh();
    const now = await place();
    if (now[0] !== before[0] || Math.abs(now[1] - before[1]) > 10) lost.push(`row, ${number}: ${now}, before ${before}`);
  }
  const marked = await page.locator("#list tr[data-mark=new]").count();
  await page.context().close();
  return { lost, marked };
}

// The same without JavaScript, by clicks: claim, review, read, undo.
async function plain(browser) {
  const page = await visitor(browser, { javaScriptEnabled: false });
  await page.goto(asked.address + "/");
  await page.locator("#list button.claim").first().click();
  const claimed = await page.locator("#claim-state").innerText();
  await page.locator(".verdict .present").first().click();
  await page.getByText("Save, the rest absent").click();
  const saved = await page.locator(".notice").innerText();
  await page.locator("#read").click();
  const read = await page.locator(".notice").innerText();
  await page.locator("#undo").click();
  await page.context().close();
  return { claimed, saved, read };
}

// The list when the service goes away: a banner, and the list again by itself.
async function away(browser) {
  const page = await visitor(browser);
  await page.goto(asked.address + "/");
  let open = false;
  await page.route("**/*", (route) => (open ? route.continue() : route.fulfill({ status: 503, body: "away" })));
  await page.evaluate(() => document.dispatchEvent(new Event("visibilitychange")));
  await page.locator("#stale").waitFor({ state: "visible" });
  const banner = await page.locator("#stale").innerText();
  open = true;
  await page.evaluate(() => document.dispatchEvent(new Event("visibilitychange")));
  await page.locator("#stale").waitFor({ state: "hidden" });
  seen.errors = seen.errors.filter((error) => !error.includes("503"));
  await page.context().close();
  return { banner };
}

const visits = { accessibility, film, night, slips, pace, refreshes, plain, away };
const browser = await chromium.launch({ executablePath: asked.chromium, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
for (const name of asked.visits) {
  try {
    seen.pages[name] = await visits[name](browser);
  } catch (error) {
    seen.pages[name] = { failed: error.message };
  }
}
await browser.close();
console.log(JSON.stringify(seen));
