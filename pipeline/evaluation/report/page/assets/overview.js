// The results of the run: headline, win rates, plots, judge card, training, costs.
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const quality = (rate) => (rate.better ? "good" : rate.high < 0.5 ? "poor" : "");
const section = (id, title, lead, ...children) =>
  el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title` }, title), lead && el("p", { class: "lead" }, lead), children);

// A win rate on a scale from 0 to 100 %, with its interval and the line of a coin.
function scale(rate, words, isLarge = false) {
  const [height, middle] = isLarge ? [44, 14] : [14, 7];
  const at = (share) => `${share * 100}%`;
  const kind = quality(rate);
  return svg("svg", { height, role: "img", "aria-label": words },
    svg("line", { class: "axis", x1: "0%", x2: "100%", y1: middle, y2: middle }),
    svg("line", { class: "half", x1: "50%", x2: "50%", y1: 0, y2: 2 * middle }),
    svg("line", { class: `range ${kind}`, x1: at(rate.low), x2: at(rate.high), y1: middle, y2: middle, "stroke-width": isLarge ? 7 : 3 }),
    svg("circle", { class: `dot ${kind}`, cx: at(rate.win_rate), cy: middle, r: isLarge ? 8 : 4.5 }),
    isLarge && [["0%", "start", "always loses"], ["50%", "middle", "a coin"], ["100%", "end", "always wins"]].map(([x, anchor, text]) =>
      svg("text", { x, y: height - 2, "text-anchor": anchor }, text)));
}

const interval = (rate) => `${(rate.low * 100).toFixed(1)} – ${percent(rate.high)}`;

function heading(overview) {
  const { results } = overview;
  const facts = [["Policy", overview.policy], ["Judge", overview.judge], ["Second judge", results && results.second_judge], ["Data", overview.source]];
  return el("section", { id: "top", class: "hero", "aria-labelledby": "run-name" },
    el("h1", { id: "run-name" }, data(overview.run)),
    el("ul", { class: "facts" }, facts.map(([name, value]) => value && el("li", null, `${name} `, data(value, "span")))),
    results ? headline(results, overview.rule) : overview.judge && el("p", { class: "empty" }, "No round is finished yet, so there are no results."),
    results && results.notes.length ? el("ul", { class: "notes", "aria-label": "What to know about these figures" }, results.notes.map((note) => el("li", null, data(note)))) : null);
}

function headline(results, rule) {
  const line = results.headline;
  if (!line || !line.rate) return el("p", { class: "empty" }, "No round was trained, or no article could be compared.");
  const { rate } = line;
  const level = `${+(results.confidence * 100).toFixed(2)} %`;
  const best = results.rounds.length > 1 && line.on !== "test" && results.champion === line.round ? `, the best of ${results.rounds.length} rounds by these articles` : "";
  const where = line.on === "test" ? `${rate.n} test articles, which chose nothing` : `${rate.n} held-out articles`;
  const shown = rate.better ? "Better than the base, and the interval shows it." : rate.high < 0.5 ? "Worse than the base." : "Not shown to be better: the interval reaches 50 %.";
  const held = line.held_out ? ` On held-out articles, which chose the champion: ${percent(line.held_out.win_rate)} (${interval(line.held_out)}).` : "";
  const looks = results.looks > 1 ? ` The test articles were looked at ${results.looks} times, so this figure may be too high.` : "";
  return el("div", { class: "headline" },
    el("div", { class: `figure ${quality(rate)}` }, percent(rate.win_rate)),
    el("div", { class: "words" },
      el("p", { class: "said" }, `Win rate of round ${line.round} against the base${best}`),
      el("p", null, `${level} interval ${interval(rate)}, on ${where}; ${rate.wins} wins, ${rate.ties} ties, ${rate.losses} losses. ${shown}`),
      el("p", { class: "muted" }, data(rule), `${held}${looks}`)),
    el("div", { class: "scale" }, scale(rate, `${percent(rate.win_rate)}, interval ${interval(rate)}`, true)));
}

function resultsSection(overview) {
  const { results } = overview;
  if (!results) return null;
  const rows = [];
  let group = null;
  for (const line of results.rates) {
    if (line.group !== group) rows.push(el("tr", { class: "group" }, el("th", { colspan: 6, scope: "colgroup" }, (group = line.group))));
    const name = `${line.writer} against base`;
    const isRound = line.writer.startsWith("round") && line.rule === "strict";
    rows.push(el("tr", { class: isRound ? "strong" : null },
      el("th", { scope: "row" }, data(line.writer)), el("td", { class: "text muted" }, line.rule),
      line.rate
        ? [el("td", { class: "interval text" }, scale(line.rate, `${name}: ${percent(line.rate.win_rate)}`)), el("td", null, percent(line.rate.win_rate)),
           el("td", null, interval(line.rate)), el("td", null, `${line.rate.wins} / ${line.rate.ties} / ${line.rate.losses}`)]
        : [el("td"), el("td", null, "–"), el("td", null, "–"), el("td", null, "–")]));
  }
  const names = results.tables.length > 2 ? ["Test articles", "Summaries of each writer", "All comparisons"] : ["Summaries of each writer", "All comparisons"];
  return section("results", "Win rates against the base", "Wins plus half of the ties, as a share of the articles. Green: shown to be better. Red: shown to be worse. lead is the article's first sentences, shorten-only the base's summary cut short; neither has learned anything.",
    table("Win rates against the base", ["writer", ["rule", "text"], ["from 0 to 100 %", "text"], "win rate", "interval", "win / tie / loss"], rows),
    el("div", { class: "charts" }, results.by_round.length ? byRound(results) : null, points(results.points)),
    results.tables.map((lines, i) => el("details", { class: "more" }, el("summary", null, names[i]), plainTable(names[i], lines))),
    results.benchmark.length > 1 ? el("details", { class: "more" }, el("summary", null, "What the policy has forgotten"), plainTable("Benchmarks", results.benchmark)) : null);
}

function plainTable(label, [head, ...lines]) {
  const isText = head.map((_, i) => lines.some((line) => line[i].length > 30));
  const cell = (text, i) => (i ? el("td", { class: isText[i] ? "wrap text" : null }, text) : el("th", { scope: "row" }, data(text)));
  return table(label, head.map((name, i) => (isText[i] ? [name, "text"] : name)), lines.map((line) => el("tr", null, line.map(cell))));
}

// Plots

const charts = [];
function chart(title, help, words, make, isSmall) {
  const canvas = el("canvas", { role: "img", "aria-label": words });
  charts.push({ canvas, make, drawn: null });
  return el("figure", null, el("figcaption", null, el("b", null, title), help && el("span", null, help)), el("div", { class: "canvas" }, canvas));
}

function drawCharts() {
  Chart.defaults.color = colour("muted");
  Chart.defaults.borderColor = colour("line");
  Chart.defaults.font.family = colour("sans");
  Chart.defaults.animation = false;
  Chart.defaults.maintainAspectRatio = false;
  for (const each of charts) {
    if (each.drawn) each.drawn.destroy();
    each.drawn = new Chart(each.canvas, each.make());
  }
}
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCharts);

const palette = () => [colour("accent"), colour("warn"), colour("focus"), colour("bad"), colour("muted")];
const asPercent = { ticks: { callback: (value) => `${Math.round(value * 100)} %` } };

function byRound(results) {
  const rounds = results.rounds;
  const words = results.by_round.map((series) => `${series.name}: ${series.points.map((p) => `round ${p.round} ${percent(p.win_rate)}`).join(", ")}`).join("; ");
  return chart("Win rate by round", `Against the base, on held-out articles, with the ${+(results.confidence * 100).toFixed(2)} % interval.`, `Win rate by round. ${words}`, () => ({
    data: {
      labels: rounds.map((number) => `round ${number}`),
      datasets: results.by_round.flatMap((series, i) => {
        const at = (value) => rounds.map((number) => { const point = series.points.find((p) => p.round === number); return point ? value(point) : null; });
        const style = { borderColor: palette()[i % 5], backgroundColor: palette()[i % 5] };
        return [
          { type: "line", label: series.name, data: at((p) => p.win_rate), pointRadius: 5, borderWidth: 2, borderDash: i % 2 ? [5, 4] : [], ...style },
          { type: "bar", label: "interval", data: at((p) => [p.low, p.high]), ...style, backgroundColor: `${palette()[i % 5]}55`, borderWidth: 0, barThickness: 7, grouped: false },
        ];
      }),
    },
    options: {
      interaction: { mode: "index", intersect: false },
      scales: { y: { min: 0, max: 1, ...asPercent }, x: { grid: { display: false } } },
      plugins: {
        legend: { position: "bottom", labels: { filter: (item) => item.text !== "interval", usePointStyle: true } },
        tooltip: { callbacks: { label: (item) => (Array.isArray(item.raw) ? `interval ${percent(item.raw[0])} – ${percent(item.raw[1])}` : `${item.dataset.label}: ${percent(item.raw)}`) } },
      },
    },
  }));
}

function points({ name, is_share, points }) {
  const value = (y) => (is_share ? percent(y) : short(y));
  const words = points.map((p) => `${p.name}: ${value(p.y)} at ${percent(p.x)}`).join("; ");
  const labels = {
    id: "names",
    afterDatasetsDraw(drawn) {
      const { ctx } = drawn;
      ctx.save();
      ctx.font = `12.5px ${colour("sans")}`;
      ctx.fillStyle = colour("ink");
      const taken = []; // the middles of the labels, which keep clear of each other
      drawn.getDatasetMeta(0).data.forEach((point, i) => {
        const name = points[i].name.slice(0, 24), width = ctx.measureText(name).width;
        const isRight = point.x > drawn.chartArea.right - 90, x = point.x + (isRight ? -10 - width : 10);
        const isFree = (y) => taken.every((other) => Math.abs(other.y - y) > 14 || x > other.right || x + width < other.x);
        const y = [0, -15, -30, 15].map((shift) => point.y + 4 + shift).find(isFree) ?? point.y + 4;
        taken.push({ x, y, right: x + width });
        ctx.fillText(name, x, y);
      });
      ctx.restore();
    },
  };
  return chart(`${name} over length`, "Median compression: words of the summary as a share of the article's. Up and to the left is better.", `${name} over length. ${words}`, () => ({
    type: "scatter",
    data: { datasets: [{ data: points.map((p) => ({ x: p.x, y: p.y })), pointRadius: 6, pointHoverRadius: 8, backgroundColor: points.map((p) => colour(p.name.startsWith("round") ? "accent" : "muted")) }] },
    options: {
      layout: { padding: { right: 8 } },
      scales: { x: { ...asPercent, grace: "12%", title: { display: true, text: "compression" } }, y: is_share ? { min: 0, max: 1, ...asPercent } : { grace: "15%" } },
      plugins: { legend: { display: false }, tooltip: { callbacks: { label: (item) => `${points[item.dataIndex].name}: ${value(item.raw.y)}, ${short(points[item.dataIndex].words)} words` } } },
    },
    plugins: [labels],
  }));
}

function trainingSection({ training }) {
  if (!training.length) return null;
  const drawn = DATA.curves.filter(([, name, held]) => training.some(({ series }) => series[name] || series[held]));
  return section("training", "Training", "A line for each round, by step. Open circles are its held-out pairs.",
    el("div", { class: "charts small" }, drawn.map(([title, name, held, help]) => {
      const last = training.map((each) => `${each.name}: ${short(((each.series[name] || each.series[held]).at(-1) || [])[1])} at the end`).join("; ");
      return chart(title, help, `${title}. ${last}`, () => ({
        type: "line",
        data: { datasets: training.flatMap((each, i) => {
          const style = { borderColor: palette()[i % 5], backgroundColor: palette()[i % 5], borderWidth: 1.8 };
          const line = (label, pairs, more) => pairs && { label, data: pairs.map(([x, y]) => ({ x, y })), ...style, ...more };
          return [line(each.name, each.series[name], { pointRadius: 0 }), line(`${each.name}, held-out`, each.series[held], { showLine: false, pointRadius: 4, pointStyle: "circle", backgroundColor: colour("panel") })].filter(Boolean);
        }) },
        options: {
          interaction: { mode: "nearest", axis: "x", intersect: false },
          scales: { x: { type: "linear", grid: { display: false }, ticks: { precision: 0 } }, y: { ticks: { maxTicksLimit: 6 } } },
          plugins: { legend: { position: "bottom", labels: { usePointStyle: true, boxHeight: 6, filter: (item) => !item.text.endsWith(", held-out") } }, tooltip: { callbacks: { title: (items) => `step ${items[0].raw.x}`, label: (item) => `${item.dataset.label}: ${Number(item.raw.y.toPrecision(4))}` } } },
        },
      }));
    })));
}

function judgeSection({ results, judge }) {
  if (!results) return null;
  return section("judge", "Can the judge be trusted?", el("span", null, "The card of ", data(judge), ": how it did where the right answer is known, and what else moves its score."),
    plainTable("Judge card", results.judge_card));
}

function costsSection({ stages }) {
  if (!stages.length) return null;
  const most = Math.max(...stages.map((stage) => stage.seconds || 0), 1e-9);
  const sum = (name) => stages.reduce((total, stage) => total + (stage[name] || 0), 0);
  const paid = stages.some((stage) => stage.usd !== null);
  const rows = stages.map((stage) => el("tr", null,
    el("th", { scope: "row" }, stage.address),
    el("td", null, count(stage.in)), el("td", null, count(stage.kept)),
    el("td", { class: "text" }, duration(stage.seconds)), el("td", { class: "text", "aria-hidden": "true" }, bar((stage.seconds || 0) / most)),
    el("td", null, count(stage.tokens_in)), el("td", null, stage.tokens_in && stage.tokens_cached !== null ? percent(stage.tokens_cached / stage.tokens_in, 0) : "–"),
    el("td", null, count(stage.tokens_out)), paid && el("td", null, stage.usd === null ? "–" : `$${stage.usd.toFixed(2)}`)));
  const foot = el("tr", null, el("th", { scope: "row" }, "sum"), el("td"), el("td"), el("td", { class: "text" }, duration(wallSeconds(stages))), el("td", { class: "text" }),
    el("td", null, count(sum("tokens_in"))), el("td"), el("td", null, count(sum("tokens_out"))), paid && el("td", null, `$${sum("usd").toFixed(2)}`));
  const price = paid ? "" : " No server charged for a token; what the hardware costs, rondo plan --price says.";
  return section("costs", "Time, tokens and cost", `By stage, in the order in which they were finished. Stages that ran together count once in the sum.${price}`,
    table("Time, tokens and cost by stage", ["stage", "articles in", "kept", ["time", "text"], ["", "text"], "tokens read", "cached", "written", ...(paid ? ["cost"] : [])], rows, foot),
    skipped(stages));
}

function bar(share) {
  return svg("svg", { height: 8, viewBox: "0 0 100 8", preserveAspectRatio: "none", style: null }, svg("rect", { x: 0, y: 0, width: Math.max(share * 100, 0.5), height: 8, fill: "currentColor", opacity: ".35" }));
}

function wallSeconds(stages) {
  const seen = new Set();
  return stages.reduce((total, stage) => {
    if (seen.has(stage.address)) return total;
    const group = stages.filter((other) => other === stage || stage.together_with.includes(other.address));
    group.forEach((other) => seen.add(other.address));
    return total + Math.max(...group.map((other) => other.seconds || 0));
  }, 0);
}

function skipped(stages) {
  const rows = stages.flatMap((stage) => [
    ...Object.entries(stage.skipped).map(([reason, number]) => ["articles", reason, number]),
    ...Object.entries(stage.dropped).map(([reason, number]) => ["questions", reason, number]),
    ...(stage.unread ? [["answers", "could not be read", stage.unread]] : []),
    ...(stage.unusable ? [["summaries", stage.unusable.replace(/^unusable summaries: /, ""), null]] : []),
  ].map(([what, reason, number]) => el("tr", null, el("th", { scope: "row" }, stage.address), el("td", { class: "text" }, what), el("td", { class: "text wrap" }, data(reason)), el("td", null, count(number)))));
  return el("div", { class: "more" }, el("h3", null, "What was skipped, and why"),
    rows.length ? table("What was skipped, and why", ["stage", ["what", "text"], ["reason", "text"], "how many"], rows) : el("p", { class: "muted" }, "Nothing was skipped."));
}
