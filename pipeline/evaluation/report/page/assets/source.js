// Where the page has its data from: from itself, in report.html, or from the server of `rondo view`.
const DATA = JSON.parse(document.getElementById("data").textContent);

const VERDICT = { won: 1, lost: -1, tie: 0 };

const embedded = {
  overview: async () => DATA.overview,
  rounds: async () => DATA.samples,
  article: async (id) => DATA.articles[id],
  // As `ArticleIndex.select` does it for all articles of a run.
  async list({ only, round, split, text, offset, limit }) {
    const wanted = text.toLowerCase();
    const at = (item) => (DATA.articles[item.id].verdicts[round] || { verdict: null, gain: null, flags: [] });
    const order = { gain: 1, loss: -1 }[only];
    let items = DATA.samples.items.map((item) => ({ ...item, ...at(item) }));
    items = items.filter((item) => {
      if (split && item.split !== split) return false;
      if (only in VERDICT && item.verdict !== VERDICT[only]) return false;
      if (order && !(item.gain * order > 0 || item.verdict === order)) return false;
      if (["cut_off", "repeated", "unread"].includes(only) && !item.flags.includes(only)) return false;
      return !wanted || searchable(item.id).includes(wanted);
    });
    if (order) items.sort((a, b) => order * (b.gain - a.gain));
    return { items: items.slice(offset, offset + limit), total: items.length, progress: null };
  },
};

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
