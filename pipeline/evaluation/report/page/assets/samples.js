// The viewer: a list of articles by filter, and everything about one of them.
const FILTERS = [["all", "All"], ["loss", "Largest loss"], ["gain", "Largest gain"], ["lost", "Lost"], ["won", "Won"], ["tie", "Tie"], ["cut_off", "Cut off"], ["repeated", "Repeated"], ["unread", "Unreadable answers"]];
const FLAG = { cut_off: "cut off", repeated: "repeats itself", unread: "unreadable answer" };
const SPLIT = { eval: "held-out", train: "training" };
const LETTERS = "ABCDEFGHIJ";
const PAGE = 50;

const view = { only: "all", round: 0, split: "eval", text: "", offset: 0, countsAnswers: true, items: [], total: 0, open: null, question: null, last: 0 };
const parts = {};

function samplesSection(samples, { rule, counts_answers }) {
  if (!samples || !(samples.total || samples.items)) return null;
  if (!samples.rounds.includes(Number(view.round))) view.round = samples.rounds.at(-1) ?? 0;
  view.countsAnswers = counts_answers;
  const embeddedOnly = samples.items && samples.items.length < samples.total;
  const note = embeddedOnly
    ? `${count(samples.items.length)} of ${count(samples.total)} articles are in this file, those with the largest losses and gains among them. rondo view shows all.`
    : "Every article with its questions, and the summaries of every round side by side. Test articles are left out: nobody should choose by them.";
  const said = el("span", null, note, rule && el("span", { class: "rule" }, "How the judge's scores decide between two summaries: ", data(rule)));
  parts.search = el("input", { class: "search", type: "search", placeholder: "Search by id or text  ( / )", "aria-label": "Search by id or text", value: view.text, oninput: later(() => change({ text: parts.search.value.trim() })) });
  const pick = (name, label, options) => el("select", { "aria-label": label, onchange: (event) => change({ [name]: event.target.value }) }, options.map(([value, text]) => el("option", { value, selected: String(view[name]) === String(value) }, text)));
  parts.chips = el("fieldset", { class: "chips", "aria-label": "Filter" }, FILTERS.map(([name, label]) =>
    el("button", { class: "chip", type: "button", "data-filter": name, "aria-pressed": String(view.only === name), onclick: () => change({ only: name }) }, label, el("span", { class: "count" }))));
  parts.list = el("ol", { "aria-label": "Articles" });
  parts.pages = el("div", { class: "pages" });
  parts.state = el("div", { "aria-live": "polite" });
  parts.detail = el("div", { class: "detail" });
  const built = section("samples", "Articles and summaries", said,
    el("div", { class: "tools" },
      el("div", { class: "searching" }, parts.search),
      samples.rounds.length > 0 && (parts.round = pick("round", "Round to compare with the base", samples.rounds.map((number) => [number, `Round ${number} against base`]))),
      (parts.split = pick("split", "Which articles", [["eval", "Held-out articles"], ["train", "Training articles"], ["", "All articles"]])),
      parts.chips),
    el("div", { class: "viewer" }, el("div", { class: "list" }, parts.pages, parts.state, parts.list), parts.detail));
  return built;
}

function later(action) {
  let timer;
  return () => { clearTimeout(timer); timer = setTimeout(action, 250); };
}

function change(values) {
  Object.assign(view, { offset: 0, open: null }, values);
  showChoices();
  return load();
}

function showChoices() {
  for (const chip of parts.chips.children) chip.setAttribute("aria-pressed", String(chip.dataset.filter === view.only));
  parts.split.value = view.split;
  if (parts.round) parts.round.value = view.round;
  parts.search.value = view.text;
}

// The address names the article and the filter, so that a reload or a link shows the same.
const REMEMBERED = ["only", "round", "split", "text", "offset", "open"];

