"""A jury of judges of several kinds in the real stages: each asks and scores with its own engine, and all vote."""

import pytest

from judges.cloze import ClozeJudge
from pipeline.config.hardware import EngineHardware
from pipeline.config.judging import JudgeSettings, Pairs, Questions
from pipeline.evaluation import judge_card
from pipeline.inference.pool import EnginePool
from pipeline.inference.scripted import ScriptedEngine
from pipeline.judging import tallies
from pipeline.judging.preference import majority_vote
from pipeline.stages.pairs import make_pairs
from pipeline.stages.questions import ask_questions, ask_second_questions
from pipeline.stages.scores import score_heldout, score_samples, score_second
from pipeline.storage.schema import to_dataset

ARTICLE = """Ana Santos leads Northwind. The firm hired 93 people in Lima last year. Ben Costa left Bluepeak.
Carla Weber spoke in Oslo. Dan Okafor paid 12 million to Ironwood. Eva Rossi saw 45 cars. Farid Khan bought 7 boats.
Grace Xu met 61 pilots, and Hugo Lopez met 88 more."""
GOOD = "Ana Santos leads Northwind. The firm hired 93 people in Lima last year. Ben Costa left Bluepeak."
TEXTS = [ARTICLE, GOOD, "Nothing happened at all, they say."]
JURY = JudgeSettings.model_validate(
    {
        "kind": "jury",
        "members": {
            "exam": {"kind": "cloze", "questions": 4, "weight": 1.0},
            "ratings": {"kind": "rubric", "model": "m", "settings": {"criteria": {"short": "is it short?"}}},
            "duel": {"kind": "pairwise", "model": "m", "weight": 0.5},
        },
    }
)


def rate(prompt, sample):
    """A rubric's reply: the shorter, the better."""
    summary = prompt.messages[0]["content"].split("<summary>\n")[1].split("\n</summary>")[0]
    return f"short {5 if len(summary) < 50 else 3 if len(summary) < 150 else 1}"


def always_first(prompt, sample):
    return "A"


@pytest.fixture(scope="module")
def pools():
    hardware = EngineHardware(batch_size=2)
    scripts = {"exam": ClozeJudge(4).reply, "ratings": rate, "duel": always_first}
    return {
        name: EnginePool(lambda script=script: ScriptedEngine(script), hardware) for name, script in scripts.items()
    }


def articles(split="train"):
    return to_dataset(
        [
            {"article_id": name, "article": text, "split": split, "questions": []}
            for name, text in (("rich", ARTICLE), ("poor", "Nothing happened here."))
        ]
    )


def with_summaries(rows):
    columns = [name for name in ("article_id", "article", "split", "questions", "second_questions") if name in rows[0]]
    summaries = [{"text": text, "token_ids": [], "finish_reason": "stop"} for text in TEXTS]
    added = {"writer": "w", "prompt_ids": [], "summaries": summaries}
    return to_dataset([{name: row[name] for name in columns} | added for row in rows])


def add_tallies(rows):
    total = {}
    for count in (count for row in rows for count in row["tally"]):
        total[count["what"]] = total.get(count["what"], 0) + count["count"]
    return total


@pytest.fixture(scope="module")
def judged(ray_cluster, pools):
    """The rows of the stages questions, scores and pairs."""
    questions = Questions(min_questions=3)
    asked = ask_questions(articles(), judge=JURY, questions=questions, seed=0, judge_engine=pools).take_all()
    scored = score_samples(with_summaries(asked), judge=JURY, seed=0, judge_engine=pools).take_all()
    columns = ("article_id", "article", "split", "questions", "writer", "prompt_ids", "summaries", "scores")
    rows = to_dataset([{name: row[name] for name in columns} for row in scored])
    paired = make_pairs(rows, Pairs(preference="majority_vote", selection="all", max_words=500)).take_all()
    return asked, scored, {row["article_id"]: row for row in paired}


def test_only_members_with_questions_ask_and_none_is_skipped_while_others_can_judge(judged):
    asked, _, _ = judged
    by_name = {row["article_id"]: row for row in asked}
    assert {question["judge"] for question in by_name["rich"]["questions"]} == {"exam"}
    assert len(by_name["rich"]["questions"]) == 4 and by_name["poor"]["questions"] == []
    assert all(row["skipped"] is None for row in asked)


