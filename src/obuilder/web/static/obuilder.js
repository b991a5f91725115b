// What makes pages live. Without it they can be read all the same.
"use strict";

const root = document.documentElement;
root.classList.add("scripted");

// --- times -----------------------------------------------------------------------------------

function duration(seconds) {
  if (seconds < 10) return `${Math.max(seconds, 0).toFixed(1)} s`;
  const whole = Math.round(seconds);
  for (const [unit, name, part, small] of [[86400, "d", 3600, "h"], [3600, "h", 60, "min"], [60, "min", 1, "s"]]) {
    if (whole >= unit) {
      const rest = Math.floor((whole % unit) / part);
      return `${Math.floor(whole / unit)} ${name}` + (rest ? ` ${rest} ${small}` : "");
    }
  }
  return `${whole} s`;
}

function showTimes() {
  for (const time of document.querySelectorAll("time[data-since]")) {
    time.textContent = duration(Date.now() / 1000 - Number(time.dataset.since));
  }
  for (const time of document.querySelectorAll("time[data-at]:not([title])")) {
    const at = new Date(time.dateTime);
    time.title = at.toLocaleString();
    time.textContent = moment(at);
  }
}

function moment(at) {
  const now = new Date();
  const clock = { hour: "2-digit", minute: "2-digit", second: "2-digit" };
  if (at.toDateString() === now.toDateString()) return at.toLocaleTimeString([], clock);
  const day = { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" };
  return at.toLocaleString([], at.getFullYear() === now.getFullYear() ? day : { ...day, year: "numeric" });
}
showTimes();
setInterval(showTimes, 1000);

// --- colours ---------------------------------------------------------------------------------

const theme = document.getElementById("theme");
theme.addEventListener("change", () => theme.form.requestSubmit());

// --- pages that show what is now ---------------------------------------------------------------

const live = document.querySelector("[data-live]");
const trouble = document.getElementById("trouble");
let shown = live && live.innerHTML;
let tag = "";

function wait(milliseconds) {
  return new Promise((go) => setTimeout(go, milliseconds));
}

function tell(text) {
  if (trouble.textContent !== text) trouble.textContent = text;
  trouble.hidden = !text;
}

async function refresh() {
  const headers = tag ? { Accept: "text/html", "If-None-Match": tag } : { Accept: "text/html" };
  const answer = await fetch(location.href, { headers });
  if (answer.status === 304) return;
  if (answer.redirected) { location.reload(); return; } // the session is over
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const fresh = page.getElementById(live.id);
  if (!fresh) { // it is no more, or the server is ill
    tell(page.querySelector("main p:not([hidden])")?.textContent || `The server answers ${answer.status}.`);
    return;
  }
  tell(page.getElementById("trouble").hidden ? "" : page.getElementById("trouble").textContent);
  if (live.contains(selected())) return; // who copies something keeps it
  tag = answer.headers.get("ETag") || "";
  if (fresh.innerHTML === shown) return;
  shown = fresh.innerHTML;
  keepingPlace(() => live.replaceChildren(...fresh.childNodes));
  showTimes();
}

function lost(since) {
  tell(`This page's server can't be reached: what is here is of ${since.toLocaleTimeString()}.`);
}

async function ask() { // is all well with what a live log comes from?
  const answer = await fetch("/healthz");
  tell(answer.ok ? "" : "The cluster can't be reached: what is here may be old.");
}

async function keepAsking(question, pause) {
  let last = new Date();
  for (;;) {
    const began = performance.now();
    try {
      if (!document.hidden) {
        await question();
        last = new Date();
      }
    } catch {
      lost(last);
    }
    // A server that has much to do is asked less often.
    await wait(Math.max(pause, 10 * (performance.now() - began)));
  }
}

function selected() {
  const selection = document.getSelection();
  return selection && !selection.isCollapsed ? selection.anchorNode : null;
}

function keepingPlace(change) {
  const focused = document.activeElement;
  const address = live.contains(focused) ? focused.getAttribute("href") : null;
  const across = [...live.querySelectorAll(".scroll")].map((box) => box.scrollLeft);
  change();
  live.querySelectorAll(".scroll").forEach((box, index) => { box.scrollLeft = across[index] || 0; });
  if (address) {
    const again = live.querySelector(`a[href="${CSS.escape(address)}"]`);
    if (again) again.focus({ preventScroll: true });
  }
}
if (live) wait(1000 * live.dataset.live).then(() => keepAsking(refresh, 1000 * live.dataset.live));

// --- a live log --------------------------------------------------------------------------------

const log = document.getElementById("log");
const follow = document.getElementById("follow");
const fold = document.getElementById("fold");
const MOST = 5000;
let following = false;
let moving = false;
let lineCount = log ? log.querySelectorAll(".lines > .l").length : 0;

function setFollowing(on) {
  if (!follow) return;
  following = on;
  follow.setAttribute("aria-pressed", String(on));
  toEnd();
}

function toEnd() {
  if (!following || moving) return;
  moving = true;
  requestAnimationFrame(() => {
    moving = false;
    if (following) window.scrollTo({ top: root.scrollHeight });
  });
}

function make(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content;
}

function put(id, html) {
  const place = document.getElementById(id);
  if (place) place.replaceChildren(make(html));
}

function mark(id, status) {
  const step = document.getElementById(id);
  if (step) {
    step.classList.remove("waiting", "running", "cached", "done", "failed", "cancelled");
    step.classList.add(status);
  }
  const node = document.getElementById(`g-${id}`);
  if (node) node.setAttribute("class", status);
}

function trim() { // the oldest lines go, so that a page of a log without end has one
  if (lineCount <= MOST * 1.1) return;
  for (const lines of log.querySelectorAll(".lines")) {
    if (lineCount <= MOST) return;
    const many = Math.min(lineCount - MOST, lines.childElementCount);
    for (let n = 0; n < many; n += 1) lines.firstElementChild.remove();
    lineCount -= many;
    if (many) document.getElementById(lines.id.replace(/-l$/, "-x")).hidden = false;
  }
}

const patches = {
  anew() { log.replaceChildren(); lineCount = 0; },
  plan(_, html) {
    const open = new Map([...document.querySelectorAll("#job-plan > details")].map((one) => [one.className, one.open]));
    put("job-plan", html);
    for (const one of document.querySelectorAll("#job-plan > details")) one.open = open.get(one.className) ?? one.open;
  },
  head(_, html) { put("job-head", html); showTimes(); },
  item(id, html) {
    const empty = document.getElementById("log-empty");
    if (empty) empty.remove();
    const before = id && document.getElementById(id);
    if (before) {
      lineCount -= before.querySelectorAll(".lines > .l").length;
      before.replaceWith(make(html));
    } else log.append(make(html));
  },
  lines(id, html, skipped) {
    const lines = document.getElementById(`${id}-l`);
    if (!lines) return;
    if (skipped) { // more came than anybody could read: what is here begins anew
      lineCount -= lines.childElementCount;
      lines.replaceChildren();
      document.getElementById(`${id}-x`).hidden = false;
    }
    const fresh = make(html);
    lineCount += fresh.childElementCount;
    lines.append(fresh);
    trim();
  },
  open(id, html) { put(`${id}-o`, html); },
  step(id, html, status, message) {
    put(`${id}-h`, html);
    mark(id, status);
    const said = document.getElementById(`${id}-m`);
    if (said && message) { said.textContent = message; said.hidden = false; }
    const step = document.getElementById(id);
    if (step && status === "cached") step.open = false;
    if (step && status === "failed") step.open = true;
  },
  say(_, text) { document.getElementById("log-status").textContent = text; },
};

function followLog() {
  const source = new EventSource(`${log.dataset.liveLog}?after=${log.dataset.after}`);
  source.onmessage = (event) => {
    if (event.lastEventId) log.dataset.after = event.lastEventId;
    for (const [kind, ...rest] of JSON.parse(event.data)) patches[kind](...rest);
    toEnd();
  };
  source.addEventListener("end", () => source.close());
  source.onerror = () => { // a lost connection it makes again by itself, not one that was refused
    lost(new Date());
    if (source.readyState === EventSource.CLOSED) wait(3000).then(followLog);
  };
}

function toLine() {
  document.querySelectorAll(".l.target").forEach((line) => line.classList.remove("target"));
  const found = /^#(L(\d+)|s\d+)$/.exec(location.hash);
  if (!log || !found) return;
  const target = document.getElementById(found[1]);
  if (target) {
    setFollowing(false);
    const step = target.closest("details");
    if (step) step.open = true;
    if (found[2]) target.classList.add("target");
    target.scrollIntoView({ block: found[2] ? "center" : "start" });
  } else if (found[2] && Number(found[2]) < Number(log.dataset.first) && !location.search) {
    location.replace(`?line=${found[2]}${location.hash}`);
  }
}

if (log) {
  follow?.addEventListener("click", () => setFollowing(!following));
  fold.addEventListener("click", () => {
    const folded = fold.getAttribute("aria-pressed") !== "true";
    fold.setAttribute("aria-pressed", String(folded));
    for (const step of log.querySelectorAll("details.step")) step.open = !folded;
  });
  let [place, tall] = [window.scrollY, root.scrollHeight];
  window.addEventListener("scroll", () => { // who scrolls up reads: but not where lines went
    if (following && window.scrollY < place - 4 && root.scrollHeight >= tall) setFollowing(false);
    [place, tall] = [window.scrollY, root.scrollHeight];
  }, { passive: true });
  if (log.dataset.liveLog) {
    followLog();
    keepAsking(ask, 3000);
    if (!location.hash) setFollowing(true);
  }
  toLine();
  window.addEventListener("hashchange", toLine);
}

// --- keys --------------------------------------------------------------------------------------

const help = document.getElementById("help");
const keysOn = document.getElementById("keys-on");
document.getElementById("help-open").addEventListener("click", () => help.showModal());
try {
  keysOn.checked = localStorage.getItem("keys") !== "off";
  keysOn.addEventListener("change", () => localStorage.setItem("keys", keysOn.checked ? "on" : "off"));
} catch {
  keysOn.checked = true; // no storage: they are on until the page is left
}

function toStep(by) {
  const heads = [...log.querySelectorAll("details.step > summary")];
  if (!heads.length) return;
  const at = heads.indexOf(document.activeElement);
  const next = at < 0 ? (by > 0 ? 0 : heads.length - 1) : at + by;
  const head = heads[Math.min(Math.max(next, 0), heads.length - 1)];
  setFollowing(false);
  head.focus();
}

let before = "";
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea, dialog");
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "?") help.showModal();
  if (!keysOn.checked) return;
  const key = before === "g" ? `g ${event.key}` : event.key;
  before = event.key;
  const target = [...document.querySelectorAll("[data-key]")].find((one) => one.dataset.key === key);
  if (target && target.matches("a")) target.click();
  else if (target) { event.preventDefault(); target.focus(); }
  else if (key === "/") location.assign("/jobs");
  else if (log && key === "f") setFollowing(!following);
  else if (log && key === "o") fold.click();
  else if (log && (key === "[" || key === "]")) toStep(key === "]" ? 1 : -1);
});