function remember() {
  const values = new URLSearchParams(REMEMBERED.map((name) => [name, view[name] ?? ""]));
  history.replaceState(null, "", `#samples?${values}`);
}

function recall() {
  const [name, query] = location.hash.slice(1).split("?");
  if (name !== "samples" || !query) return;
  for (const [key, value] of new URLSearchParams(query)) if (REMEMBERED.includes(key)) view[key] = value;
  view.round = Number(view.round) || 0;
  view.offset = Math.max(0, Math.floor(Number(view.offset) / PAGE) * PAGE) || 0;
  view.open = view.open || null;
  if (!FILTERS.some(([only]) => only === view.only)) view.only = "all";
  if (!["eval", "train", ""].includes(view.split)) view.split = "eval";
}

async function load(openPlace = 0) {
  const call = ++view.last;
  const { only, round, split, text, offset } = view;
  let answer;
  try {
    answer = await source.list({ only, round, split, text, offset, limit: PAGE });
  } catch (error) {
    refill(parts.state, el("p", { class: "empty" }, data(`The list cannot be read: ${error.message}`)));
    return;
  }
  if (call !== view.last) return; // another filter was chosen meanwhile
  view.items = answer.items;
  view.total = answer.total;
  for (const chip of parts.chips.children) chip.querySelector(".count").textContent = answer.counts ? ` ${count(answer.counts[chip.dataset.filter])}` : "";
  showList(answer.progress);
  if (answer.progress !== null) setTimeout(() => call === view.last && load(), 700);
  const isOpen = view.items.some((item) => item.id === view.open);
  if (!isOpen && view.items.length) await open(view.items[openPlace < 0 ? view.items.length - 1 : openPlace].id);
  else if (view.items.length) await open(view.open);
  else refill(parts.detail, el("div", { class: "empty" }, el("p", null, text ? "No article of this choice has all these words." : "No article passes this filter."),
    (text && (only !== "all" || split)) && el("button", { class: "chip", type: "button", onclick: () => change({ only: "all", split: "" }) }, "Search all articles")));
}

function showList(progress) {
  const end = Math.min(view.offset + PAGE, view.total);
  const turn = (by, label, text) => el("button", { class: "chip", type: "button", "aria-label": label, disabled: by < 0 ? view.offset === 0 : end >= view.total, onclick: () => { view.offset += by; load(); } }, text);
  refill(parts.pages, el("span", null, view.total ? `${count(view.offset + 1)} – ${count(end)} of ${count(view.total)}` : "none"), el("span", null, turn(-PAGE, "Previous page", "‹"), " ", turn(PAGE, "Next page", "›")));
  refill(parts.state, progress !== null && el("p", { class: "muted" }, `Reading the run: ${percent(progress, 0)}. Filters work when it is done.`));
  parts.list.hidden = !view.items.length;
  refill(parts.list, view.items.map((item) => el("li", null,
    el("button", { type: "button", "data-id": item.id, onclick: () => open(item.id, true) },
      el("span", { class: "tags" }, verdictTag(item), el("span", null, data(item.id, "span")), view.split === "" && el("span", null, SPLIT[item.split] || item.split), item.flags.map((flag) => el("span", { class: "flag" }, FLAG[flag]))),
      item.values || item.words ? el("span", { class: "change" }, changeWords(item)) : null,
      data(item.title || item.id, "span", { class: "data title" })))));
}

const WORDS = { 1: ["won", "won", "won against"], 0: ["tied", "tie", "tied with"], "-1": ["lost", "lost", "lost to"] };

function verdictTag({ verdict }) {
  const words = WORDS[verdict];
  return words ? el("span", { class: words[0] }, words[1]) : null;
}

// The judge's scores and the lengths, from the base's summary to that of the round.
function changeWords({ values, words }, total = null) {
  const change = ([from, to], unit) => `${from === to ? short(to) : `${short(from)} → ${short(to)}`} ${unit}`;
  const scores = values && (view.countsAnswers ? change(values, total ? `of ${total} right` : "right") : `score ${change(values, "")}`.trim());
  return [scores, words && change(words, "words")].filter(Boolean).join(", ");
}

