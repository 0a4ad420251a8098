"use strict";
// All text from a model, a policy or an endpoint is set by textContent.

const EVERY = 2000; // milliseconds between two requests of /api/live
const $ = (id) => document.getElementById(id);
const HUES = ["hue1", "hue0", "hue2", "hue3", "hue4", "hue5"];
const OUTCOMES = { pass: "passed", fail: "failed", unknown: "unknown" };

function make(tag, text, className) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
}

function put(id, text, absent) {
  $(id).textContent = text === null ? absent : text;
  $(id).classList.toggle("absent", text === null);
}

function digits(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)));
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return null;
  return seconds < 1 ? `${digits(1000 * seconds)} ms` : `${digits(seconds)} s`;
}

function money(value, currency) {
  return value === null || value === undefined ? null : `${value === 0 ? "0" : value < 0.01 ? value.toPrecision(2) : value.toFixed(2)} ${currency}`;
}

function plural(n, word) {
  return `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
}

function tierName(tier) {
  return tier === "device" ? "this device" : tier;
}

function showShare(live) {
  const share = live.answered ? live.local / live.answered : null;
  put("share", share === null ? null : `${Math.round(100 * share)} %`, "no answer yet");
  $("share-of").textContent = live.answered ? `of ${plural(live.answered, "answer")}` : "";
  const names = ["device", ...live.endpoints.map((t) => t.name)];
  const hue = (tier) => HUES[Math.max(0, names.indexOf(tier)) % HUES.length];
  const tiers = Object.entries(live.tiers).sort((a, b) => names.indexOf(a[0]) - names.indexOf(b[0]));
  $("bar").replaceChildren(...tiers.map(([tier, n]) => {
    const part = make("span", undefined, hue(tier));
    part.style.flexGrow = n;
    part.title = `${tierName(tier)}: ${n}`;
    return part;
  }));
  $("legend").replaceChildren(...tiers.map(([tier, n]) => {
    const entry = make("span");
    entry.append(make("i", undefined, hue(tier)), `${tierName(tier)} ${n.toLocaleString("en")}`);
    return entry;
  }));
  $("lead").textContent = share === null
    ? "Ready. Nothing has been asked yet."
    : `${live.local.toLocaleString("en")} of ${plural(live.answered, "answer")} stayed on this device`
      + (live.degraded ? `, ${live.degraded} of them despite a failed check.` : ".");
}

function showLeft(live) {
  const most = Math.max(1, ...live.left.map((row) => row.count));
  $("left").replaceChildren(...live.left.map((row) => {
    const rung = make("div", undefined, "rung");
    const track = make("div", undefined, "track");
    const fill = make("div", undefined, "fill");
    fill.style.width = `${(100 * row.count) / most}%`;
    track.append(fill);
    rung.append(make("span", row.words), make("b", row.count.toLocaleString("en")), track);
    return rung;
  }));
  if (!live.left.length) $("left").append(make("p", "none yet", "absent"));
  const refused = live.refused.map((row) => `${row.count} ${row.words}`).join(", ");
  $("refused").textContent = refused ? `Not answered: ${refused}.` : "";
}

function showTimes(live) {
  for (const [name, found] of [["first", live.seconds_to_first], ["whole", live.seconds]]) {
    for (const p of ["p50", "p95"]) put(`${name}-${p}`, found ? duration(found[p]) : null, "not yet");
  }
  $("times-of").textContent = live.seconds ? `The last ${plural(live.seconds.n, "answer")}, waiting included.` : "";
}

function showCosts(live) {
  put("spent", money(live.cost, live.currency), "");
  put("saved", money(live.spared, live.currency), "no price known");
  const today = money(live.spent_today, live.currency);
  put("today", today, "not counted");
  if (today && live.per_day !== null) $("today").append(make("small", `of ${digits(live.per_day)} per day`));
  put("joules", live.joules === null ? null : `${digits(live.joules)} J`, live.meter ? "none yet" : "no meter");
}

function showNow(live) {
  put("active", `${live.active} of ${live.queue}`, "");
  put("away", live.turned_away.toLocaleString("en"), "");
  $("queue-fill").style.width = `${(100 * live.active) / live.queue}%`;
  $("endpoints").replaceChildren(...live.endpoints.map((t) => {
    const row = make("li");
    row.append(make("span", undefined, `dot ${t.down ? "down" : "up"}`), make("b", t.name), make("small", `${t.model}, ${t.trust}`));
    row.append(make("span", t.down || "available", "state"));
    return row;
  }));
  if (!live.endpoints.length) $("endpoints").append(make("li", "No endpoint: everything stays on this device."));
  $("drift").textContent = live.drift ? `Scores of local answers: ${live.drift}` : "";
  $("drift").classList.toggle("fail", live.stale);
}

async function look() {
  try {
    const response = await fetch("/api/live", { cache: "no-store" });
    if (!response.ok) throw new Error(`the server answered ${response.status}`);
    const live = await response.json();
    $("policy").textContent = `· ${live.policy}`;
    $("model").textContent = live.model;
    document.title = `${live.model} · edgekit serve`;
    for (const show of [showShare, showLeft, showTimes, showCosts, showNow]) show(live);
    $("foot").textContent = "This page loads nothing from other servers. All numbers are since the server's start."
      + (live.history_lost ? ` The history lost ${plural(live.history_lost, "row")}.` : "");
  } catch (error) {
    $("lead").textContent = `The server cannot be reached: ${error.message}`;
  }
}

function showVerdict(verdict) {
  $("result").hidden = false;
  const tier = verdict.tier;
  $("who").textContent = tier ? tierName(tier) + (verdict.degraded ? ", degraded" : "") : "nobody";
  $("who-dot").className = `dot ${tier === "device" ? "hue1" : tier ? "hue0" : "hue5"}`;
  $("why").textContent = verdict.reason;
  const findings = verdict.findings || [];
  const cell = (f, value) => (value === null ? "" : `${digits(value)}${f.unit ? ` ${f.unit}` : ""}`);
  $("checks").hidden = !findings.length;
  $("checks").tBodies[0].replaceChildren(...findings.map((f) => {
    const row = make("tr");
    const name = make("th", f.check);
    name.scope = "row";
    row.append(name, make("td", tierName(f.tier)), make("td", OUTCOMES[f.outcome] || f.outcome, f.outcome), make("td", f.detail), make("td", cell(f, f.value), "number"), make("td", cell(f, f.limit), "number"));
    return row;
  }));
}

function showError(data) {
  if (data.edgekit) showVerdict(data.edgekit);
  $("result").hidden = false;
  if (!data.edgekit) {
    $("who").textContent = "no answer";
    $("who-dot").className = "dot hue5";
    $("why").textContent = data.error.code || "";
    $("checks").hidden = true;
  }
  $("answer").textContent = data.error.message;
}

function question() {
  const body = { model: "edgekit", messages: [{ role: "user", content: $("prompt").value }] };
  if ($("override").value) body.edgekit = { override: $("override").value };
  return body;
}

function clear() {
  for (const id of ["answer", "took", "who", "why"]) $(id).textContent = "";
  $("checks").hidden = true;
}

async function post(path, body, signal) {
  const response = await fetch(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal });
  if (!response.ok) {
    showError(await response.json());
    return null;
  }
  return response;
}

function take(data) {
  if (data.error) return showError(data);
  const delta = data.choices.length ? data.choices[0].delta : {};
  if (delta.content) $("answer").append(delta.content);
  if (delta.tool_calls) $("answer").append(JSON.stringify(delta.tool_calls, null, 2));
  if (data.edgekit) {
    showVerdict(data.edgekit);
    const parts = [`whole answer ${duration(data.edgekit.seconds)}`];
    if (data.edgekit.seconds_to_first !== null) parts.unshift(`first token ${duration(data.edgekit.seconds_to_first)}`);
    if (data.edgekit.wrong !== null) parts.push(`probability of being wrong ${digits(data.edgekit.wrong)}`);
    parts.push(`cost ${digits(data.edgekit.cost)}`);
    $("took").textContent = parts.join(" · ");
  }
  return undefined;
}

async function read(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const line of events) {
      const data = line.slice("data: ".length);
      if (data !== "[DONE]") take(JSON.parse(data));
    }
  }
}

let running = null;

async function ask(event) {
  event.preventDefault();
  if (running) return running.abort();
  running = new AbortController();
  $("ask").textContent = "Stop";
  $("explain").disabled = true;
  clear();
  try {
    const response = await post("/v1/chat/completions", { ...question(), stream: true }, running.signal);
    if (response) {
      showVerdict(JSON.parse(response.headers.get("x-edgekit-verdict")));
      await read(response);
    }
  } catch (error) {
    if (error.name !== "AbortError") showError({ error: { message: `the connection failed: ${error.message}` } });
  } finally {
    running = null;
    $("ask").textContent = "Ask";
    $("explain").disabled = false;
    look();
  }
  return undefined;
}

async function explain() {
  if (!$("form").reportValidity()) return;
  clear();
  try {
    const response = await post("/api/explain", question());
    if (response) {
      showVerdict(await response.json());
      $("took").textContent = "Nothing was sent.";
    }
  } catch (error) {
    showError({ error: { message: `the connection failed: ${error.message}` } });
  }
}

$("form").addEventListener("submit", ask);
$("explain").addEventListener("click", explain);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
look();
setInterval(look, EVERY);
