"""The summaries of a row are spread over several temperatures, evenly and by its seed, and the row says how."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judges.base import Prompt, Skip, user
from pipeline.config import Config
from pipeline.config.loader import load_config
from pipeline.execution.recipe import compare_recipes, stage_recipe
from pipeline.inference.base import TOKENS_IN
from pipeline.inference.sampling import sample_rows
from pipeline.inference.scripted import ScriptedEngine
from pipeline.stages.summaries import sample_summaries
from tests.helpers.paths import DEMO

ROWS = [{"article_id": str(number), "article": f"Article {number}."} for number in range(6)]
ENGINE = ScriptedEngine(lambda prompt, sample: f"{prompt.temperature:g}: sample {sample}")


def sampled(n, temperatures, rows=ROWS, seed=0):
    return sample_rows(Prompt(user("{article}"), 50, n=n), "writer", ENGINE, rows, temperatures, seed)


@given(n=st.integers(2, 12), temperatures=st.lists(st.sampled_from([0.5, 0.7, 0.9, 1.1]), min_size=1, max_size=4))
def test_each_temperature_has_its_share(n, temperatures):
    for outcome in sampled(n, temperatures):
        summaries = outcome["summaries"]
        assert [summary["text"].partition(":")[0] for summary in summaries] == [
            f"{s['temperature']:g}" for s in summaries
        ]
        assert len({summary["text"] for summary in summaries}) == len(summaries) == n
        whole, rest = divmod(n, len(temperatures))
        counts = Counter(summary["temperature"] for summary in summaries)
        listed = Counter(temperatures)
        assert all(whole * listed[t] <= counts[t] <= (whole + bool(rest)) * listed[t] for t in listed)


def test_the_order_is_that_of_the_rows_seed():
    orders = [[summary["temperature"] for summary in outcome["summaries"]] for outcome in sampled(8, [0.5, 1.0])]
    # Neither the batch nor the engine decides.
    alone = [sampled(8, [0.5, 1.0], [row])[0] for row in ROWS]
    assert [[summary["temperature"] for summary in outcome["summaries"]] for outcome in alone] == orders
    assert len(set(map(tuple, orders))) > 1
    assert orders != [[s["temperature"] for s in outcome["summaries"]] for outcome in sampled(8, [0.5, 1.0], seed=1)]


def test_a_prompt_counts_once_and_an_error_skips_the_row():
    several, one = sampled(4, [0.5, 1.0], ROWS[:1]), sampled(4, [1.0], ROWS[:1])
    assert several[0]["tally"][TOKENS_IN] == one[0]["tally"][TOKENS_IN] == len("Article 0.")

    def refuses_heat(prompt, sample):
        if prompt.temperature == 1.0:
            raise ValueError("too hot")
        return "fine"

    outcomes = sample_rows(Prompt(user("{article}"), 50, n=4), "w", ScriptedEngine(refuses_heat), ROWS, [0.5, 1.0])
    assert outcomes == [Skip("too hot")] * len(ROWS)


def recipe(config: Config):
    return stage_recipe(sample_summaries, [], config)


def test_a_recipe_from_before_these_settings_is_unchanged():
    config = load_config(DEMO)
    now, was = recipe(config), recipe(config)
    for name in ("top_k", "min_p", "repetition_penalty", "stop"):
        del was["settings"]["summaries"][name]
    assert compare_recipes(was, now, config) == []
    assert now["settings"]["summaries"]["temperature"] == 1.0
    assert recipe(load_config(DEMO, ["summaries.temperature=[1]"])) == now
    several = load_config(DEMO, ["summaries.temperature=[1, 0.5]", "summaries.stop=[END]"])
    assert list(map(str, compare_recipes(was, recipe(several), several))) == [
        "settings.summaries.temperature: was 1.0, now [0.5, 1.0]",
        'settings.summaries.stop: was null, now ["END"]',
    ]


@pytest.mark.parametrize(
    "change", ["temperature: 0.9", "temperature: [1, 1.2]", "top_k: 5", "min_p: 0.1", "repetition_penalty: 1.1"]
)
def test_the_report_knows_when_samples_are_not_the_policys_own(change):
    assert load_config(DEMO, ["summaries={n: 2, stop: [END]}"]).summaries.is_own_distribution
    assert not load_config(DEMO, [f"summaries={{n: 2, {change}}}"]).summaries.is_own_distribution