async function open(id, isChosen = false) {
  view.open = id;
  view.question = null;
  remember();
  for (const button of parts.list.querySelectorAll("button")) {
    const isCurrent = button.dataset.id === id;
    button.toggleAttribute("aria-current", isCurrent);
    if (isCurrent) button.setAttribute("aria-current", "true");
    if (isCurrent) parts.list.scrollTop = Math.max(0, button.parentElement.offsetTop - parts.list.offsetTop - parts.list.clientHeight / 3);
  }
  if (!parts.detail.hasChildNodes()) refill(parts.detail, el("p", { class: "empty" }, "Reading the article …"));
  let article;
  try {
    article = await source.article(id);
  } catch (error) {
    refill(parts.detail, el("p", { class: "empty" }, data(`The article cannot be read: ${error.message}`)));
    return;
  }
  if (view.open !== id) return;
  showArticle(article);
  if (isChosen && window.innerWidth <= 860) parts.detail.scrollIntoView();
}

async function step(by) {
  const place = view.items.findIndex((item) => item.id === view.open) + by;
  if (place >= 0 && place < view.items.length) return open(view.items[place].id);
  const offset = view.offset + by * PAGE;
  if (offset < 0 || offset >= view.total) return;
  view.offset = offset;
  view.open = null;
  await load(by < 0 ? -1 : 0);
}

document.addEventListener("keydown", (event) => {
  if (!parts.list || event.ctrlKey || event.metaKey || event.altKey) return;
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  const by = { j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1 }[event.key];
  if (by && event.target.closest(".scroll") && event.key.startsWith("Arrow")) return; // it scrolls a table
  if (by) { event.preventDefault(); step(by); }
  if (event.key === "/") { event.preventDefault(); parts.search.focus(); }
});

// One article

function showArticle(article) {
  const chosen = article.verdicts[view.round] || { verdict: null, values: null, words: null, flags: [] };
  const place = view.offset + view.items.findIndex((item) => item.id === article.id);
  const move = (by, text, key) => el("button", { class: "chip", type: "button", disabled: place + by < 0 || place + by >= view.total, onclick: () => step(by) }, text, " ", el("kbd", null, key));
  // What is compared comes first: the base, and the round that was chosen.
  const order = (writer) => (writer.round === 0 ? 0 : String(writer.round) === String(view.round) ? 1 : writer.round ? 2 : 3);
  article = { ...article, writers: [...article.writers].sort((a, b) => order(a) - order(b)) };
  const marked = []; // elements whose text is marked again when a question is chosen
  const text = (value, attributes, hasPassage) => {
    const node = el("div", { dir: "auto", ...attributes }, value);
    marked.push([node, value, hasPassage]);
    return node;
  };
  const mark = () => marked.forEach(([node, value, hasPassage]) => refill(node, highlighted(value, view.question, hasPassage)));
  const choose = (question) => { view.question = view.question === question ? null : question; mark(); pressed(); const first = parts.detail.querySelector(".article mark"); if (first) showInside(first); };
  const asks = [];
  const pressed = () => asks.forEach(([button, question]) => button.setAttribute("aria-pressed", String(question === view.question)));
  const ask = (question, ...children) => { const button = el("button", { class: "ask", type: "button", "aria-pressed": "false", onclick: () => choose(question) }, children); asks.push([button, question]); return button; };

  refill(parts.detail, 
    el("header", null,
      el("div", null, el("h3", { class: "name" }, verdictSentence(article, chosen)), el("p", { class: "muted id" }, "Article ", data(article.id))),
      el("div", { class: "steps" }, move(-1, "Previous", "k"), move(1, "Next", "j"))),
    article.writers.length ? el("div", { class: "block" }, el("h3", null, "Summaries"), el("div", { class: "cards" }, article.writers.map((writer) => writerCard(writer, article, text)))) : null,
    el("h3", null, `${SPLIT[article.split] === "training" ? "Training" : "Held-out"} article`),
    text(article.article, { class: "article data", tabindex: "0", role: "region", "aria-label": "Article" }, true),
    questionsBlock("Questions", "answers", article.questions, article, "score", ask),
    questionsBlock("Questions of the second judge", "answers", article.second_questions, article, "second", ask),
    passagesBlock(article, ask),
    article.samples.map((sample) => samplesBlock(sample, article, text)));
}

