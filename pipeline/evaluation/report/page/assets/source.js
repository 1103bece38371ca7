// Where the page has its data from: from itself, in report.html, or from the server of `rondo view`.
const DATA = JSON.parse(document.getElementById("data").textContent);

const VERDICT = { won: 1, lost: -1, tie: 0 };
const BEST_FIRST = { gain: 1, loss: -1 };

const embedded = {
  overview: async () => DATA.overview,
  rounds: async () => DATA.samples,
  article: async (id) => DATA.articles[id],
  // As `ArticleIndex.select` and `search_articles` do it for all articles of a run.
  async list({ only, round, split, text, offset, limit }) {
    const words = [...text.toLowerCase().matchAll(/"([^"]+)"|(\S+)/g)].map(([, quoted, plain]) => (quoted || plain).replace(/^"+|"+$/g, ""));
    const at = (item) => DATA.articles[item.id].verdicts[round] || { verdict: null, values: null, words: null, flags: [] };
    const among = DATA.samples.items.map((item) => ({ ...item, ...at(item) }))
      .filter((item) => (!split || item.split === split) && words.every((word) => searchable(item.id).includes(word)));
    const passes = (name, item) => {
      if (name in VERDICT) return item.verdict === VERDICT[name];
      if (name in BEST_FIRST) return difference(item.values) * BEST_FIRST[name] > 0 || item.verdict === BEST_FIRST[name];
      return name === "all" || item.flags.includes(name);
    };
    const counts = Object.fromEntries(FILTERS.map(([name]) => [name, among.filter((item) => passes(name, item)).length]));
    const items = among.filter((item) => passes(only, item));
    const order = BEST_FIRST[only];
    if (order) items.sort((a, b) => order * (difference(b.values) - difference(a.values) || difference(a.words) - difference(b.words)));
    return { items: items.slice(offset, offset + limit), total: items.length, counts, progress: null };
  },
};

// The base has the first of the two values.
const difference = (values) => (values ? values[1] - values[0] : 0);

function searchable(id) {
  const article = DATA.articles[id];
  return [id, article.article, ...article.writers.map((writer) => writer.text)].join("\n").toLowerCase();
}

const TOKEN = new URLSearchParams(location.search).get("token");

async function ask(path, query = {}) {
  const answer = await fetch(`${path}?${new URLSearchParams(query)}`, { headers: { Authorization: `Bearer ${TOKEN}` } });
  if (!answer.ok) throw new Error((await answer.text()) || `the server answers ${answer.status}`);
  return answer.json();
}

const server = {
  overview: () => ask("api/overview"),
  rounds: () => ask("api/rounds"),
  progress: () => ask("api/progress"),
  article: (id) => ask("api/article", { id }),
  list: (query) => ask("api/articles", query),
};

const source = DATA.server ? server : embedded;
