// Starts the page, and keeps it up to date while a run is in progress.
const main = document.getElementById("main");

async function start() {
  if (!view.last) recall();
  const [overview, samples] = await Promise.all([source.overview(), source.rounds()]);
  document.title = `${overview.run} – Rondo`;
  const place = window.scrollY; // an update of a run in progress keeps the reader's place
  charts.splice(0).forEach((each) => each.drawn && each.drawn.destroy());
  const sections = [liveSection(), resultsSection(overview), samplesSection(samples, overview), judgeSection(overview), trainingSection(overview), costsSection(overview)].filter(Boolean);
  refill(main, heading(overview), ...sections);
  navigation(overview.run, sections);
  drawCharts();
  if (parts.list && main.contains(parts.list)) load();
  const linked = place === 0 && document.getElementById(location.hash.slice(1).split("?")[0]);
  if (linked) linked.scrollIntoView({ behavior: "instant" });
  else window.scrollTo({ top: place, behavior: "instant" });
}

const LINKS = { live: "Live", results: "Results", samples: "Articles", judge: "Judge", training: "Training", costs: "Costs" };

function navigation(name, sections) {
  const links = sections.map(({ id }) => el("a", { href: `#${id}` }, LINKS[id]));
  refill(document.getElementById("bar"), el("div", null, data(name, "b"), el("nav", { "aria-label": "Sections" }, links)));
  const seen = new Map(sections.map((each) => [each.id, false]));
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) seen.set(entry.target.id, entry.isIntersecting);
    const current = [...seen].find(([, isSeen]) => isSeen);
    for (const link of links) {
      if (current && link.hash === `#${current[0]}`) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }, { rootMargin: "-30% 0px -60% 0px" });
  sections.forEach((each) => observer.observe(each));
}

// Live

let made = null;

function liveSection() {
  if (!DATA.server) return null;
  parts.live = el("div");
  const built = section("live", "The run now", null, parts.live);
  parts.liveSection = built;
  built.hidden = true;
  return built;
}

async function follow() {
  let wait = 2000;
  try {
    const { progress, made: nowMade } = await source.progress();
    if (made !== null && made !== nowMade) await start();
    made = nowMade;
    showProgress(progress);
    if (!progress || progress.state !== "running") wait = 10000;
  } catch (error) {
    if (parts.live) refill(parts.live, el("p", { class: "muted" }, data(`rondo view does not answer: ${error.message}`)));
    wait = 5000;
  }
  setTimeout(follow, wait);
}

function showProgress(progress) {
  parts.liveSection.hidden = !progress;
  for (const link of document.querySelectorAll('#bar a[href="#live"]')) link.hidden = !progress;
  if (!progress) return;
  const { state, stages } = progress;
  const working = stages.filter((stage) => stage.state === "working");
  const finished = stages.filter((stage) => stage.state === "made").length;
  const said = { running: "The run is in progress", silent: "The run has not been heard of for a while: its driver may be gone", finished: "The run is finished", stopped: "The run was stopped. The same command resumes it" }[state];
  const left = state === "running" && working.length && working.every((stage) => stage.left !== null) ? `, about ${duration(Math.max(...working.map((stage) => stage.left)))} left in this stage` : "";
  refill(parts.live, 
    el("p", { class: "lead" }, `${said}: ${finished} of ${stages.length} stages are made${left}.`),
    el("details", { open: state !== "finished" }, el("summary", null, "Stages"),
      el("ol", { class: "stages" }, stages.map((stage) => el("li", null, el("span", null, stage.address), stageBar(stage), el("span", { class: "state" }, stageWords(stage)))))));
}

function stageBar(stage) {
  if (stage.state !== "working") return el("progress", { "aria-label": stage.address, value: stage.state === "made" ? 1 : 0, max: 1 });
  return el("progress", { "aria-label": stage.address, value: stage.total ? stage.done : null, max: stage.total || 1 });
}

function stageWords(stage) {
  if (stage.state !== "working") return stage.state === "made" ? "made" : "to come";
  const of = stage.total ? ` of ${count(stage.total)}` : "";
  const left = stage.left === null ? "" : `, ${duration(stage.left)} left`;
  return `${count(stage.done)}${of} ${stage.unit}, ${stage.rate.toFixed(1)}/s${left}`;
}

start().then(() => DATA.server && follow()).catch((error) => refill(main, el("p", { class: "empty" }, data(`This page cannot be shown: ${error.message}`))));