def test_a_score_has_each_members_value(judged):
    _, scored, _ = judged
    scores = {row["article_id"]: row["scores"] for row in scored}
    assert scores["rich"][0]["items"] == [1.0, 0.0, 0.5] and scores["rich"][2]["items"] == [0.0, 1.0, 0.5]
    assert scores["rich"][0]["weights"] == [1.0, 1.0, 0.5]
    assert [score["items"][0] for score in scores["poor"]] == [None] * 3, "the exam has no questions, so it abstains"
    assert [score["unread"] for score in scores["poor"]] == [0] * 3
    assert scores["rich"][0]["value"] == pytest.approx((1.0 + 0.5 * 0.5) / 2.5)


def test_the_vote_makes_pairs(judged):
    _, _, paired = judged
    # Exam and rubric disagree with equal weights about the long summaries, and the duel is always a tie.
    for name in ("rich", "poor"):
        scores = paired[name]["scores"] if paired[name].get("scores") else None
        assert scores is not None
        for pair in paired[name]["pairs"] or []:
            chosen, rejected = scores[pair["chosen"]], scores[pair["rejected"]]
            assert majority_vote(chosen, rejected, Pairs(preference="majority_vote")) == 1
    assert {(pair["chosen"], pair["rejected"]) for pair in paired["poor"]["pairs"]} == {(1, 0), (2, 0), (2, 1)}


def test_each_member_has_a_card_of_its_own(judged):
    asked, scored, _ = judged
    records = {"tally": add_tallies(asked)}, [{"tally": add_tallies(scored)}], [{"tally": add_tallies(scored)}]
    assert records[1][0]["tally"][tallies.JUDGED] == 6, "not once for each member"
    card = judge_card.measure_card(*records, 5) | judge_card.measure_members(*records, JURY)
    assert list(card["members"]) == ["exam", "ratings", "duel"]
    assert card["members"]["exam"]["ceiling"] == 1.0 and card["members"]["exam"]["summaries_judged"] == 6
    assert card["members"]["duel"]["first_won"] == 1.0 and card["members"]["duel"]["winner_changed"] == 1.0
    assert card["members"]["ratings"]["parse_rate"] == 1.0 and card["members"]["ratings"]["longer_won"] == 0.0
    lines = judge_card.card_lines(card)
    assert ["duel: winner changes with the order", "100.0%", "6 pairs, which count as ties"] in lines
    assert all(len(line) == 3 for line in lines)


@pytest.mark.usefixtures("ray_cluster")
def test_a_jury_can_be_the_second_judge_and_compares_with_the_base(pools):
    settings = {"second_judge": JURY, "seed": 0, "second_judge_engine": pools}
    asked = ask_second_questions(articles("eval"), questions=Questions(min_questions=3), **settings).take_all()
    assert {row["article_id"]: len(row["second_questions"]) for row in asked} == {"rich": 4, "poor": 0}
    first = {"answers": ["A"], "correct": 1, "unread": 0, "words": 3, "invalid_chars": 0}
    rows = [row | {"scores": [first] * 3} for row in with_summaries(asked).take_all()]
    scored = score_second(to_dataset(rows), **settings).take_all()
    assert all(row["scores"][0]["correct"] == 1 for row in scored), "the first judge's scores stay"
    rich = next(row["second_scores"] for row in scored if row["article_id"] == "rich")
    assert [score["items"][2] for score in rich] == [0.5, 0.5, 0.5]
    assert rich[0]["items"][:2] == [1.0, 0.0]


@pytest.mark.usefixtures("ray_cluster")
def test_an_article_that_no_member_can_judge_is_skipped(pools):
    exams = JudgeSettings.model_validate(
        {"kind": "jury", "members": {name: {"kind": "cloze", "questions": 4} for name in ("exam", "other")}}
    )
    pools = {"exam": pools["exam"], "other": pools["exam"]}
    asked = ask_questions(
        articles(), judge=exams, questions=Questions(min_questions=3), seed=0, judge_engine=pools
    ).take_all()
    assert {row["article_id"]: row["skipped"] for row in asked} == {"rich": None, "poor": "under 3 good questions"}
    rich = next(row for row in asked if row["article_id"] == "rich")
    assert [question["judge"] for question in rich["questions"]] == ["exam"] * 4 + ["other"] * 4
    scored = score_heldout(with_summaries([rich]), ask_again=1.0, judge=exams, seed=0, judge_engine=pools).take_all()
    assert scored[0]["scores"][0]["items"] == [1.0, 1.0]
