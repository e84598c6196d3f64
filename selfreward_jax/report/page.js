"use strict";

// Decodes a block of the page: JSON, compressed by gzip, as base64.
async function unpack(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

// An element that contains text; text is never parsed as markup.
function make(tag, className, ...children) {
  const element = document.createElement(tag);
  element.className = className;
  element.append(...children.map((child) => (typeof child === "number" ? String(child) : child)));
  return element;
}

// The rows that match a search, fifty at a time; a row is filled in when it is opened.
class List {
  static STEP = 50;

  constructor(root, rows, head, fill, noun) {
    Object.assign(this, { rows, head, fill, noun, matching: rows });
    this.list = root.querySelector(".list");
    this.count = root.querySelector("output");
    this.more = root.querySelector(".more");
    this.more.addEventListener("click", () => this.grow());
  }

  show(matching) {
    this.matching = matching;
    this.list.replaceChildren();
    this.grow();
  }

  grow() {
    const start = this.list.childElementCount;
    for (const row of this.matching.slice(start, start + List.STEP)) this.list.append(this.entry(row));
    const shown = this.list.childElementCount;
    this.count.value = `${this.matching.length.toLocaleString("en")} of ${this.rows.length.toLocaleString("en")} ${this.noun}`;
    this.more.hidden = shown >= this.matching.length;
  }

  entry(row) {
    const body = make("div", "");
    const entry = make("details", "", make("summary", "", ...this.head(row)), body);
    entry.addEventListener("toggle", () => {
      if (entry.open && !body.childElementCount) this.fill(row, body);
    });
    return entry;
  }
}

const score = (value) => String(Math.round(value * 100) / 100);
const quoted = (text) => `'${text.replaceAll("'", `'"'"'`)}'`; // for a shell, as shlex.quote does
const content = (text) => make("div", "content", text);
const command = (words) => make("code", "", ...words.flatMap((word) => [make("span", "", word), " "]).slice(0, -1));
const prompt = (text) => make("span", "grow", text.replaceAll("\n", " "));

function side(name, className, text, votes) {
  const section = make("section", `side ${className}`, make("h4", "", name), content(text || "(nothing)"));
  votes.forEach(([value, reasons], i) => {
    section.append(make("div", "vote", make("b", "", `vote ${i + 1}: ${value === null ? "no score" : score(value)}`), content(reasons)));
  });
  return section;
}

async function browsePairs(root) {
  const columns = await unpack("block-pairs");
  const rows = columns.id.map((id, i) => {
    const row = { i, id, round: id.split("/")[0] };
    for (const name of Object.keys(columns)) row[name] = columns[name][i];
    row.gap = row.chosen_score - row.rejected_score;
    row.text = `${id}\n${row.prompt}\n${row.chosen}\n${row.rejected}`.toLowerCase();
    return row;
  });
  const perBlock = Number(root.dataset.perBlock);
  const blocks = new Map();
  const votesOf = async (i) => {
    const id = `block-votes-${Math.floor(i / perBlock)}`;
    if (!document.getElementById(id)) return null;
    if (!blocks.has(id)) blocks.set(id, unpack(id));
    return (await blocks.get(id))[i % perBlock];
  };
  const head = (row) => [make("code", "", row.id), prompt(row.prompt), make("span", "", `${score(row.chosen_score)} : ${score(row.rejected_score)}`)];
  const fill = async (row, body) => {
    const votes = await votesOf(row.i);
    const [chosen, rejected] = votes ?? [[], []];
    body.replaceChildren(
      content(row.prompt),
      make("div", "sides",
        side(`chosen, ${score(row.chosen_score)}`, "chosen", row.chosen, chosen),
        side(`rejected, ${score(row.rejected_score)}`, "rejected", row.rejected, rejected)),
      make("p", "soft", votes ? "All answers, votes and keys: " : "This page has no room for its votes. All answers, votes and keys: ",
        command(["selfreward-jax", "explain", `--workdir=${root.dataset.workdir}`, `--pair=${quoted(row.id)}`])));
  };
  const list = new List(root, rows, head, fill, "pairs");
  const [search, round, gap, order] = ["search", "round", "gap", "order"].map((name) => root.querySelector(`[name=${name}]`));
  const update = () => {
    const query = search.value.toLowerCase(), minGap = Number(gap.value) || 0;
    const matching = rows.filter((row) => row.gap >= minGap && (!round.value || row.round === round.value) && row.text.includes(query));
    if (order.value === "widest") matching.sort((a, b) => b.gap - a.gap || a.i - b.i);
    if (order.value === "closest") matching.sort((a, b) => a.gap - b.gap || a.i - b.i);
    list.show(matching);
  };
  for (const control of [search, round, gap, order]) control.addEventListener("input", update);
  update();
}

async function browseAnswers(root) {
  const table = await unpack("block-answers");
  const rows = table.prompts.map((text, i) => ({ prompt: text, responses: table.responses[i], text: `${text}\n${table.responses[i].flat().join("\n")}`.toLowerCase() }));
  const fill = (row, body) => body.replaceChildren(content(row.prompt), make("div", "sides",
    ...row.responses.map((texts, i) => make("section", "side", make("h4", "", table.models[i].toUpperCase()), ...texts.map((text) => content(text || "(nothing)"))))));
  const list = new List(root, rows, (row) => [prompt(row.prompt)], fill, "prompts");
  const search = root.querySelector("[name=search]");
  const update = () => list.show(rows.filter((row) => row.text.includes(search.value.toLowerCase())));
  search.addEventListener("input", update);
  update();
}

for (const [id, browse] of [["pairs", browsePairs], ["answers", browseAnswers]]) {
  const root = document.getElementById(id);
  if (!root) continue;
  browse(root).then(() => { root.dataset.ready = "yes"; }, () => {
    root.querySelector("output").value = "This browser cannot decompress the rows (it has no DecompressionStream). They are in the run's pairs.jsonl and eval_answers.jsonl.";
  });
}

// The page of a run in progress: how old it is, and a reload, unless the reader would lose a search or an open pair.
const { reloadSeconds, writtenAt } = document.body.dataset;
if (reloadSeconds) {
  const busy = () => document.hidden || document.querySelector("details[open]") || document.activeElement?.matches("input, select")
    || [...document.querySelectorAll("input")].some((input) => input.value !== input.defaultValue)
    || [...document.querySelectorAll("select")].some((select) => select.selectedIndex > 0);
  const showAge = () => {
    const minutes = Math.floor((Date.now() / 1000 - Number(writtenAt)) / 60);
    const stopped = minutes >= 60 ? "; if the run has ended, write the page again: selfreward-jax report" : "";
    document.getElementById("age").textContent = minutes > 0 ? `, ${minutes.toLocaleString("en")} min ago${stopped}` : "";
  };
  showAge();
  setInterval(() => { showAge(); if (!busy()) location.reload(); }, 1000 * Number(reloadSeconds));
}