function showInside(node) {
  const box = node.closest(".article");
  box.scrollTop = node.offsetTop - box.offsetTop - box.clientHeight / 3;
}

function verdictSentence(article, chosen) {
  const words = WORDS[chosen.verdict];
  if (!words) return el("span", { class: "muted" }, article.split === "train" ? "Training article: its summaries were paired, not compared with the base" : `Round ${view.round} was not compared with the base here`);
  const changes = changeWords(chosen, article.questions.length);
  return el("span", { class: words[0] }, `Round ${view.round} ${words[2]} the base${changes && `: ${changes}`}`);
}

function scoreWords(score, questions) {
  if (!score) return "not judged";
  const counts = questions.length > 0 && score.answers.length > 0;
  const judged = counts ? `${score.correct} of ${questions.length} right` : score.value === null ? "no score" : `score ${short(score.value)}`;
  return `${judged}, ${count(score.words)} words${score.unread ? `, ${score.unread} unreadable` : ""}`;
}

function card(title, badge, summary, article, text, isChosen, ...more) {
  const faults = [...(summary.cut_off ? ["cut off by the token limit"] : []), ...(summary.score ? summary.score.faults : [])];
  return el("article", { class: `card${isChosen ? " chosen" : ""}` },
    el("h4", null, data(title, "span"), badge),
    el("p", { class: "meta" }, scoreWords(summary.score, article.questions), summary.second && ` · 2nd judge: ${scoreWords(summary.second, article.second_questions).split(",")[0]}`, faults.length ? [" · ", el("span", { class: "flag" }, data(faults.join(", ")))] : null),
    summary.thought ? el("details", null, el("summary", null, "Thought"), text(summary.thought, { class: "text thought data" })) : null,
    summary.text.trim() ? text(summary.text.trim(), { class: "text data" }) : el("p", { class: "muted" }, "(empty)"), more);
}

function writerCard(writer, article, text) {
  const verdict = writer.round ? article.verdicts[writer.round] : null;
  return card(writer.name, verdict && verdictTag(verdict), writer, article, text, String(writer.round) === String(view.round) && writer.round > 0);
}

// Of each question: the key, and what each writer's summary lets the judge answer.
function questionsBlock(title, what, questions, article, key, ask) {
  const writers = article.writers.length ? article.writers : article.samples.flatMap((sample) => sample.summaries.map((summary, i) => ({ ...summary, name: `${sample.round} #${i}` })));
  const judged = writers.filter((writer) => writer[key]);
  if (!questions.length) return null;
  return el("div", { class: "block" }, el("h3", null, title),
    el("p", { class: "muted" }, "What the judge answers from each summary alone. Choose a question to mark, in the texts, the sentence that it is about and its right option. Shaded: only one of the base and the chosen round is right."),
    table(title, ["question", ...judged.map((writer) => data(writer.name))], questions.map((question, i) => el("tr", { class: differs(judged, key, i, question) ? "differs" : null },
      el("th", { scope: "row" }, ask(question, data(question.text, "span"), el("span", { class: "options" }, question.options.map((option, place) => [" ", el(place === question.answer ? "b" : "span", null, `${LETTERS[place]} `, data(option)), " "])))),
      judged.map((writer) => el("td", null, answerCell(writer[key].answers[i], question)))))));
}

function differs(judged, key, i, question) {
  const [base, ours] = [0, view.round].map((round) => judged.find((writer) => String(writer.round) === String(round)));
  const isRight = (writer) => writer[key].answers[i] === LETTERS[question.answer];
  return base && ours && isRight(base) !== isRight(ours);
}

function answerCell(answer, question) {
  if (answer === null || answer === undefined) return el("span", { class: "wrong" }, "unreadable");
  if (answer === LETTERS[question.answer]) return el("span", { class: "right" }, `✓ ${answer}`);
  return LETTERS.includes(answer) ? el("span", { class: "wrong" }, `✗ ${answer}`) : el("span", { class: "none" }, answer);
}

function passagesBlock(article, ask) {
  const { passages } = article;
  const judged = article.writers.filter((writer) => writer.score && writer.score.items.length === passages.length);
  if (!passages.length || !judged.length) return null;
  return el("div", { class: "block" }, el("h3", null, "Key sentences"), el("p", { class: "muted" }, "The judge's score of each summary, by the sentence that it should cover. Choose a sentence to mark it."),
    table("Key sentences", ["sentence", ...judged.map((writer) => data(writer.name))], passages.map((passage, i) => {
      const best = Math.max(...judged.map((writer) => writer.score.items[i] ?? -Infinity));
      return el("tr", null, el("th", { scope: "row" }, ask({ passage, options: [], answer: 0 }, data(passage, "span"))), judged.map((writer) => el("td", null, el("span", { class: writer.score.items[i] === best ? "right" : null }, short(writer.score.items[i])))));
    })));
}

function samplesBlock(sample, article, text) {
  const { summaries, pairs } = sample;
  const role = (i) => {
    const beaten = pairs.filter((pair) => pair.chosen === i).map((pair) => `#${pair.rejected}`);
    const won = pairs.filter((pair) => pair.rejected === i).map((pair) => `#${pair.chosen}`);
    return [beaten.length ? el("p", { class: "meta right" }, `chosen over ${beaten.join(", ")}`) : null, won.length ? el("p", { class: "meta wrong" }, `rejected for ${won.join(", ")}`) : null];
  };
  return el("details", { class: "block", open: article.split === "train" && String(sample.round) === String(view.round) },
    el("summary", null, `Round ${sample.round}: ${summaries.length} samples, ${pairs.length} pair${pairs.length === 1 ? "" : "s"} to train on`),
    pairs.length ? el("ul", { class: "pairs" }, pairs.map((pair) => el("li", null, el("b", null, `#${pair.chosen} over #${pair.rejected}`), ": ", data(pair.reason || ""), pair.weight === null ? "" : ` (weight ${short(pair.weight)})`))) : el("p", { class: "muted" }, "No pair: all ties, or too few usable summaries."),
    el("div", { class: "cards" }, summaries.map((summary, i) => card(`#${i}${summary.by ? " by another policy" : ""}`, null, summary, article, text, false, role(i)))));
}

// Text as nodes, with the question's sentence and the words of its key marked.
function highlighted(text, question, hasPassage) {
  if (!question) return [text];
  const found = [];
  const add = (wanted, name) => {
    if (!wanted || !wanted.trim()) return;
    const words = wanted.trim().split(/\s+/).map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("\\s+");
    for (const match of text.matchAll(new RegExp(words, "giu"))) found.push([match.index, match.index + match[0].length, name]);
  };
  if (hasPassage) add(question.passage, "");
  if (!found.length) add(question.options[question.answer], "key");
  const nodes = [];
  let end = 0;
  for (const [from, to, name] of found.sort((a, b) => a[0] - b[0])) {
    if (from < end) continue;
    nodes.push(text.slice(end, from), el("mark", { class: name || null }, text.slice(from, to)));
    end = to;
  }
  return [...nodes, text.slice(end)];
}
